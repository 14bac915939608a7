"""`qprune compare`, as a user runs it, and as a power cut ends it. The long version of the latter
is `benchmarks.reliability.compare_kills`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qprune.cli.main import main
from solvers.formats.files import write_problem
from solvers.study import generate
from solvers.study.compare import untimed
from solvers.study.storage import ROWS

CODE = "import sys; from qprune.cli.main import main; sys.argv[0] = 'qprune'; main()"


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "compare", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NUMBA_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Two problems from files, one generated; every sampler repeats itself exactly."""
    folder = tmp_path_factory.mktemp("problems")
    for n in (20, 30):
        problem = generate(f"fisher:n={n},samples=10,count=8,seed={n}").problem
        write_problem(problem, folder / f"block-{n}.npz")
    known = folder / "known.csv"
    known.write_text("problem,energy,proved\nblock-20,-1000.0,no\nblock-30,1000.0,no\n")
    samplers = ["greedy", "swap-anneal:num_sweeps=20", "fast=sa:num_sweeps=20", "random"]
    return [
        *(folder / "block-20.npz", folder / "block-30.npz", "--generate", "uniform:n=25"),
        *(word for sampler in samplers for word in ("--sampler", sampler)),
        *("--budget", "3reads", "--budget", "40reads", "--repeats", 4, "--known", known),
    ]


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "whole"
    out, err = start(*asked, "--output", folder, "--json").communicate(timeout=300)
    return folder, out, err


def rows_of(folder):
    return [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]


def test_the_summary_counts_every_run_and_the_report_lies_beside_it(whole):
    folder, out, err = whole
    told = json.loads(out.splitlines()[-1])
    assert told["runs"] == 3 * 4 * 2 * 4
    assert len(told["samplers"]) == 8
    assert err == ""
    assert (folder / "report.html").stat().st_size > 50_000
    beaten = {row["problem"] for row in rows_of(folder) if row["beaten"]}
    assert beaten == {"block-30"}
    assert "Better than was known" in (folder / "report.html").read_text()


def test_two_kills_and_what_was_resumed_is_what_was_never_killed(asked, whole, tmp_path):
    folder, kills = tmp_path / "study", 0
    for share in (0.2, 0.6):
        process = start(*asked, "--output", folder)
        while process.poll() is None:
            done = (folder / ROWS).read_bytes().count(b"\n") if (folder / ROWS).exists() else 0
            if done >= share * 96:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 2
    assert 0.6 * 96 <= len(rows_of(folder)) < 96
    process = start(*asked, "--output", folder)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert untimed(rows_of(folder)) == untimed(rows_of(whole[0]))
    assert len(json.loads((folder / "study.json").read_text())["sessions"]) == 3


def test_a_killed_study_takes_its_worker_along(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from odd_samplers import Hang, TellsPid
from solvers.study import compare, generate
if __name__ == "__main__":
    compare([generate("fisher:n=8")], [TellsPid, Hang], ["1reads"], 1, {{seed}}, observe=[
        lambda row, done, total: print(row["reason"], flush=True)])
"""
    script = tmp_path / "script.py"
    script.write_text(code.replace("{seed}", "0"))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline().split("pid ")[1])
    time.sleep(0.5)
    assert alive(pid)  # in a call that never ends
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE:"], "bad.qubo: the file is empty"),
        (["FILE:garbage"], "bad.qubo: in no known format"),
        (["FILE:p qubo 0 0 0 0\n"], "'bad' is empty"),
        (["/no/such.qubo"], "cannot read /no/such.qubo"),
        (["--generate", "nope:n=3"], "no generator is called 'nope'"),
        (["--generate", "fisher:n=0"], "n must be a whole number from 2"),
        (["--generate", "fisher:n=8", "--sampler", "nope"], "no sampler is called 'nope'"),
        (["--generate", "fisher:n=8", "--sampler", "sa:x=1"], "no option 'x'"),
        (["--generate", "fisher:n=8", "--sampler", "greedy"], "the label 'greedy'"),
        (["--generate", "fisher:n=8", "--sampler", ":n=1"], "--sampler takes NAME"),
        (["--generate", "fisher:n=8", "--budget", "5"], "a budget is like 0.5s"),
        (["--generate", "fisher:n=8", "--known", "/no/such.csv"], "/no/such.csv"),
        (["--generate", "fisher:n=8", "--time-limit", "0"], "--time-limit"),
        ([], "at least one problem"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, arguments, message
):
    bad = tmp_path / "bad.qubo"
    for i, word in enumerate(arguments):
        if word.startswith("FILE:"):
            bad.write_text(word.removeprefix("FILE:"))
            arguments = [*arguments[:i], str(bad), *arguments[i + 1 :]]
    words = ["compare", "--sampler", "greedy", "--budget", "2reads", *arguments]
    monkeypatch.setattr(sys, "argv", ["qprune", *words, "--output", str(tmp_path / "study")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qprune: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "study").exists()
