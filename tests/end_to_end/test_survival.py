"""A run in a process of its own, killed or stopped, and what comes of it. In short: the long
versions are `benchmarks.reliability.kills` and `deaths`."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

from qprune.models.zoo import load_model
from qprune.network.mask_file import read_mask
from qprune.record.checkpoint import CHECKPOINTS
from qprune.record.folder import MASK, MODEL, SCORES, STEPS

CODE = "import sys; from qprune.cli.main import main; sys.argv[0] = 'qprune'; main()"
RUN = ["--data", "digits", "--sparsity", "0.9", "--num-calibration-samples", "300"]
RUN += ["--stages", "6", "--rounds", "1", "--block-size", "256", "--no-augment"]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def until(process, ready):
    """Wait for ``ready``, or for the end of the process."""
    while process.poll() is None and not ready():
        time.sleep(0.01)


@pytest.fixture(scope="module")
def prune(tmp_path_factory):
    weights = tmp_path_factory.mktemp("dense") / "digits.safetensors"
    save_file(load_model("digits-mlp").state_dict(), weights)
    return ["prune", "--model", "digits-mlp", "--weights", weights, *RUN, "--output"]


@pytest.fixture(scope="module")
def whole(prune, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, _, err = ended(start(*prune, folder))
    assert code == 0, err
    return folder


def assert_same(folder, whole):
    for name in (MODEL, MASK):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    kinds = [
        [json.loads(line)["kind"] for line in (place / STEPS).read_text().splitlines()]
        for place in (folder, whole)
    ]
    assert kinds[0] == kinds[1]


def under_way(folder):
    journal = folder / STEPS
    return lambda: journal.exists() and journal.stat().st_size > 5000


def test_a_killed_run_resumes_to_the_same_bytes(prune, whole, tmp_path):
    folder = tmp_path / "run"
    process = start(*prune, folder)
    until(process, under_way(folder))
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL, "the run ended before it was killed"
    code, out, err = ended(start("resume", folder, "--json"))
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["stopped"] == "done"
    assert_same(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_run_stopped_by_a_signal_ends_in_order_and_resumes(prune, whole, tmp_path, number):
    folder = tmp_path / "run"
    process = start(*prune, folder)
    until(process, under_way(folder))
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == 130, err
    assert "`qprune resume" in err
    mask = read_mask(folder / MASK)
    assert sum(int((~kept).sum()) for kept in mask.values()) == round(0.9 * 8832)
    assert any((folder / name).exists() for name in CHECKPOINTS)
    code, _, err = ended(start("resume", folder))
    assert code == 0, err
    assert_same(folder, whole)
    assert not any((folder / name).exists() for name in CHECKPOINTS)


def deaths(*arguments):
    """The death drill, in a process that may fork: exit code, what it says, and its counts."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reliability.deaths", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    counts = re.findall(r"(\d+) of (\d+) points of death, (\d+) violations", done.stdout)
    return done.returncode, done.stdout + done.stderr, [tuple(map(int, line)) for line in counts]


def test_killed_before_any_step_on_the_file_system_it_resumes_to_the_same_folder():
    code, told, counts = deaths("--every", 61, "--last", 1)
    assert code == 0, told
    assert len(counts) == 5, told
    assert [violations for *_, violations in counts] == [0] * 5
    assert sum(tried for tried, *_ in counts) >= 8
    assert counts[0][1] > 120


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_killed_before_every_step_and_once_more_it_resumes_to_the_same_folder():
    code, told, _ = deaths("--twice")
    assert code == 0, told


@pytest.mark.timeout(120)
def test_the_death_drill_sees_what_goes_wrong(tmp_path):
    from benchmarks.reliability.deaths import Drill

    drill = Drill(tmp_path)
    shutil.copytree(tmp_path / "whole", tmp_path / "place" / "run")
    folder = tmp_path / "place" / "run"
    assert drill.lies(folder) == []
    (folder / CHECKPOINTS[0]).write_bytes(b"left")
    (tmp_path / "place" / ".run.1.aside").mkdir()
    assert drill.lies(folder) == [
        f"{CHECKPOINTS[0]} is too many, or missing",
        ".run.1.aside is left beside the folder",
    ]
    (folder / CHECKPOINTS[0]).unlink()
    (tmp_path / "place" / ".run.1.aside").rmdir()
    (folder / SCORES).write_text("")
    assert drill.lies(folder) == [f"{SCORES} does not match its checksum in checksums.sha256"]
