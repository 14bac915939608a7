"""The sections of a study's report, all from the same findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from solvers.study import measures
from solvers.study.report import figures, tables
from solvers.study.report.style import Look, looks_of
from solvers.study.report.tables import Table

#: Default gap that counts as reaching the target: one percent.
TARGET = 0.01


@dataclass(frozen=True, eq=False)
class Drawing:
    """One figure: its name in files, its heading, and a sentence about it."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True, eq=False)
class Section:
    """A section of the page; a folded one opens at a click."""

    title: str
    text: str = ""
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False


@dataclass(frozen=True, eq=False)
class Findings:
    """A study's rows, and the tables that several sections share.

    Attributes:
        rows: one row per run.
        problems: see `solvers.study.measures.references`.
        settings: name -> text, shown as given: seed, machine, versions, ...
        target: the gap that counts as reaching the target.
    """

    rows: pd.DataFrame
    problems: pd.DataFrame
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    target: float = TARGET

    @cached_property
    def looks(self) -> dict[str, Look]:
        """The style of each sampler."""
        return looks_of(self.rows.sampler)

    @cached_property
    def against(self) -> pd.DataFrame:
        """See `solvers.study.measures.references`."""
        return measures.references(self.rows, self.problems)

    @cached_property
    def budget(self) -> tuple[str, float]:
        """Kind and amount at which samplers are ranked."""
        return measures.largest_budget(self.rows)

    @cached_property
    def top(self) -> pd.DataFrame:
        """The runs at that budget, and the "incompatible" rows of samplers that cannot take it."""
        rows = self.rows
        at = measures.at_budget(rows, *self.budget)
        absent = rows[(rows.status == "incompatible") & ~rows.sampler.isin(at.sampler)]
        return pd.concat([at, absent.drop_duplicates(["problem", "sampler"])])

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """Median gaps at that budget, problems by samplers."""
        return measures.median_gaps(self.top, self.against)

    @cached_property
    def ranking(self) -> measures.Ranking:
        """The ranking of the median gaps."""
        return measures.rank(self.gaps)


def study_sections(findings: Findings) -> list[Section]:
    """The sections for a study of samplers on problems."""
    parts = [_samplers(findings), _against_time(findings), _targets(findings), _map(findings)]
    parts += [_problems(findings), _failures(findings)]
    cells = tables.cell_table(findings.rows, findings.against)
    return [*parts, Section("Every cell", tables=(cells,), folded=True)]


def _samplers(findings: Findings) -> Section:
    kind, budget = findings.budget
    ranks = findings.ranking
    unit = kind.removesuffix("s") if budget == 1 else kind
    told = f"Samplers are ranked by their median gap at a budget of {budget:g} {unit}. "
    if ranks.reason:
        told += f"No test of the ranks: {ranks.reason}."
    else:
        told += (
            f"Friedman's test that all are alike: p {_p(ranks.p_value)} over {ranks.num_problems} "
            "problems. Bars join samplers that Nemenyi's test does not tell apart at 5 %. "
            "Problems made from one matrix are not independent, so take p with a grain of salt."
        )
    overall = tables.sampler_table(findings.top, findings.gaps, findings.against, ranks)
    pairs = () if ranks.pairwise.empty else (tables.pairwise_table(ranks),)
    figure = figures.rank_diagram(ranks, findings.looks)
    drawing = Drawing("ranks", "Mean ranks", "1 is best; ties share their mean rank.", figure)
    return Section("Samplers", told, (drawing,), (overall, *pairs))


def _against_time(findings: Findings) -> Section:
    curve = measures.anytime(findings.rows, findings.against)
    if curve.empty:
        return Section("Energy against time", "No run gave an answer.")
    drawing = Drawing(
        "energy_against_time",
        "Gap against time",
        "Medians over the problems of a kind and size; bands are quartiles, where there are at "
        f"least {figures.FEWEST_FOR_BAND} problems. The clock runs only inside the sampler.",
        figures.energy_against_time(curve, findings.looks),
    )
    return Section("Energy against time", drawings=(drawing,))


def _targets(findings: Findings) -> Section:
    reaching = measures.reaching(findings.rows, findings.against, findings.target)
    times = measures.fastest(measures.time_to_target(reaching))
    sizes = measures.tts_by_size(reaching)
    if times.empty:
        return Section("Time to target", "No run gave an answer.")
    costs = times.pivot(index="problem", columns="sampler", values="tts")
    costs = costs.reindex(columns=list(findings.looks)).reindex(findings.gaps.index)
    goal = f"{100 * findings.target:g} %"
    profile = figures.performance_profiles(
        measures.performance_profile(costs), measures.gap_profile(findings.gaps), findings.looks
    )
    drawings = (
        Drawing(
            "performance_profile",
            "Performance profile",
            f"Left (Dolan and More 2002): share of problems on which a sampler's TTS99 to {goal} "
            "is at most so many times the fastest one's. Right: share of problems within a gap.",
            profile,
        ),
        Drawing(
            "tts_by_size",
            "TTS99 by size",
            f"Time to be within {goal} of the best known energy with 99 % certainty: median over "
            "problems, 95 % bootstrap bands over runs. Upper edge: not reached on half of them.",
            figures.tts_against_size(sizes, findings.looks, findings.target),
        ),
    )
    told = (
        "TTS99 = t max(1, ln 0.01 / ln(1 - p)) for runs that reach the target within t seconds "
        "with probability p, at the best t (Ronnow et al. 2014) and each sampler's fastest budget. "
        "With few runs an interval shows how their times vary, and little of how p does."
    )
    return Section("Time to target", told, drawings, (tables.target_table(times, findings.target),))


def _map(findings: Findings) -> Section:
    drawing = Drawing(
        "gap_map",
        "Sampler by problem",
        "Median gap to the best known energy at the largest budget, in percent; 0 is at most "
        "0.01 %. Hatched: incompatible, or most runs failed. In brackets: variables.",
        figures.gap_map(findings.gaps, findings.against.n),
    )
    return Section("Problem by problem", drawings=(drawing,))


def _problems(findings: Findings) -> Section:
    beaten = findings.against.index[findings.against.beaten]
    told = ""
    if len(beaten):
        told = "Better than was known, energies recomputed from the problem in float64: "
        told += ", ".join(str(name) for name in beaten) + "."
    return Section("Problems", told, tables=(tables.problem_table(findings.against),))


def _failures(findings: Findings) -> Section:
    listed = measures.failures(findings.rows)
    if listed.empty:
        return Section("Runs without an answer", "None.")
    caption = "Crashed, stopped at the time limit, or incompatible; counted as misses above."
    return Section("Runs without an answer", tables=(Table("failures", caption, listed),))


def _p(value: float) -> str:
    shown = tables.probability(value)
    return shown if shown.startswith("<") else f"= {shown}"
