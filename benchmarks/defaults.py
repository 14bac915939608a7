"""Which sampler is best for which problems: what `auto` goes by, and how well it does.

    OMP_NUM_THREADS=1 python -m benchmarks.defaults --data DATA/qubo --output runs/defaults
        [--set choose] [--samplers relax swap-tabu] [--limits 0.1s 1s] [--repeats 1] [--seed 0]

The problems of ``--set choose`` and ``larger`` are those that the rule of `auto` was made from;
those of ``report`` have other seeds and sizes, and other files of DATA. Our samplers are called
with a time limit and a seed, as users call them; their clock is the CPU's, which other work on
the machine does not use up. Samplers without a time limit are called with as many reads as fit.
Runs go in a random order; stopped at any moment, the same command goes on. ``--table`` prints
what is there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pandas as pd
from rich.console import Console

from benchmarks.families import make
from benchmarks.study import known_values
from qprune.cli.compare import StudyBar
from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution
from solvers.registry import find_entry, get_sampler, list_samplers
from solvers.sampler import CountingSampler
from solvers.study import Instance, compare, read_instances, read_study
from solvers.study.compare import Study

OURS = (
    "auto",
    "relax",
    "exact",
    "swap-tabu",
    "swap-anneal",
    "bifurcation",
    "torch-anneal",
    "greedy",
)
#: D-Wave's tabu search is not among them: it makes a dense matrix, 10 GB of the sparse problem.
PEERS = ("sa", "steepest", "path-integral", "openjij-sa")
#: A best-known energy is reached from this close, relative to it or to 1: tables are rounded.
REACHED = 1e-6

Made = tuple[str, dict[str, Any]]
#: Made from a seed; (what the rule was chosen on, what it is reported on).
CHOOSE: tuple[Made, ...] = (
    ("tour", {"cities": 8, "seed": 1}),
    ("tour", {"cities": 8, "seed": 2}),
    ("tour", {"cities": 10, "seed": 1}),
    ("tour", {"cities": 12, "seed": 1}),
    ("coloring", {"nodes": 20, "colors": 3, "edges": 42, "seed": 1}),
    ("coloring", {"nodes": 50, "colors": 3, "edges": 110, "seed": 1}),
    ("coloring", {"nodes": 40, "colors": 4, "edges": 160, "seed": 1}),
    ("knapsack", {"items": 12, "seed": 1}),
    ("knapsack", {"items": 20, "seed": 1}),
    ("knapsack", {"items": 40, "seed": 1}),
    ("assignment", {"size": 6, "seed": 1}),
    ("assignment", {"size": 8, "seed": 1}),
    ("partition", {"numbers": 20, "digits": 5, "seed": 1}),
    ("partition", {"numbers": 32, "digits": 7, "seed": 1}),
    ("independent-set", {"nodes": 50, "percent": 15, "seed": 1}),
    ("independent-set", {"nodes": 70, "percent": 10, "seed": 1}),
    ("cover", {"nodes": 60, "percent": 12, "seed": 1}),
    ("cut", {"nodes": 80, "density": 50, "low": 1, "high": 1, "seed": 1}),
    ("cut", {"nodes": 80, "density": 10, "low": -1, "high": 1, "seed": 1}),
    ("cut", {"nodes": 100, "density": 99, "low": -1, "high": 1, "seed": 1}),
    ("cut", {"nodes": 100, "density": 90, "low": -10, "high": 10, "seed": 1}),
    ("cut", {"nodes": 250, "density": 10, "low": -10, "high": 10, "seed": 1}),
    ("torus", {"shape": (9, 11), "gaussian": False, "seed": 1}),
    ("torus", {"shape": (9, 14), "gaussian": True, "seed": 1}),
    ("torus", {"shape": (15, 15), "gaussian": True, "seed": 1}),
    ("torus", {"shape": (5, 5, 5), "gaussian": False, "seed": 1}),
    ("torus", {"shape": (7, 7, 7), "gaussian": True, "seed": 1}),
    ("glass", {"shape": (14, 14), "gaussian": True, "seed": 1}),
    ("glass", {"shape": (16, 40), "gaussian": False, "seed": 1}),
    ("loops", {"shape": (8, 8, 8), "percent": 70, "seed": 1}),
    ("loops", {"shape": (30, 30), "percent": 60, "seed": 1}),
    ("processor", {"topology": "chimera", "size": 4, "r": 1, "seed": 1}),
    ("processor", {"topology": "chimera", "size": 12, "r": 7, "seed": 1}),
    ("processor", {"topology": "pegasus", "size": 4, "r": 1, "seed": 1}),
    ("mean-field", {"spins": 64, "seed": 1}),
    ("mean-field", {"spins": 150, "seed": 1}),
    ("chains", {"logical": 12, "length": 5, "seed": 1}),
    ("chains", {"logical": 16, "length": 8, "seed": 1}),
    ("max-2sat", {"variables": 80, "clauses": 240, "seed": 1}),
    ("max-2sat", {"variables": 200, "clauses": 500, "seed": 1}),
    ("nae-3sat", {"variables": 80, "clauses": 168, "seed": 1}),
    ("sparse", {"variables": 2_000, "couplings": 10_000, "seed": 1}),
    ("sparse", {"variables": 20_000, "couplings": 100_000, "seed": 1}),
    ("features", {"total": 60, "count": 10, "seed": 1}),
    ("features", {"total": 200, "count": 30, "seed": 1}),
    ("portfolio", {"assets": 100, "count": 20, "seed": 1}),
    ("portfolio", {"assets": 400, "count": 60, "seed": 1}),
)
#: Larger ones, and of middling density: where one sampler takes over from another.
LARGER: tuple[Made, ...] = (
    ("tour", {"cities": 16, "seed": 1}),
    ("tour", {"cities": 20, "seed": 1}),
    ("tour", {"cities": 25, "seed": 1}),
    ("coloring", {"nodes": 100, "colors": 3, "edges": 225, "seed": 1}),
    ("coloring", {"nodes": 120, "colors": 4, "edges": 520, "seed": 1}),
    ("knapsack", {"items": 80, "seed": 1}),
    ("knapsack", {"items": 150, "seed": 1}),
    ("assignment", {"size": 12, "seed": 1}),
    ("partition", {"numbers": 40, "digits": 7, "seed": 1}),
    ("independent-set", {"nodes": 200, "percent": 5, "seed": 1}),
    ("independent-set", {"nodes": 200, "percent": 20, "seed": 1}),
    ("cut", {"nodes": 500, "density": 4, "low": -1, "high": 1, "seed": 1}),
    ("cut", {"nodes": 400, "density": 20, "low": -10, "high": 10, "seed": 1}),
    ("mean-field", {"spins": 400, "seed": 1}),
    ("max-2sat", {"variables": 120, "clauses": 1500, "seed": 1}),
    ("max-2sat", {"variables": 400, "clauses": 1400, "seed": 1}),
    ("nae-3sat", {"variables": 300, "clauses": 600, "seed": 1}),
)
REPORT: tuple[Made, ...] = (
    ("tour", {"cities": 8, "seed": 101}),
    ("tour", {"cities": 9, "seed": 101}),
    ("tour", {"cities": 10, "seed": 101}),
    ("tour", {"cities": 11, "seed": 101}),
    ("coloring", {"nodes": 24, "colors": 3, "edges": 52, "seed": 101}),
    ("coloring", {"nodes": 60, "colors": 3, "edges": 132, "seed": 101}),
    ("coloring", {"nodes": 45, "colors": 4, "edges": 180, "seed": 101}),
    ("knapsack", {"items": 10, "seed": 101}),
    ("knapsack", {"items": 24, "seed": 101}),
    ("knapsack", {"items": 35, "seed": 101}),
    ("assignment", {"size": 7, "seed": 101}),
    ("assignment", {"size": 9, "seed": 101}),
    ("partition", {"numbers": 24, "digits": 6, "seed": 101}),
    ("partition", {"numbers": 36, "digits": 6, "seed": 101}),
    ("independent-set", {"nodes": 45, "percent": 20, "seed": 101}),
    ("independent-set", {"nodes": 75, "percent": 10, "seed": 101}),
    ("cover", {"nodes": 65, "percent": 12, "seed": 101}),
    ("cut", {"nodes": 100, "density": 50, "low": 1, "high": 1, "seed": 101}),
    ("cut", {"nodes": 100, "density": 10, "low": -1, "high": 1, "seed": 101}),
    ("cut", {"nodes": 80, "density": 99, "low": -1, "high": 1, "seed": 101}),
    ("cut", {"nodes": 100, "density": 50, "low": 1, "high": 10, "seed": 101}),
    ("cut", {"nodes": 200, "density": 90, "low": -10, "high": 10, "seed": 101}),
    ("torus", {"shape": (9, 13), "gaussian": False, "seed": 101}),
    ("torus", {"shape": (9, 12), "gaussian": True, "seed": 101}),
    ("torus", {"shape": (16, 16), "gaussian": False, "seed": 101}),
    ("torus", {"shape": (6, 6, 6), "gaussian": False, "seed": 101}),
    ("torus", {"shape": (5, 5, 5), "gaussian": True, "seed": 101}),
    ("glass", {"shape": (15, 15), "gaussian": False, "seed": 101}),
    ("glass", {"shape": (16, 30), "gaussian": True, "seed": 101}),
    ("loops", {"shape": (7, 7, 7), "percent": 70, "seed": 101}),
    ("loops", {"shape": (25, 25), "percent": 60, "seed": 101}),
    ("processor", {"topology": "chimera", "size": 4, "r": 7, "seed": 101}),
    ("processor", {"topology": "chimera", "size": 8, "r": 1, "seed": 101}),
    ("processor", {"topology": "zephyr", "size": 3, "r": 1, "seed": 101}),
    ("mean-field", {"spins": 100, "seed": 101}),
    ("mean-field", {"spins": 200, "seed": 101}),
    ("chains", {"logical": 10, "length": 8, "seed": 101}),
    ("chains", {"logical": 15, "length": 6, "seed": 101}),
    ("max-2sat", {"variables": 100, "clauses": 280, "seed": 101}),
    ("max-2sat", {"variables": 150, "clauses": 450, "seed": 101}),
    ("nae-3sat", {"variables": 100, "clauses": 210, "seed": 101}),
    ("sparse", {"variables": 5_000, "couplings": 20_000, "seed": 101}),
    ("sparse", {"variables": 25_000, "couplings": 100_000, "seed": 101}),
    ("features", {"total": 80, "count": 12, "seed": 101}),
    ("features", {"total": 150, "count": 40, "seed": 101}),
    ("portfolio", {"assets": 80, "count": 30, "seed": 101}),
    ("portfolio", {"assets": 300, "count": 30, "seed": 101}),
)
Files = dict[str, tuple[int, ...]]
#: Public files, with counts.
CHOOSE_FILES: Files = {
    "orlib/bqp50.1": (),
    "orlib/bqp250.1": (),
    "orlib/bqp500.1": (),
    "orlib/bqp1000.1": (),
    "orlib/gka10b": (),
    "orlib/gka1f": (),
    "gset/G1": (),
    "gset/G14": (),
    "gset/G27": (),
    "gset/G32": (),
    "gset/G43": (),
    "fisher/digits-n64-N32-c0": (32,),
    "fisher/digits-n256-N128-c0": (128,),
    "fisher/digits-n1024-N256-c0": (512, 102),
    "fisher/syn-n256-N64": (128,),
    "fisher/syn-n1024-N64": (512,),
}
REPORT_FILES: Files = {
    "orlib/bqp50.8": (),
    "orlib/bqp250.8": (),
    "orlib/bqp500.6": (),
    "orlib/bqp1000.3": (),
    "orlib/gka8b": (),
    "orlib/gka10d": (),
    "orlib/gka5f": (),
    "gset/G6": (),
    "gset/G22": (),
    "gset/G39": (),
    "gset/G55": (),
    "gset/G70": (),
    "fisher/digits-n64-N256-c1": (32,),
    "fisher/digits-n256-N1024-c1": (128,),
    "fisher/digits-n1024-N1024-c0": (512, 102),
    "fisher/syn-n64-N32": (32,),
    "fisher/syn-n1024-N256": (512,),
}
SETS: dict[str, tuple[tuple[Made, ...], Files]] = {
    "choose": (CHOOSE, CHOOSE_FILES),
    "larger": (LARGER, {}),
    "report": (REPORT, REPORT_FILES),
}


def instances(data: Path, chosen: str) -> Iterator[Instance]:
    """The problems of a set; ``data`` is the folder with orlib/, gset/ and fisher/."""
    made, files = SETS[chosen]
    yield from (make(family, **parameters) for family, parameters in made)
    known = known_values(data)
    for name, counts in files.items():
        path = data / f"{name}.npz" if counts else data / f"{name}.txt.gz"
        # The sense of OR-Library's files is in no file; see the README of DATA.
        maximize = {"bqp": True, "gka": False}.get(path.name[:3])
        for one in read_instances(path, counts=counts, maximize=maximize, known=known):
            yield replace(one, kind=name.partition("/")[0])


class AsUsersCall(CountingSampler):
    """A sampler of ours with nothing but a time limit, in CPU seconds, and a seed.

    A study by CPU time would otherwise call it again for what other work on the machine took
    from its limit, and each call begins anew.
    """

    options: ClassVar = {"time_limit": "CPU seconds", "seed": "of the sampler"}
    #: Without a limit: what warming up may take.
    SHORT = 0.1

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def _sampler(self) -> Any:
        return get_sampler(self.name)

    def sample_problem(
        self, problem: QuadraticProblem, *, time_limit: float = SHORT, seed: int = 0
    ) -> Solution:
        """The sampler's answer."""
        with mock.patch.object(time, "perf_counter", time.process_time):
            return self._sampler.sample_problem(problem, time_limit=time_limit, seed=seed)


def setting(name: str) -> tuple[str, Any, dict[str, Any]]:
    """A sampler as `compare` takes it."""
    return (name, AsUsersCall(name) if name in OURS else name, {})


@dataclass(frozen=True)
class Tables:
    """The tables of a study of defaults, as Markdown."""

    study: Study

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """One row per run; ``gap`` is (energy - best known) / |best known|, or / 1 if that is 0."""
        best = self.study.problems.set_index("problem")
        rows = self.study.rows
        against = best.best_known.reindex(rows.problem).to_numpy()
        above = (rows.energy.to_numpy() - against).clip(min=0)
        scale = abs(against)
        scale[scale < 1e-12] = 1.0
        found = rows[["problem", "sampler", "budget", "seconds", "energy"]].assign(
            kind=best.kind.reindex(rows.problem).to_numpy(), gap=above / scale
        )
        found["reached"] = above <= REACHED * scale.clip(min=1.0)
        found.loc[rows.status != "ok", "gap"] = float("inf")
        return found

    def families(self, budget: float) -> str:
        """For each family and sampler: share of runs that reached the best known, mean gap."""
        part = self.outcomes[self.outcomes.budget == budget]
        order = [one["label"] for one in self.study.record["samplers"]]
        cells = part.groupby(["kind", "sampler"]).agg(
            reached=("reached", "sum"), runs=("reached", "size"), gap=("gap", "mean")
        )
        lines = [
            "| family | runs | " + " | ".join(order) + " |",
            "|---|---|" + "---|" * len(order),
        ]
        for kind in dict.fromkeys(part.kind):
            row = [cells.loc[kind, name] if (kind, name) in cells.index else None for name in order]
            runs = max(int(cell.runs) for cell in row if cell is not None)
            told = ["-" if cell is None else _cell(cell.reached, cell.gap) for cell in row]
            lines.append(f"| {kind} | {runs} | " + " | ".join(told) + " |")
        whole = part.groupby("sampler").reached.sum()
        total = [f"**{int(whole.get(name, 0))}**" for name in order]
        lines.append(
            f"| all | {part.groupby('sampler').size().max()} | " + " | ".join(total) + " |"
        )
        return "\n".join(lines)

    def worse(self, budget: float, sampler: str = "auto") -> str:
        """Every problem where ``sampler`` is worse than the best of the others, and by how much."""
        part = self.outcomes[self.outcomes.budget == budget]
        gaps = part.pivot_table(index="problem", columns="sampler", values="gap", sort=False)
        others = gaps.drop(columns=sampler)
        behind = gaps[sampler] - others.min(axis=1)
        behind[part[part.sampler == sampler].set_index("problem").reached] = 0.0
        lines = [f"| problem | {sampler} | best named | its gap |", "|---|---|---|---|"]
        for name in behind[behind > REACHED].index:
            best = others.loc[name].idxmin()
            gap = others.loc[name, best]
            lines.append(f"| {name} | {gaps.loc[name, sampler]:.2%} | {best} | {gap:.2%} |")
        return "\n".join(lines) if len(lines) > 2 else f"{sampler} is worse on none."

    def __str__(self) -> str:
        parts = []
        for budget in sorted(self.outcomes.budget.unique()):
            parts += [f"### {budget:g} s", self.families(budget)]
            if "auto" in set(self.outcomes.sampler):
                parts.append(self.worse(budget))
        return "\n\n".join(parts)


def _cell(reached: float, gap: float) -> str:
    return f"{int(reached)}" if gap < REACHED else f"{int(reached)} ({gap:.2g})"


def main() -> None:
    every = [one.name for one in list_samplers()]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--set", choices=SETS, default="report")
    parser.add_argument("--samplers", nargs="+", choices=every, default=[*OURS, *PEERS])
    parser.add_argument("--limits", nargs="+", default=["0.1s", "1s"])
    parser.add_argument("--only", nargs="+", help="families")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="of what is in OUTPUT; nothing runs")
    arguments = parser.parse_args()
    if arguments.table:
        print(Tables(read_study(arguments.output)))
        return
    samplers: Sequence[str] = [name for name in arguments.samplers if find_entry(name).installed]
    problems = instances(arguments.data, arguments.set)
    with StudyBar(Console(stderr=True)) as bar:
        study = compare(
            [one for one in problems if arguments.only is None or one.kind in arguments.only],
            [setting(name) for name in samplers],
            arguments.limits,
            arguments.repeats,
            arguments.seed,
            folder=arguments.output,
            time_limit=60.0,
            prepare_limit=120.0,
            clock="cpu",
            observe=bar,
        )
    print(Tables(study))


if __name__ == "__main__":
    main()
