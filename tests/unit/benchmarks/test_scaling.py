"""docs/scaling.md says what was measured, and what its formulas make of it."""

import doctest
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "scaling.md"
ROWS = json.loads((ROOT / "benchmarks" / "scaling" / "measured.json").read_text())["rows"]


def seconds(phase, what="", *, number=slice(None)):
    """Of the rows of a phase whose names begin so, in their order."""
    found = [r["seconds"] for r in ROWS if r["phase"] == phase and r["what"].startswith(what)]
    return found[number]


def printed(first):
    """The cells after the one that names a row of a table."""
    (line,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def same(cells, values):
    """Every cell is its value, rounded to the digits that it shows; empty cells have none."""
    cells = [cell for cell in cells if cell]
    return len(cells) == len(values) and all(
        abs(float(cell) - value) <= 0.5 * 10.0 ** -len(cell.partition(".")[2]) + 1e-12
        for cell, value in zip(cells, values, strict=True)
    )


def test_every_formula_gives_the_figure_below_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, verbose=False)
    assert tried >= 30
    assert failed == 0


@pytest.mark.parametrize(
    ("shown", "what"),
    [(f"MLP, {name}", f"MLP {name}") for name in ("2 x 512", "8 x 512", "2 x 2048", "4 x 2048")]
    + [("ResNet-20, 40 images", "ResNet-20"), ("small LLaMA, 10 x 32 tokens", "small LLaMA")],
)
def test_the_table_of_passes_is_what_was_measured(shown, what):
    (forward,), (expand,), (product,) = (
        seconds(phase, what) for phase in ("forward", "expand", "product")
    )
    values = [forward, expand, expand / forward, product, product / forward]
    assert same(printed(shown)[1:], values)


@pytest.mark.parametrize(
    ("shown", "values"),
    [
        (
            "seconds",
            [sum(pair) for pair in zip(seconds("formulate"), seconds("solve"), strict=True)],
        ),
        ("choose a block of 1,024", seconds("select")),
        ("prune the lowest scores", seconds("prune")),
        ("write a checkpoint", seconds("checkpoint")),
        ("a turn of two ranks (gloo, this machine)", seconds("exchange")),
        ("start", seconds("rows: start")),
        ("search", seconds("rows: search")),
        ("one rank", seconds("run", number=slice(3))),
        ("two ranks", seconds("run", number=slice(3, None))),
    ],
)
def test_the_other_tables_are_what_was_measured(shown, values):
    assert same(printed(shown), values)


def test_the_rate_of_the_search_is_what_was_measured():
    rates = [
        1e8 * row["seconds"] / (row["sizes"]["rows"] * row["sizes"]["inputs"] ** 2)
        for row in ROWS
        if row["phase"] == "rows: search"
    ]
    assert same(printed("search / (rows x inputs^2), 10^-8"), rates)


def test_the_columns_of_a_block_took_as_long_as_is_said():
    (said,) = re.findall(r"take (\S+) \(2 x 512\) to (\S+) \(4 x 2048\)", PAGE.read_text())
    assert same(said, seconds("columns", "MLP 2 x 512") + seconds("columns", "MLP 4 x 2048"))
