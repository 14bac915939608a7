"""What the README prints runs as printed."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from qprune.cli.main import app
from qprune.jobs.settings import Settings
from solvers.registry import list_samplers

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [block for written, block in fenced if written == language]


def test_the_examples_run_one_after_the_other(capsys):
    names: dict = {}
    for number, source in enumerate(_blocks("python")):
        exec(compile(source, f"README example {number}", "exec"), names)
    report = names["pruned"].report
    assert report.final.accuracy > report.start.accuracy
    shown = capsys.readouterr().out
    assert shown.startswith("95.0% zero")
    assert "97.4% dense" in shown
    assert names["guessed"].report.steps


def test_the_first_example_has_about_ten_lines():
    lines = [line for line in _blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 10


def test_every_option_of_the_table_exists():
    commands = typer.main.get_command(app).commands
    shown = [p for p in commands["prune"].params if not p.hidden]
    options = {name for p in shown for name in (*p.opts, *p.secondary_opts)}
    listed = set(re.findall(r"`(--[a-z0-9-]+)`", README))
    assert listed <= options, listed - options
    undocumented = options - listed - {"--help"}
    assert undocumented <= {"--output"}, undocumented
    settable = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    assert settable - options == {"--sampler-options"}


def test_every_command_exists():
    commands = typer.main.get_command(app).commands
    printed = next(block for block in _blocks("") if block.startswith("qprune prune"))
    shown = [shlex.split(line, comments=True) for line in printed.splitlines()]
    assert {words[1] for words in shown} == set(commands)
    assert all(words[0] == "qprune" for words in shown)


def test_make_has_both_commands():
    rules = (ROOT / "Makefile").read_text()
    printed = next(block for block in _blocks("") if block.startswith("make"))
    for line in printed.splitlines():
        target = line.split()[1]
        assert re.search(rf"^{target}:", rules, re.MULTILINE), target


@pytest.mark.parametrize("name", ["relax", "sa", "tabu", "neal"])
def test_promised_samplers_are_registered(name):
    assert name in {entry.name for entry in list_samplers()}
