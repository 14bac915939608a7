"""Studies killed with SIGKILL and resumed, compared row by row with one that was never stopped.

    python -m benchmarks.reliability.compare_kills --data DATA [--kills 2] [--trials 1] [--seed 0]

``qprune compare`` on Fisher blocks (n = 64, 256, 1024) and OR-Library (n = 50, 250) of DATA, five
samplers, ours and others', budgets in reads: with those every row but its times is decided by the
seed. Each trial is killed ``--kills`` times, whenever a number of rows drawn at random is there or,
every other time, at a random moment before that many; then it runs to its end. About six minutes
of CPU; exit code 1 on a difference.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from solvers.study import read_study
from solvers.study.compare import untimed
from solvers.study.storage import ROWS

FISHER = ("digits-n64-N32-c0", "digits-n256-N128-c0", "digits-n1024-N256-c0")
PLAIN = ("bqp50.1", "bqp250.1")
SAMPLERS = ("relax", "swap-anneal", "greedy", "sa:num_sweeps=200", "random")
CODE = "import sys; from qprune.cli.main import main; sys.argv[0] = 'qprune'; main()"


def command(data: Path, seed: int) -> list[str]:
    """The study, but for its folder."""
    files = [data / "fisher" / f"{name}.npz" for name in FISHER]
    files += [data / "orlib" / f"{name}.txt.gz" for name in PLAIN]
    words = ["compare", *map(str, files), "--repeats", "3", "--seed", str(seed)]
    for sampler in SAMPLERS:
        words += ["--sampler", sampler]
    return [*words, "--budget", "1reads", "--budget", "5reads"]


def started(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", CODE, *words, "--output", str(folder)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL)


def whole(words: list[str], folder: Path) -> None:
    """Run the study to its end."""
    if started(words, folder).wait() != 0:
        raise SystemExit(f"the study in {folder} failed")


def killed(words: list[str], folder: Path, after: int, wait: float) -> int:
    """Kill the study ``wait`` seconds after ``after`` more rows are there; rows at that time."""
    process, begun = started(words, folder), _lines(folder)
    while process.poll() is None and _lines(folder) < begun + after:
        time.sleep(0.005)
    time.sleep(wait)
    if process.poll() is not None:
        raise SystemExit("the study ended before it was killed; give fewer kills")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return _lines(folder)


def _lines(folder: Path) -> int:
    file = folder / ROWS
    return file.read_bytes().count(b"\n") if file.exists() else 0


def differences(one: Path, other: Path) -> list[str]:
    """In words, every row that is not the same but for times."""
    mine, theirs = untimed(read_study(one).row_list), untimed(read_study(other).row_list)
    found = [f"{len(mine)} rows, not {len(theirs)}"] if len(mine) != len(theirs) else []
    for a, b in zip(mine, theirs, strict=False):
        names = [name for name in a if a[name] != b.get(name)]
        if names:
            found.append(f"{b['sampler']} on {b['problem']}, repeat {b['repeat']}: {names}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, bad = random.Random(arguments.seed), 0
    words = command(arguments.data, arguments.seed)
    with tempfile.TemporaryDirectory() as home, Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("never stopped", total=1 + arguments.trials)
        reference = Path(home) / "whole"
        whole(words, reference)
        rows = _lines(reference)
        for trial in range(arguments.trials):
            bar.update(task, advance=1, description=f"trial {trial}")
            folder = Path(home) / f"trial-{trial}"
            most = rows // (arguments.kills + 1)
            at = [
                killed(words, folder, rng.randint(1, most), rng.uniform(0, 1.0) if kill % 2 else 0)
                for kill in range(arguments.kills)
            ]
            whole(words, folder)
            found = differences(reference, folder)
            bad += bool(found)
            print(f"trial {trial}: killed at {at} of {rows} rows; {found or 'the same rows'}")
        bar.update(task, advance=1)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
