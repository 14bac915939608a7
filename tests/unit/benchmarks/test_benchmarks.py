"""`make bench`: what it would run exists, and what is missing is said first."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import JOBS, main, missing

ROOT = Path(__file__).parents[3]


class ParsedError(Exception):
    """Arguments were taken; nothing more is to happen."""


@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_benchmark_takes_its_arguments(job, full, monkeypatch, tmp_path):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, *arguments):
        parse(parser, *arguments)
        raise ParsedError

    command = job.command(tmp_path, tmp_path / "out", full)
    assert command[:2] == [sys.executable, "-m"]
    module = importlib.import_module(command[2])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [command[2], *command[3:]])
    with pytest.raises(ParsedError):
        module.main()


def test_missing_data_is_named_before_anything_runs(monkeypatch, capsys, tmp_path):
    (tmp_path / "qubo").mkdir()
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "mnist.npz" in told
    assert "tinyllama-wikitext2" in told
    assert "lacks qubo" not in told
    assert list(missing([job for job in JOBS if job.name == "study"], tmp_path)) == []


@pytest.mark.parametrize("target", ["bench", "bench-full"])
def test_make_asks_for_data_first(target):
    done = subprocess.run(
        ["make", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2
    assert "DATA is missing" in done.stderr
    assert not done.stdout
