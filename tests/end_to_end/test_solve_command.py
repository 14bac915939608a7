"""`qprune solve` and `qprune samplers`, as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qprune.cli.main import main
from solvers import QuadraticProblem
from solvers.formats.files import read_problem, write_problem
from solvers.testing import all_states, convex_problem

GOLDEN = Path(__file__).parents[1] / "golden" / "problems"


def qprune(*arguments):
    code = "from qprune.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def outcome(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    path = tmp_path_factory.mktemp("solve") / "block.npz"
    problem = convex_problem(12, 3)
    factor = np.linalg.cholesky(problem.quadratic.dense() + 1e-9 * np.eye(12)).T
    np.savez(path, U=factor, d=problem.linear, k=[6], meta="{}")
    return path


def test_a_block_is_solved_with_its_count(block, tmp_path):
    sample = tmp_path / "sample.json"
    done = qprune("solve", block, "--count", 6, "--json", "--output", sample)
    found = outcome(done)
    problem = read_problem(block, count=6)
    best = problem.energies(all_states(problem)).min()
    assert found["energy"] == pytest.approx(best)
    assert found["lower_bound"] <= best + 1e-9
    assert found["feasible"] is True
    assert found["proved"] == (found["gap"] <= 1e-10)
    assert found["cpu_seconds"] >= 0
    assert {"instance", "sampler", "seed", "counts", "num_variables"} <= found.keys()
    saved = json.loads(sample.read_text())
    assert problem.energy(saved["sample"]) == pytest.approx(best)
    assert saved["variables"] == list(range(12))


def test_foreign_samplers_with_options_and_maximize():
    path = GOLDEN / "bqp-tiny.txt"
    done = qprune(
        *("solve", path, "--maximize", "--sampler", "sa", "--json"),
        *("--sampler-option", "num_reads=5", "--sampler-option", "num_sweeps=50"),
    )
    found = outcome(done)
    problem = read_problem(path, maximize=True)
    assert found["energy"] == problem.energies(all_states(problem)).min() == -7.0
    assert found["lower_bound"] is None
    assert found["proved"] is False


def test_samplers_lists_names_abilities_and_reasons():
    listed = {entry["name"]: entry for entry in outcome(qprune("samplers", "--json"))["samplers"]}
    assert listed["relax"]["counts"]
    assert listed["relax"]["bound"]
    assert listed["relax"]["installed"]
    assert not listed["sa"]["counts"]
    assert all(entry["installed"] or entry["missing"] for entry in listed.values())


def test_formats_lists_names_suffixes_and_senses():
    listed = {entry["name"]: entry for entry in outcome(qprune("formats", "--json"))["formats"]}
    assert listed["rudy"]["sense"] == "maximised: E = -cut"
    assert ".qubo" in listed["orlib"]["suffixes"]
    assert listed["cqm"]["counts"]
    assert not listed["lp"]["written"]


def test_a_sense_that_is_not_said_is_a_note_and_in_the_outcome(tmp_path):
    path = GOLDEN / "bqp-tiny.txt"
    done = qprune("solve", path, "--sampler", "greedy", "--json")
    found = outcome(done)
    assert (found["format"], found["sense"]) == ("orlib", "minimise")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"qprune: note: {path}: read as OR-Library's format")
    done = qprune("solve", path, "--sampler", "greedy", "--json", "--minimize")
    assert done.stderr == ""
    done = qprune("solve", path, "--sampler", "greedy", "--json", "--maximize", "--format", "qs")
    assert done.returncode == 2
    assert "its objective is one to minimise (qs)" in done.stderr


def test_compare_takes_a_format_and_notes_what_is_open(tmp_path):
    path = tmp_path / "bqp.txt"
    path.write_text("2 2\n1 2 -3\n1 1 1\n")
    command = ["compare", path, "--sampler", "greedy", "--budget", "2reads", "--repeats", 1]
    done = qprune(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert "qprune: note:" in done.stderr
    done = qprune(*command, "--format", "coo")
    assert done.returncode == 2
    assert "line 1: expected 'i j value'" in done.stderr


def test_tables_are_printed_without_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for arguments, expected in (
        (["samplers"], ("hybrid-cqm", "warm start", "installed")),
        (["solve", str(GOLDEN / "triangle.gset"), "--sampler", "tabu"], ("energy", "-8.0")),
    ):
        monkeypatch.setattr(sys, "argv", ["qprune", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert all(word in shown for word in expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.npz"], "cannot read nowhere.npz: No such file"),
        ([GOLDEN / "bqp-tiny.txt", "--sampler", "nix"], "no sampler is called 'nix'; there are:"),
        ([GOLDEN / "bqp-tiny.txt", "--count", "9"], "3 variables; its count cannot be 9"),
        (
            [GOLDEN / "bqp-tiny.txt", "--sampler", "sa", "--sampler-option", "nix=1"],
            "sa has no option 'nix'; it has:",
        ),
        (
            [GOLDEN / "bqp-tiny.txt", "--sampler", "sa", "--time-limit", "-1"],
            "a number that is at least 0 and at most 1e+09, not -",
        ),
        (
            [GOLDEN / "bqp-tiny.txt", "--sampler", "sa", "--sampler-option", "num_reads=0"],
            "num_reads must be a whole number",
        ),
        ([GOLDEN / "bqp-tiny.txt", "--sampler-option", "what"], "name=value"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys):
    # In this process: starting one for each takes longer than all the rest.
    monkeypatch.setattr(sys, "argv", ["qprune", "solve", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert message in line


def test_a_mistake_in_a_process_of_its_own():
    done = qprune("solve", "nowhere.npz", "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_written_problem_can_be_solved(tmp_path):
    write_problem(QuadraticProblem([-1.0, 2.0], np.zeros((2, 2)), 0.5), tmp_path / "p.qubo")
    assert outcome(qprune("solve", tmp_path / "p.qubo", "--json"))["energy"] == -0.5
