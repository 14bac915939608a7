"""Tables of a study: formatted once, written as HTML, Markdown, LaTeX and CSV alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from solvers.host.legible import legible
from solvers.study.measures import (
    SUCCESS_GAP,
    Ranking,
    median_with_infinity,
    share_interval,
    summary,
)

Format = Callable[[object], str]
# Characters of a cell; the message of a crash may be pages long.
_LONGEST_CELL = 1000
NOTHING, NEVER = "\u2013", "\u221e"


def number(value: object) -> str:
    """Six significant digits; a dash for nothing."""
    return finite(value, lambda v: f"{v:.6g}")


def percent(value: object) -> str:
    """0.0123 as ``1.23 %``; a gap up to `SUCCESS_GAP` is ``0``.

    Example:
        >>> percent(0.0123), percent(0.0)
        ('1.23 %', '0')
    """
    return finite(value, lambda v: "0" if 0 <= v <= SUCCESS_GAP else f"{100 * v:.3g} %")


def share(value: object) -> str:
    """0.5 as ``50 %``."""
    return finite(value, lambda v: f"{100 * v:.0f} %")


def seconds(value: object) -> str:
    """Three significant digits, without an exponent where that can be read."""
    return finite(value, lambda v: f"{v:.3g}" if v < 1000 else f"{v:.0f}")


def probability(value: object) -> str:
    """A p-value.

    Example:
        >>> probability(0.0002), probability(0.05)
        ('< 0.001', '0.050')
    """
    return finite(value, lambda v: "< 0.001" if v < 0.001 else f"{v:.3f}")


def finite(value: object, form: Callable[[float], str]) -> str:
    """A finite number by ``form``; a dash for nothing, a sign for infinity."""
    if not isinstance(value, int | float | np.number) or math.isnan(value):
        return NOTHING
    return form(float(value)) if math.isfinite(value) else NEVER


@dataclass(frozen=True, eq=False)
class Table:
    """One table: its name in files, caption, numbers and formats.

    Attributes:
        name: stem of its files.
        caption: one sentence.
        frame: the numbers; no index is shown.
        formats: column -> function that formats its values.
        headings: column -> heading in place of its name.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    formats: Mapping[str, Format] = field(default_factory=dict)
    headings: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> pd.DataFrame:
        """The table as people read it, all text."""
        text = {
            legible(self.headings.get(str(column), str(column).replace("_", " "))): [
                legible(self.formats.get(str(column), str)(value), _LONGEST_CELL)
                for value in self.frame[column]
            ]
            for column in self.frame
        }
        return pd.DataFrame(text, dtype=object)

    @property
    def numeric(self) -> tuple[bool, ...]:
        """True for columns of numbers, which are aligned right."""
        return tuple(
            str(column) in self.formats or pd.api.types.is_numeric_dtype(self.frame[column])
            for column in self.frame
        )

    def to_markdown(self) -> str:
        """The table in Markdown."""
        aligned = ["right" if numeric else "left" for numeric in self.numeric]
        # A bar would end the cell.
        shown = self.shown.map(lambda text: text.replace("|", "\\|"))
        shown.columns = [name.replace("|", "\\|") for name in shown.columns]
        return shown.to_markdown(index=False, disable_numparse=True, colalign=aligned)

    def to_latex(self) -> str:
        """The table in LaTeX, for package booktabs."""
        styler = self.shown.style.hide(axis="index").format(escape="latex")
        styler = styler.format_index(escape="latex", axis="columns")
        columns = "".join("r" if numeric else "l" for numeric in self.numeric)
        caption = self.caption.replace("%", r"\%").replace("_", r"\_")
        text = styler.to_latex(
            hrules=True, column_format=columns, caption=caption, label=f"tab:{self.name}"
        )
        return text.replace(NOTHING, "--").replace(NEVER, r"$\infty$")

    def write(self, folder: Path) -> list[Path]:
        """Write ``name.md``, ``.tex`` and, with all digits, ``.csv``; the paths."""
        written = {
            ".md": self.to_markdown() + "\n",
            ".tex": self.to_latex(),
            ".csv": self.frame.to_csv(index=False),
        }
        for suffix, text in written.items():
            (folder / f"{self.name}{suffix}").write_text(
                text, encoding="utf-8", errors="backslashreplace"
            )
        return [folder / f"{self.name}{suffix}" for suffix in written]


def sampler_table(
    top: pd.DataFrame, gaps: pd.DataFrame, against: pd.DataFrame, ranking: Ranking
) -> Table:
    """One line a sampler, best mean rank first.

    Args:
        top: rows at the budget where samplers are ranked.
        gaps: median gaps there, problems by samplers.
        against: from `solvers.study.measures.references`.
        ranking: of ``gaps``.
    """
    frame = _by_sampler(summary(top, against), gaps, ranking)
    return Table(
        "samplers",
        "Samplers at the largest budget, best mean rank first; counts exact: reads, before repair.",
        frame,
        {
            "rank": lambda v: finite(v, lambda rank: f"{rank:.2f}"),
            **dict.fromkeys(("success", "success_low", "success_high", "feasible"), share),
            **dict.fromkeys(("gap_median", "gap_worst"), percent),
            "seconds": seconds,
        },
        {
            "rank": "mean rank",
            "success": "found best known",
            "success_low": "from (95 %)",
            "success_high": "to",
            "gap_median": "median gap",
            "gap_worst": "worst gap",
            "feasible": "counts exact",
            "seconds": "median s",
        },
    )


def _by_sampler(cells: pd.DataFrame, gaps: pd.DataFrame, ranking: Ranking) -> pd.DataFrame:
    lines = []
    for sampler, mean_rank in ranking.mean_ranks.items():
        mine = cells[cells.sampler == sampler]
        runs = int(mine.runs.sum())
        found = round(float((mine.success * mine.runs).sum()))
        low, high = share_interval(found, runs)
        lines.append(
            {
                "sampler": sampler,
                "rank": mean_rank,
                "runs": runs,
                "failed": int(mine.failed.sum()),
                "success": found / runs,
                "success_low": low,
                "success_high": high,
                "gap_median": median_with_infinity(gaps[sampler]),
                "gap_worst": float(gaps[sampler].max()),
                "feasible": mine.feasible_share.mean(),
                "seconds": mine.seconds.median(),
            }
        )
    return pd.DataFrame(lines)


def cell_table(rows: pd.DataFrame, against: pd.DataFrame) -> Table:
    """Every problem, sampler and budget."""
    gaps = ("gap_best", "gap_median", "gap_optimum", "gap_bound")
    shares = ("feasible_share", "success", "success_low", "success_high")
    return Table(
        "cells",
        "Every problem, sampler and budget. Gaps of the best run are to the best known energy, "
        "to the proved optimum where there is one, and to the best lower bound.",
        summary(rows, against).drop(columns=["n", "kind"]),
        {
            "budget": number,
            **dict.fromkeys(("best", "median"), number),
            **dict.fromkeys(gaps, percent),
            **dict.fromkeys(shares, share),
            **dict.fromkeys(("seconds", "cpu_seconds"), seconds),
        },
        {
            "budget_kind": "of",
            "best": "best energy",
            "median": "median energy",
            "gap_best": "gap of best",
            "gap_median": "gap of median",
            "gap_optimum": "to optimum",
            "gap_bound": "to bound",
            "feasible_share": "counts exact",
            "success_low": "from (95 %)",
            "success_high": "to",
            "cpu_seconds": "CPU s",
        },
    )


def target_table(times: pd.DataFrame, target: float) -> Table:
    """Time to target of every problem and sampler, at its fastest budget."""
    kept = ["problem", "n", "sampler", "budget_kind", "budget", "runs", "hits", "median"]
    return Table(
        "time_to_target",
        f"Seconds to a gap of {100 * target:g} % from the best known energy, at the budget with "
        "the least TTS99, with 95 % bootstrap intervals.",
        times[[*kept, "expected", "tts", "tts_low", "tts_high"]],
        {
            "budget": number,
            **dict.fromkeys(("median", "expected", "tts", "tts_low", "tts_high"), seconds),
        },
        {
            "budget_kind": "of",
            "median": "median s",
            "expected": "mean s to target",
            "tts": "TTS99, s",
            "tts_low": "from (95 %)",
            "tts_high": "to",
        },
    )


def problem_table(against: pd.DataFrame) -> Table:
    """The reference values of each problem, and the problems where the study improved them."""
    frame = against.reset_index()
    frame["beaten"] = np.where(frame.beaten, "beaten", "")
    frame["optimum"] = np.where(frame.optimum.notna(), "proved", "")
    kept = ["problem", "kind", "n", "known", "best_seen", "best", "lower_bound"]
    return Table(
        "problems",
        "Problems: the best energy known before, the best found here, and what is proved.",
        frame[[*kept, "beaten", "optimum"]],
        dict.fromkeys(("known", "best_seen", "best", "lower_bound"), number),
        {"known": "known before", "best_seen": "best here", "beaten": "known value"},
    )


def pairwise_table(ranking: Ranking) -> Table:
    """p-values of every two samplers."""
    names = [str(name) for name in ranking.mean_ranks.index]
    square = ranking.pairwise.reindex(index=names, columns=names)
    frame = square.rename_axis("sampler").reset_index()
    return Table(
        "pairwise",
        "Nemenyi's test: the chance of ranks this far apart between samplers that are alike.",
        frame,
        dict.fromkeys(names, probability),
        {name: name for name in names},
    )
