"""The README's table of the study of samplers, and the appendix benchmarks/STUDY.md, from its rows.

python -m benchmarks.study_tables runs/study                  # prints the README's table
python -m benchmarks.study_tables runs/study --appendix benchmarks/STUDY.md \
        --figure docs/figures/study_tts.svg
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd

from solvers.study import read_study
from solvers.study.measures import (
    SUCCESS_GAP,
    in_order,
    median_with_infinity,
    reaching,
    share_interval,
    tts_by_size,
    with_gaps,
)
from solvers.study.report.figures import tts_against_size
from solvers.study.report.page import settings_shown
from solvers.study.report.sections import TARGET, Findings, study_sections
from solvers.study.report.style import as_svg

PLAIN = "OR-Library, gka"


def findings_of(folder: Path) -> Findings:
    """What the report of the study is made from."""
    study = read_study(folder)
    labels = [one["label"] for one in study.record["samplers"]]
    rows = in_order(study.rows, study.problems.problem, labels)
    return Findings(rows, study.problems, settings_shown(study.record))


def overview(findings: Findings, *, shares: bool) -> pd.DataFrame:
    """One line a sampler, one column a size: gap, TTS99, and maybe how many runs found the best."""
    groups = findings.problems.set_index("problem")
    columns = [f"n = {n}" for n in sorted(groups.n[groups.kind == "Fisher block"].unique())]
    column_of = {
        name: f"n = {one.n}" if one.kind == "Fisher block" else PLAIN
        for name, one in groups.iterrows()
    }
    runs = with_gaps(findings.top, findings.against)
    runs = runs.assign(column=runs.problem.map(column_of))
    times = reaching(findings.rows, findings.against, TARGET)
    times = times.assign(kind=times.problem.map(column_of), n=0)
    sizes = tts_by_size(times).set_index(["kind", "sampler"])
    lines = []
    for sampler in findings.ranking.mean_ranks.index:
        rank = f"{findings.ranking.mean_ranks[sampler]:.1f}"
        line = {"sampler": sampler, "mean rank": rank, "found best": ""}
        line["found best"] = _found(runs[runs.sampler == sampler])
        for column in [*columns, PLAIN]:
            mine = runs[(runs.column == column) & (runs.sampler == sampler)]
            time = sizes.loc[column, sampler] if (column, sampler) in sizes.index else None
            gap = median_with_infinity(findings.gaps[sampler].reindex(mine.problem.unique()))
            parts = [_gap(gap), _found(mine) if shares else "", _time(time)]
            line[column] = "; ".join(filter(None, parts)) if len(mine) else "not run"
        lines.append(line)
    return pd.DataFrame(lines)


def _gap(gap: float) -> str:
    if math.isinf(gap):
        return "no answer"
    percent = f"{100 * gap:.0f} %" if gap >= 0.1 else f"{100 * gap:.2g} %"
    return "0" if gap <= SUCCESS_GAP else percent


def _found(runs: pd.DataFrame) -> str:
    hits = int(runs.hit.sum())
    low, high = share_interval(hits, len(runs)) if len(runs) else (0.0, 1.0)
    return f"{hits}/{len(runs)} ({100 * low:.0f}-{100 * high:.0f} %)"


def _time(time: pd.Series | None) -> str:
    if time is None or not math.isfinite(time.tts):
        return "-"
    varied = not math.isnan(time.tts_low)
    known = f" ({_ms(time.tts_low)}-{_ms(time.tts_high)})" if varied else ""
    return f"{_ms(time.tts)}{known} ms"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def appendix(findings: Findings) -> str:
    """All tables of the report, in Markdown."""
    table = overview(findings, shares=True).to_markdown(index=False, disable_numparse=True)
    done, planned = len(findings.rows), int(findings.settings["runs"])
    if done < planned:
        table = f"**Unfinished: {done:,} of {planned:,} runs.**\n\n{table}"
    parts = ["# The study of samplers: all tables", "", HEADING, "", table, ""]
    for section in study_sections(findings):
        if section.tables and section.title != "Every cell":
            parts += [f"## {section.title}", "", section.text, ""]
        for part in section.tables if section.title != "Every cell" else ():
            parts += [part.caption, "", part.to_markdown(), ""]
    parts += ["## Settings and machine", ""]
    parts += [f"- {name}: `{value}`" for name, value in findings.settings.items()]
    return "\n".join(parts) + "\n"


HEADING = """\
    OMP_NUM_THREADS=1 python -m benchmarks.study --data DATA --output runs/study
    python -m benchmarks.study_tables runs/study --appendix benchmarks/STUDY.md

Each cell below: median over the problems of the gap to the best known energy after one CPU second;
runs that found the best known energy (within 0.01 %), of all, with Wilson's 95 % interval; TTS99
to within 1 %, median over the problems, with its 95 % bootstrap interval over runs (three runs a
problem: the interval says how their times vary and little more); a dash where the target was
missed on half of the problems or more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument("--appendix", type=Path, help="written: all tables")
    parser.add_argument("--figure", type=Path, help="written: TTS99 by size, as SVG")
    arguments = parser.parse_args()
    findings = findings_of(arguments.folder)
    print(overview(findings, shares=False).to_markdown(index=False, disable_numparse=True))
    if arguments.appendix:
        arguments.appendix.write_text(appendix(findings), encoding="utf-8")
    if arguments.figure:
        sizes = tts_by_size(reaching(findings.rows, findings.against, TARGET))
        figure = tts_against_size(sizes, findings.looks, TARGET)
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        arguments.figure.write_text(as_svg(figure, "study_tts"), encoding="utf-8")


if __name__ == "__main__":
    main()
