"""The report of a study: one HTML page that needs nothing but itself, figures and tables beside it.

report.html
figures/NAME.svg, .pdf, .png
tables/NAME.md, .tex, .csv
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from solvers.study.looks import as_svg, write_figure
from solvers.study.sections import Findings, Section, study_sections


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
    shown = [*study_sections(findings), *sections]
    drawn, told = folder / "figures", folder / "tables"
    drawn.mkdir(exist_ok=True)
    told.mkdir(exist_ok=True)
    for section in shown:
        for drawing in section.drawings:
            write_figure(drawing.figure, drawn, drawing.name)
        for table in section.tables:
            table.write(told)
    path = folder / "report.html"
    path.write_text(render(findings, title=title, sections=shown), encoding="utf-8")
    return path


def render(findings: Findings, *, title: str, sections: Sequence[Section]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("solvers.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda drawing: Markup(as_svg(drawing.figure, drawing.name))
    rows = findings.rows
    return environment.get_template("study.html.j2").render(
        title=title,
        sections=sections,
        settings=findings.settings,
        cards={
            "problems": rows.problem.nunique(),
            "samplers": rows.sampler.nunique(),
            "runs": f"{len(rows):,}",
            "runs without an answer": f"{int((rows.status != 'ok').sum()):,}",
            "best known values beaten": int(findings.against.beaten.sum()),
            "seconds in samplers": f"{rows.seconds.sum():,.0f}",
        },
    )
