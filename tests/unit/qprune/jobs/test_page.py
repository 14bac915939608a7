"""The page: one file, everything in it, nothing from outside, nothing that is not escaped."""

import dataclasses
import math
import re

import pytest
from html_pages import Page

from qprune.jobs import plots
from qprune.jobs.page import number, percent, render_html, seconds
from qprune.results import BlockRecord, LayerRecord, Report, Score, ScorePoint, Step


def make_step(index, kind="blocks", *, accepted=True, stage=0, real=-0.1):
    block = BlockRecord(1024, 500, {"fc1.weight": 1024}, "relax", -0.20, -0.25, 9, 0.1, {})
    return Step(
        index=index,
        stage=stage,
        round=0,
        kind=kind,
        sparsity=0.4 + 0.1 * stage,
        accepted=accepted,
        predicted=-0.2 if kind == "blocks" else None,
        real=real,
        loss=0.3,
        fit_loss=0.4,
        flips=12,
        price=0.001,
        blocks=(block, block) if kind == "blocks" else (),
        seconds={"select": 0.1, "solve": 0.2},
        cpu_seconds=0.3,
    )


STEPS = (
    make_step(0, "start"),
    make_step(1),
    make_step(2, accepted=False, real=0.2),
    make_step(3, "start", stage=1),
    make_step(4, stage=1),
    make_step(5, "compensate", stage=1),
)
REPORT = Report(
    asked_sparsity=0.5,
    achieved_sparsity=0.5,
    layers=(LayerRecord("fc1.weight", (64, 32), 2048, 1024),),
    steps=STEPS,
    settings={"sampler": "relax", "terms": None},
    seed=3,
    seconds=75.0,
    cpu_seconds=61.0,
    dense=Score(0.97, 0.1),
    start=Score(0.31, 2.5),
    final=Score(0.93, 0.2),
)
POINTS = (ScorePoint(0, Score(0.3, 2.5)), ScorePoint(5, Score(0.93, 0.2)))


def test_the_page_shows_everything_and_fetches_nothing():
    html = render_html(REPORT, title="a run", scores=POINTS, others={"Wanda": Score(0.5, 1.5)})
    page = Page(html)
    text = " ".join(" ".join(page.words).split())
    assert not page.outside
    assert "@import" not in html
    assert page.tags.count("svg") == 7
    assert page.tags.count("html") == 1
    for shown in (
        "93.00 %",
        "1,024 of 2,048 targeted weights are zero",
        "5 of 6 steps were accepted",
        "1 min 1 s",
        "Wanda",
        "first pass",
        "2 \u00d7 1024",
        "relax",
        "20.00 %",  # the gap: (0.25 - 0.20) / 0.25
        "fc1.weight",
    ):
        assert shown in text, shown
    rows = re.search(r'<table id="steps" class="sortable">.*?</table>', html, re.DOTALL)
    assert rows is not None
    assert rows.group().count("<tr>") == 1 + len(STEPS)


def test_names_are_escaped():
    evil = "<script>alert(1)</script>"
    layer = LayerRecord(evil, (2, 2), 4, 2)
    settings = {"model": evil}
    html = render_html(dataclasses.replace(REPORT, layers=(layer,), settings=settings), title=evil)
    assert evil not in html
    assert html.count("<script>") == 1


@pytest.mark.parametrize(
    "report",
    [
        dataclasses.replace(REPORT, steps=()),
        dataclasses.replace(REPORT, steps=STEPS[:1]),
        dataclasses.replace(REPORT, steps=STEPS[1:2]),
        dataclasses.replace(REPORT, layers=(), dense=None, start=None, final=None),
        dataclasses.replace(REPORT, dense=Score(None, 0.1), final=Score(None, 0.2)),
        dataclasses.replace(REPORT, steps=(make_step(0, real=math.nan), make_step(1))),
        dataclasses.replace(REPORT, steps=(), stopped="max_seconds"),
    ],
)
def test_a_page_comes_out_of_any_report(report):
    html = render_html(report)
    assert html.rstrip().endswith("</html>")
    assert ("ended early" in html) == (report.stopped != "done")


def test_the_same_report_gives_the_same_page():
    assert render_html(REPORT, scores=POINTS) == render_html(REPORT, scores=POINTS)


def test_plots_take_the_pages_ink():
    svg = plots.loss_curve(STEPS)
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert svg.startswith("<svg")


def test_ids_of_different_plots_do_not_meet():
    svgs = [plots.loss_curve(STEPS), plots.flip_bars(STEPS), plots.phase_bars(STEPS)]
    clips = [set(re.findall(r'<clipPath id="([^"]+)"', svg)) for svg in svgs]
    assert all(clips)
    assert len(set.union(*clips)) == sum(map(len, clips))


def test_figures_read_as_people_write_them():
    assert percent(0.9) == "90.00 %"
    assert percent(None) == number(None) == number(math.nan) == "\u2013"
    assert number(0.123456) == "0.1235"
    assert [seconds(v) for v in (0.314, 42.4, 185)] == ["0.31 s", "42 s", "3 min 5 s"]
