"""The report of a study: complete, self-contained, and drawn the same way everywhere."""

import re

import numpy as np
import pandas as pd
import pytest
from html_pages import Page
from matplotlib.colors import to_hex
from synthetic_study import BEST, SAMPLERS, failed, problems, row, study_rows

from solvers.study import measures
from solvers.study.report import figures
from solvers.study.report.page import render, write_page
from solvers.study.report.sections import Findings, study_sections
from solvers.study.report.style import COLORS, as_svg, looks_of
from solvers.study.report.tables import Table, number, percent, probability, seconds

FINDINGS = Findings(study_rows(2), problems(), {"seed": 7, "machine": "an abacus"})


def page_of(findings):
    return render(findings, title="a study", sections=study_sections(findings))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return write_page(folder, FINDINGS, title="a study")


def test_the_page_shows_everything_and_fetches_nothing(written):
    html = written.read_text()
    page = Page(html)
    assert not page.outside
    assert "@import" not in html
    text = " ".join(" ".join(page.words).split())
    for shown in (
        *SAMPLERS,
        *BEST,
        "RuntimeError: boom",
        "takes no counts",
        "TTS99",
        "Friedman",
        "an abacus",
        "1.6 seconds",
    ):
        assert shown in text, shown
    assert page.tags.count("svg") == 5
    cells = re.search(r'<table class="sortable" id="table-cells">.*?</table>', html, re.DOTALL)
    assert cells is not None
    assert cells.group().count("<tr>") == 1 + 4 * 5 * 3  # no pair is left out


def test_figures_and_tables_lie_beside_it_in_every_format(written):
    drawn = {path.name for path in (written.parent / "figures").iterdir()}
    names = ("ranks", "energy_against_time", "performance_profile", "tts_by_size", "gap_map")
    assert drawn == {f"{name}.{end}" for name in names for end in ("svg", "pdf", "png")}
    told = {path.suffix for path in (written.parent / "tables").iterdir()}
    assert told == {".md", ".tex", ".csv"}
    stored = pd.read_csv(written.parent / "tables" / "cells.csv")
    assert len(stored) == 60


def test_names_are_escaped():
    evil = "<script>alert(1)</script>"
    rows = pd.DataFrame([row(), failed("crashed", evil, sampler=evil)])
    html = page_of(Findings(rows, problems(), {evil: evil}))
    assert evil not in html
    assert html.count("<script>") == 1


@pytest.mark.parametrize(
    "rows",
    [
        [row()],
        [row(), row(sampler="sa", energy=-9.0)],
        [failed("crashed", "boom"), failed("timeout", "9 s", sampler="sa")],
        [failed("incompatible", "no", budget=np.nan), row(sampler="sa", lower_bound=-10.0)],
        [row(energy=-12.0), row(sampler="b", energy=-9.0), row("gka-a", "b", energy=-9.0)],
    ],
    ids=["one run", "two samplers", "no answer", "an incompatible one", "a beaten value"],
)
def test_a_page_comes_out_of_any_rows(rows):
    beaten = [rows[0]["energy"] == -12, False, False, False]
    html = page_of(Findings(pd.DataFrame(rows), problems().assign(beaten=beaten)))
    assert html.rstrip().endswith("</html>")
    assert ("Better than was known" in html) == (rows[0]["energy"] == -12)


def test_the_same_rows_give_the_same_picture():
    drawn = [as_svg(figures.gap_map(FINDINGS.gaps, FINDINGS.against.n), "map") for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_no_two_samplers_look_alike():
    looks = looks_of(f"sampler {i}" for i in range(28))
    assert len(set(looks.values())) == 28
    assert looks == looks_of([*(f"sampler {i}" for i in range(28)), "sampler 3"])
    assert len({(look.color, look.linestyle) for look in looks.values()}) == 28


def test_a_sampler_has_one_colour_in_all_figures():
    looks, rows, against = FINDINGS.looks, FINDINGS.rows, FINDINGS.against
    sizes = measures.tts_by_size(measures.reaching(rows, against, 0.5), resamples=20)
    drawn = [
        figures.energy_against_time(measures.anytime(rows, against), looks),
        figures.tts_against_size(sizes, looks, 0.5),
    ]
    for figure in drawn:
        (legend,) = figure.legends
        shown = dict(
            zip(
                [text.get_text() for text in legend.get_texts()],
                [to_hex(line.get_color()) for line in legend.get_lines()],
                strict=True,
            )
        )
        assert set(shown) <= set(SAMPLERS)
        assert len(shown) >= 4
        assert all(looks[name].color == color for name, color in shown.items())
    svg = as_svg(figures.rank_diagram(FINDINGS.ranking, looks), "ranks")
    assert all(looks[name].color in svg for name in SAMPLERS)


def test_colours_are_told_apart_by_colour_blind_eyes():
    """Okabe and Ito's (2008) palette, less yellow and with grey for black."""
    palette = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"}
    assert palette == set(COLORS[:6])
    lightness = [sum(int(color[i : i + 2], 16) for i in (1, 3, 5)) / 765 for color in COLORS]
    assert max(lightness) < 0.7  # seen on white paper


def test_axes_have_units_and_the_map_says_what_is_missing():
    looks, rows, against = FINDINGS.looks, FINDINGS.rows, FINDINGS.against
    time = figures.energy_against_time(measures.anytime(rows, against), looks)
    labels = {a.get_xlabel() for a in time.axes} | {a.get_ylabel() for a in time.axes}
    assert {"seconds in the sampler", "gap to best known"} <= labels
    shown = figures.gap_map(FINDINGS.gaps, against.n).axes[0]
    missing = int(np.isinf(FINDINGS.gaps.to_numpy()).sum())
    assert missing == 2  # tabu on one problem; half of random's runs on another
    assert sum(patch.get_hatch() == "////" for patch in shown.patches) == missing
    written = [text.get_text() for text in shown.texts]
    assert len(written) == FINDINGS.gaps.size - missing
    assert "0" in written


def test_a_profile_that_nobody_finished_is_drawn():
    nobody = pd.DataFrame({"relax": [np.inf], "sa": [np.inf]})
    profile = measures.performance_profile(nobody)
    assert (profile.to_numpy() == 0).all()
    figures.performance_profiles(profile, measures.gap_profile(nobody), FINDINGS.looks)


def test_tables_are_markdown_and_latex_that_compile():
    frame = pd.DataFrame({"sampler": ["a_b & c"], "gap_best": [0.0123], "runs": [3]})
    table = Table("t", "50 % of a_b.", frame, {"gap_best": percent})
    assert table.to_markdown().splitlines() == [
        "| sampler   |   gap best |   runs |",
        "|:----------|-----------:|-------:|",
        "| a_b & c   |     1.23 % |      3 |",
    ]
    latex = table.to_latex()
    assert r"a\_b \& c & 1.23 \% & 3" in latex
    assert r"\caption{50 \% of a\_b.}" in latex
    assert r"\toprule" in latex


def test_figures_read_as_people_write_them():
    assert [percent(v) for v in (0.0, 5e-5, 0.0123, 1.5)] == ["0", "0", "1.23 %", "150 %"]
    assert [percent(v) for v in (np.inf, np.nan, None)] == ["\u221e", "\u2013", "\u2013"]
    assert [seconds(v) for v in (0.01234, 12345.6)] == ["0.0123", "12346"]
    assert [probability(v) for v in (1e-9, 0.0312)] == ["< 0.001", "0.031"]
    assert number(np.float64(1 / 3)) == "0.333333"
