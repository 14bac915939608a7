"""Text as it can be shown: what nobody can see is escaped, what is long is cut."""

import logging
import xml.dom.minidom
from dataclasses import replace

import pytest
import torch
from rich.table import Table
from rich.text import Text
from torch import nn

import qprune
from qprune.cli.terminal import LegibleFormatter, terminal
from qprune.errors import ImpossibleRequestError
from qprune.jobs.page import render_html
from solvers.errors import StudyError
from solvers.host.legible import in_figure, legible
from solvers.study import compare, generate
from solvers.study.report.page import write_report

#: Names that PyTorch and the studies take.
ODD = (
    *(r"$\foo", "a$b$c", "\x1b[31mred", "\u202eltr", "[bold]", "[/bold]", "<script>alert(1)"),
    *("_hidden", " ", "\n", "a:b/c", "naïve 層", ":smile:", "\0", "a|b", "%s{}", "x" * 3000),
    "x" * 3001,
)  # fmt: skip
LONE = "\udc80"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fc1.weight", "fc1.weight"),
        ("naïve 層", "naïve 層"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\udc80", r"\udc80"),
        ("\u202ea", r"\u202ea"),
        ("a\nb\t\0", r"a\nb\t\x00"),
        ("\U000e0001", r"\U000e0001"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_escaped(text, shown):
    assert legible(text) == shown
    assert legible(shown) == shown
    shown.encode()


def test_long_text_is_cut_in_the_middle():
    assert legible("0123456789" * 3, 11) == "01234…56789"
    assert len(legible("\x1b" * 1000, 20)) == 20
    assert legible("x" * 20, 20) == "x" * 20


def test_a_figure_shows_dollars_and_underscores():
    assert in_figure("a$b$c") == r"a\$b\$c"
    assert in_figure("_hidden") == " _hidden"
    assert len(in_figure("x" * 5000)) == 48


def test_a_table_shows_markup_and_escapes_as_they_are(capsys):
    table = Table(title="[bold]t[/bold]", caption="\x1b[1m")
    table.add_column("[red]")
    for name in (*ODD[:-2], LONE):
        table.add_row(name)
    table.add_row(Text("kept"))
    terminal().print(table)
    out = capsys.readouterr().out
    for shown in ("[bold]t[/bold]", r"\x1b[1m", "[red]", "[/bold]", ":smile:", r"\udc80", "kept"):
        assert shown in out
    assert "\x1b" not in out


def test_log_lines_are_one_line_each():
    record = logging.LogRecord("qprune", logging.INFO, "", 0, "layer %s", ("a\nb\x1b",), None)
    assert LegibleFormatter().format(record) == r"layer a\nb\x1b"


def _network(names):
    model = nn.Sequential()
    generator = torch.Generator().manual_seed(0)
    for name in names:
        layer = nn.Linear(4, 4)
        nn.init.normal_(layer.weight, generator=generator)
        model.add_module(name, layer)
    return model


def _inputs():
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(1))


def _prune(names, **options):
    short = qprune.Networkwise(stages=1, rounds=1, final_rounds=1, block_size=16)
    return qprune.prune(_network(names), _inputs(), sparsity=0.5, method=short, **options)


def test_odd_names_of_layers_stand_on_the_page_and_in_its_figures(tmp_path):
    pruned = _prune(ODD, output_dir=tmp_path / "run")
    assert set(pruned.mask) == {f"{name}.weight" for name in ODD}
    page = render_html(pruned.report, title="<b>$\x1b")
    assert "<title>&lt;b&gt;$\\x1b</title>" in page
    assert [c for c in page if not c.isprintable() and c != "\n"] == []
    figures = ["<svg" + part[: part.index("</svg>") + 6] for part in page.split("<svg")[1:]]
    texts = set()
    for figure in figures:
        for text in xml.dom.minidom.parseString(figure).getElementsByTagName("text"):
            texts.add("".join(n.data for n in text.childNodes if n.nodeType == n.TEXT_NODE))
    for shown in (r"$\foo", "a$b$c", r"\x1b[31mred", "<script>alert(1)", " _hidden", r"\x00"):
        assert shown in texts
    assert "<script>alert" not in page


def test_a_name_that_no_file_can_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ImpossibleRequestError, match=r"\\udc80.weight has a name that cannot"):
        _prune(["fc", LONE], output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    pruned = _prune(["fc", LONE])
    assert r"\udc80" in render_html(pruned.report)


def test_odd_names_of_samplers_stand_in_the_report_of_a_study(tmp_path):
    with pytest.raises(StudyError, match=r"the label a\\x00 holds a NUL"):
        compare([generate("fisher:n=8")], [("a\0", "random", {})], ["2reads"])
    with pytest.raises(StudyError, match=r"the label \\udc80 is no UTF-8 text"):
        compare([generate("fisher:n=8")], [(LONE, "random", {})], ["2reads"])
    unnameable = replace(generate("fisher:n=8"), name=LONE)
    with pytest.raises(StudyError, match=r"problem \\udc80 is no UTF-8 text"):
        compare([unnameable], [("a", "random", {})], ["2reads"])
    labels = [r"$\foo", "\x1b[31mred", "[/bold]", "<script>alert(1)", "_hidden", "a|b"]
    labels.append("x" * 3000)
    samplers = [(label, "random", {}) for label in labels]
    problems = [generate("fisher:n=8"), generate("uniform:n=6")]
    study = compare(problems, samplers, ["2reads"], repeats=1, folder=tmp_path)
    assert set(study.rows.sampler) == set(labels)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for shown in (r"\x1b[31mred", "&lt;script&gt;", "[/bold]", r"$\foo"):
        assert shown in page
    assert "<script>alert" not in page
    for figure in (tmp_path / "figures").glob("*.svg"):
        assert xml.dom.minidom.parse(str(figure)).getElementsByTagName("svg")
    assert (tmp_path / "figures" / "ranks.png").stat().st_size > 1000
    table = (tmp_path / "tables" / "samplers.md").read_text(encoding="utf-8")
    assert r"a\|b" in table
    assert len(table.splitlines()) == len(labels) + 2
