"""The report of a study: a self-contained HTML page, with figures and tables beside it.

report.html
figures/NAME.svg, .pdf, .png
tables/NAME.md, .tex, .csv
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from solvers.errors import MissingPackageError, StudyError
from solvers.host.legible import shown_on_page
from solvers.host.secrets import redacted
from solvers.study.compare import read_study

if TYPE_CHECKING:
    from solvers.study.report.sections import Drawing, Findings, Section

#: Packages needed for a report, but not for a study.
PACKAGES = ("pandas", "scikit_posthocs", "tabulate", "matplotlib")


def write_report(
    folder: str | Path,
    *,
    target: float = 0.01,
    title: str = "A study of samplers",
    sections: Iterable[Section] = (),
) -> Path:
    """Write the report of a study, finished or not, into its folder.

    Args:
        folder: of the study.
        target: gap to the best known energy that counts as reaching the target.
        title: heading of the page.
        sections: shown after the study's own.

    Returns:
        The page, ``report.html``.

    Raises:
        StudyFolderError: no study is there, or it cannot be read.
        StudyError: no run has ended yet.
        MissingPackageError: the extra ``study`` is not installed.
    """
    require_packages()
    from solvers.study.measures import in_order
    from solvers.study.report.sections import Findings

    study = read_study(folder)
    if not study.row_list:
        raise StudyError(f"{folder}: no run of the study has ended yet; there is nothing to report")
    if not study.complete:
        title += f": so far {len(study.row_list):,} of {study.record['runs']:,} runs"
    settings = settings_shown(study.record)
    labels = [one["label"] for one in study.record["samplers"]]
    rows = in_order(study.rows, study.problems.problem, labels)
    findings = Findings(rows, study.problems, settings, target)
    return write_page(Path(folder), findings, title=title, sections=sections)


def require_packages(packages: Sequence[str] = PACKAGES) -> None:
    """Refuse to begin without the packages that a report needs.

    Raises:
        MissingPackageError: one is missing; the message has the command that installs it.
    """
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise MissingPackageError(
            f"a report needs the package {absent[0]}: pip install 'qprune[study]'"
        )


def settings_shown(record: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a study, one line each: budgets, seed, samplers, versions, machine."""
    budgets = ", ".join(f"{b['amount']:g} {b['kind']}" for b in record["budgets"])
    shown = {"budgets": budgets}
    shown |= {name: str(record[name]) for name in ("repeats", "seed", "threads", "runs")}
    shown["time limit of a run"] = f"{record['time_limit']:g} s"
    for one in record["samplers"]:
        options = json.dumps(one["options"]) if one["options"] else ""
        shown[f"sampler {one['label']}"] = f"{one['name']} {options}".strip()
    sessions = record.get("sessions", [])
    for place, session in enumerate(sessions, start=1):
        which = f" ({place} of {len(sessions)})" if len(sessions) > 1 else ""
        for name, value in session.items():
            if value is not None:
                shown[f"{name}{which}"] = _flat(value)
    return shown


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in cast(Mapping[str, Any], value).items())
    return str(value)


def write_page(
    folder: Path, findings: Findings, *, title: str, sections: Iterable[Section] = ()
) -> Path:
    """Write the page, its figures and its tables.

    Args:
        folder: exists; what is there of an earlier report is replaced.
        findings: of the study.
        title: heading of the page.
        sections: more of them, shown after the study's own.

    Returns:
        The page.
    """
    from solvers.study.report.sections import study_sections

    shown = [*study_sections(findings), *sections]
    return write_sections(
        folder, shown, title=title, settings=findings.settings, cards=cards(findings)
    )


def write_sections(
    folder: Path,
    sections: Sequence[Section],
    *,
    title: str,
    settings: Mapping[str, Any],
    cards: Mapping[str, Any],
) -> Path:
    """Write a page of any sections, their figures and their tables.

    Args:
        folder: exists; what is there of an earlier report is replaced.
        sections: in order.
        title: heading of the page.
        settings: name -> text, shown at the end.
        cards: name -> key figure, shown on top.

    Returns:
        The page.
    """
    from solvers.study.report.style import write_figure

    drawn, told = folder / "figures", folder / "tables"
    drawn.mkdir(exist_ok=True)
    told.mkdir(exist_ok=True)
    for section in sections:
        for drawing in section.drawings:
            write_figure(drawing.figure, drawn, drawing.name)
        for table in section.tables:
            table.write(told)
    path = folder / "report.html"
    text = redacted(page(sections, title=title, settings=settings, cards=cards))
    path.write_text(text, encoding="utf-8")
    return path


def render(findings: Findings, *, title: str, sections: Sequence[Section]) -> str:
    """The page of a study as text."""
    return page(sections, title=title, settings=findings.settings, cards=cards(findings))


def page(
    sections: Sequence[Section],
    *,
    title: str,
    settings: Mapping[str, Any],
    cards: Mapping[str, Any],
) -> str:
    """A page of any sections as text; see `write_sections`."""
    from solvers.study.report.style import as_svg

    made = environment("solvers.study")

    def svg(drawing: Drawing) -> Markup:
        return Markup(as_svg(drawing.figure, drawing.name))

    made.filters["svg"] = svg
    return made.get_template("study.html.j2").render(
        title=title, sections=sections, settings=settings, cards=cards
    )


def environment(package: str) -> Environment:
    """Jinja's environment for templates of a package, which extend ``page.html.j2`` here.

    What is filled in is escaped, and shown as `solvers.host.legible.shown_on_page` does.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("solvers.study")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown_on_page,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def cards(findings: Findings) -> dict[str, Any]:
    """The key figures on top of a study's page."""
    rows = findings.rows
    return {
        "problems": rows.problem.nunique(),
        "samplers": rows.sampler.nunique(),
        "runs": f"{len(rows):,}",
        "runs without an answer": f"{int((rows.status != 'ok').sum()):,}",
        "best known values beaten": int(findings.against.beaten.sum()),
        "seconds in samplers": f"{rows.seconds.sum():,.0f}",
    }
