"""Report of a pruning study: one self-contained page, as in `solvers.study`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qprune.study.compare import PruningStudy, read_pruning_study
from solvers.errors import StudyError
from solvers.study.report.page import require_packages, settings_shown, write_sections

if TYPE_CHECKING:
    import pandas as pd

    from solvers.study.report.sections import Section
    from solvers.study.report.tables import Table


def write_pruning_report(folder: str | Path, *, title: str = "") -> Path:
    """Write the report of a pruning study, finished or not, into its folder.

    Args:
        folder: folder of the study.
        title: heading of the page; the trial's own if not given.

    Returns:
        The page, ``report.html``; ``figures`` and ``tables`` lie beside it.

    Raises:
        StudyFolderError: the folder holds no study, or it cannot be read.
        StudyError: it is another kind of study, or no run has ended yet.
        MissingPackageError: the extra ``study`` is not installed.
    """
    require_packages()
    study = read_pruning_study(folder)
    if not study.row_list:
        raise StudyError(f"{folder}: no run of the study has ended yet; there is nothing to report")
    told = dict(study.record["problems"][0])
    heading = title or f"{told.pop('problem')}, by sampler"
    settings = settings_shown(study.record) | {f"pruning: {n}": str(v) for n, v in told.items()}
    return write_sections(
        Path(folder), sections(study), title=heading, settings=settings, cards=_cards(study.rows)
    )


def sections(study: PruningStudy) -> list[Section]:
    """Return the sections of a pruning study's report."""
    from qprune.study.measures import labels, proposals, summary
    from solvers.study.measures import largest_budget
    from solvers.study.report.style import looks_of

    rows = study.rows
    rows = rows.assign(label=labels(rows))
    cells = summary(rows)
    looks = looks_of(one["label"] for one in study.record["samplers"])
    kind, budget = largest_budget(rows)
    points = proposals(rows[(rows.budget_kind == kind) & (rows.budget == budget)])
    at = f"At a budget of {budget:g} {kind} a block. "
    return [
        _networks(rows, cells, looks),
        _energies(cells, looks),
        _promises(points, looks, at),
        _failures(rows),
        _every_run(rows),
    ]


def _networks(rows: pd.DataFrame, cells: pd.DataFrame, looks: Any) -> Section:
    from qprune.study.figures import accuracy_by_sampler
    from qprune.study.measures import CELL, paired
    from solvers.study.report.sections import Drawing, Section

    # Without a score: the loss on the acceptance split, which all runs of a seed share.
    scored = rows.final_accuracy.notna().any()
    better = rows.assign(goodness=rows.final_accuracy if scored else -rows.accept_loss)
    gaps = paired(better, "goodness")
    table = _summary_table(cells.merge(gaps, on=CELL, how="left", sort=False))
    unit = "accuracy" if scored else "loss on the acceptance split, nats"
    text = (
        "All runs have the same seed's samples, splits and first pass, the same rounds, and the "
        "same time in the sampler for every block. ``Behind`` is how much less "
        f"{unit} a sampler reaches than the best one, seed by seed, with its standard error: a "
        "difference below two of them is no difference."
    ).replace("``", "")
    drawings = ()
    if scored:
        caption = "A mark for each seed, a bar at the mean."
        figure = accuracy_by_sampler(rows, cells, looks)
        drawings = (Drawing("accuracy", "Test accuracy by sampler", caption, figure),)
    return Section("Networks", text, drawings, (table,))


def _energies(cells: pd.DataFrame, looks: Any) -> Section:
    from qprune.study.figures import energy_and_network
    from qprune.study.measures import link
    from solvers.study.report.sections import Drawing, Section

    shown = {
        "accept_loss": ("loss on the acceptance split, nats", False),
        "final_accuracy": ("test accuracy", True),
    }
    drawings, told = [], []
    for measure, (words, share) in shown.items():
        if cells[measure].notna().sum() == 0:
            continue
        figure = energy_and_network(cells, looks, measure, words, share)
        caption = "Means over seeds and blocks; budgets of one sampler are joined."
        drawings.append(
            Drawing(f"energy_and_{measure}", f"Missed energy and {words}", caption, figure)
        )
        found = link(cells, "missed", measure)
        if found.cells >= 3 and found.correlation == found.correlation:
            told.append(
                f"{words}: Spearman's rank correlation {found.correlation:.2f} "
                f"(p = {found.p_value:.3f}, {found.cells} pairs of sampler and budget)"
            )
    text = (
        "A block's decrease of energy is what the sampler can win over leaving it as it is; "
        "what it missed is measured against the better of its own answer and that of relax to the "
        "same problem. Runs part ways with their first answers, so that each is judged by "
        "its own blocks. "
    )
    text += "Missed energy and " + "; ".join(told) + "." if told else ""
    return Section("Does a better answer give a better network?", text, tuple(drawings))


def _promises(points: pd.DataFrame, looks: Any, at: str) -> Section:
    from qprune.study.figures import loss_along_the_way, predicted_against_real
    from solvers.study.report.sections import Drawing, Section

    if points.empty:
        return Section("Predicted and real", at + "No run made a proposal.")
    drawings = (
        Drawing(
            "predicted_against_real",
            "Predicted against real change of the loss",
            at + "Every proposal of every seed; filled marks were taken, on the line both agree. "
            "Linear within a thousandth of a nat, logarithmic beyond.",
            predicted_against_real(points, looks),
        ),
        Drawing(
            "loss_along_the_way",
            "Loss by stage",
            at + "After the last proposal of every stage, mean over seeds.",
            loss_along_the_way(points, looks),
        ),
    )
    return Section("Predicted and real", drawings=drawings)


def _summary_table(cells: pd.DataFrame) -> Table:
    from solvers.study.report.tables import Table, number, percent, seconds, share

    kept = ["label", "runs", "failed", "final_accuracy", "accuracy_low", "accuracy_high"]
    kept += [
        "difference",
        "error",
        "final_loss",
        "accept_loss",
        "missed",
        "missed_median",
        "uncertain_median",
    ]
    kept += ["predicted", "real", "kept_promise", "accepted_share"]
    kept += ["sampler_seconds", "cpu_seconds"]
    order = cells.sort_values(["final_accuracy", "accept_loss"], ascending=[False, True])
    scored = cells.final_accuracy.notna().any()
    behind = _points if scored else number
    return Table(
        "summary",
        "Means over seeds. Energy missed: share of the blocks' decrease of energy that was not "
        "found, mean over blocks; for the median block; and the most that can be by a certified "
        "bound. Predicted and real: change "
        "of the loss over all steps taken, nats.",
        order[kept],
        {
            **dict.fromkeys(("final_accuracy", "accuracy_low", "accuracy_high"), _accuracy),
            **dict.fromkeys(("difference", "error"), behind),
            **dict.fromkeys(("final_loss", "accept_loss", "predicted", "real"), _nats),
            **dict.fromkeys(("missed", "missed_median", "uncertain_median"), percent),
            **dict.fromkeys(("kept_promise", "accepted_share"), share),
            **dict.fromkeys(("sampler_seconds", "cpu_seconds"), seconds),
        },
        {
            "label": "sampler",
            "final_accuracy": "test accuracy",
            "accuracy_low": "lowest",
            "accuracy_high": "highest",
            "difference": "behind",
            "error": "+-",
            "final_loss": "test loss",
            "accept_loss": "acceptance loss",
            "missed": "energy missed",
            "missed_median": "median block",
            "uncertain_median": "at most",
            "kept_promise": "real / predicted",
            "accepted_share": "proposals taken",
            "sampler_seconds": "sampler s",
            "cpu_seconds": "CPU s",
        },
    )


def _failures(rows: pd.DataFrame) -> Section:
    from solvers.study.report.sections import Section
    from solvers.study.report.tables import Table

    failed = rows[rows.status != "ok"]
    if failed.empty:
        return Section("Runs that failed", "None.")
    listed = failed[["label", "seed", "status", "reason"]].rename(columns={"label": "sampler"})
    return Section("Runs that failed", tables=(Table("failures", "Every one.", listed),))


def _every_run(rows: pd.DataFrame) -> Section:
    from solvers.study.report.sections import Section
    from solvers.study.report.tables import Table, number

    frame = rows.drop(columns=["problem", "options", "trace", "name", "label"])
    plain = frame.select_dtypes("number").columns.difference(["seed", "repeat", "order"])
    table = Table("runs", "Every run.", frame, dict.fromkeys(map(str, plain), number))
    return Section("Every run", tables=(table,), folded=True)


def _cards(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "samplers": rows.sampler.nunique(),
        "runs": f"{len(rows):,}",
        "runs that failed": f"{int((rows.status != 'ok').sum()):,}",
        "blocks answered": f"{rows.blocks.sum():,.0f}",
        "seconds in samplers": f"{rows.sampler_seconds.sum():,.0f}",
        "CPU seconds in all": f"{rows.cpu_seconds.sum():,.0f}",
    }


def _accuracy(value: object) -> str:
    return _shown(value, lambda share: f"{100 * share:.2f} %")


def _points(value: object) -> str:
    return _shown(value, lambda share: f"{100 * share:.2f}")


def _nats(value: object) -> str:
    return _shown(value, lambda nats: f"{nats:.4f}")


def _shown(value: object, form: Callable[[float], str]) -> str:
    from solvers.study.report.tables import NOTHING

    return form(value) if isinstance(value, float) and not math.isnan(value) else NOTHING
