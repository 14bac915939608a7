"""Odd values for every option of every command: an answer, or a refusal in a line or a few.

    python -m benchmarks.reliability.command_line --seconds 900 --crashes crashes

Options are read off the commands themselves, so that a new one is tried from its first day. Each
try is one call in this process with a few options set, one of them oddly at the least; the work
that would begin then is tiny, and that of `compare`, which starts a process, is left out. What is
not in order is written to the folder as Python's ``argv``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Exit codes that a command may have: done, a lie found, refused, stopped by hand.
CODES = (0, 1, 2, 130)
#: Lines of standard error at most, and characters of each; runs that succeed may log.
MOST_LINES, LONGEST_LINE = 12, 2000
#: Seconds for one call, on a busy machine; the work asked for takes a few tenths.
LONGEST = 60

NUMBERS = (
    *("-1", "0", "1", "2", "3", "nan", "inf", "-inf", "1e400", "-1e400", "1e-400", "0x10", "1_0"),
    *("\u0663", "\u00b2", "\uff11", "true", "None", "1.5", "-0.0", "1e3", "1,5", "+1", " 1", "1 "),
    *(str(2**31), str(2**63 - 1), str(2**63), str(2**64), str(-(2**63)), "9" * 30, "1" * 5000),
    *("100000", "100000000000", "0.5", "1e9", "1e10", "017", "1e-9"),
)
TEXTS = (
    *("", " ", "\t", "\n", "a\nb", "\0", "a\0b", "\udc80", "\udcff.qubo", "\x1b[31mred\x1b[0m"),
    *("[bold]", "[/bold]", "$\\foo", "<script>", "\u202ex", "\u00e9", "x" * 300, "x" * 5000, "-"),
    *("[]", "{}", "--", "%s", "{0}", ":", "=", ",", ":smile:", "~", "*", "?"),
)
PATHS = (
    *("folder", "file.txt", "missing/x", "file.txt/x", "/dev/null", "/nonexistent/x", "/proc/x"),
    *("fifo", "bomb.yaml", "deep.yaml", "date.yaml", "twice.yaml", "binary", "run", "model"),
    *("problem.qubo", "odd.yaml"),
)
NAMES = (
    *("re:(", "re:(a+)+$", "re:(([a-z.])*)*!", "re:[", "re:", "re:\udc80", "Linear", "fc1"),
    *(".foo:bar", "foo:", "a..b:c", ":x", "tiny:raises", "tiny:nothing", "tiny:exits", "none:x"),
    *("broken:make", "leaves:make", "tiny:model", "tiny:data", "hf:", "hf:x", "text:", "text:nope"),
    *(
        "text:fifo",
        "mnist:",
        "mnist:binary",
        "mnist:folder",
        "wikitext2:",
        "torchvision:",
        "digits",
    ),
    *("threads", "threads:\u00b2", "threads:100000", "threads:0", "threads:-1", "ray:", "ray://"),
    *(
        "2:4",
        "4:2",
        "0:0",
        "\u00b2:4",
        "1e3:4",
        "1:0",
        "meta",
        "mps",
        "cuda:99",
        "cpu:\u00b2",
        "cpu:0",
    ),
    *(
        "0.5s",
        "1e-9s",
        "1 s",
        "5m",
        "1e3reads",
        "1.5reads",
        "-1s",
        "s",
        "1e400s",
        "0x10s",
        "1reads",
    ),
    *("relax:num_reads=nan", "relax:=", "=relax", "a=b=c", "greedy", "greedy:num_reads=1e400"),
    *("num_reads=\u00b2", "num_reads=-1", "num_reads=" + "1" * 5000, "num_reads=1e400", "a=", "=a"),
    *(
        "fisher:n=\u00b2",
        "fisher:n=8",
        "uniform:n=999999999",
        "ran:r=0",
        "fisher:n=8,samples=" + "9" * 12,
    ),
    *("relax", "sa", "tabu", "exact", "nope", "fisher", "global", "row", "wall", "cpu", "float32"),
)
ODD = (*NUMBERS, *TEXTS, *PATHS, *NAMES)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one call.

    Attributes:
        argv: without the program's name.
        code: the exit code; None where it ended otherwise.
        err: standard error.
        crash: the traceback of what it ended with; "" where it ended as it should.
    """

    argv: tuple[str, ...]
    code: Any
    err: str
    crash: str

    @property
    def complaint(self) -> str:
        """The complaint about it; "" where all is in order."""
        lines = self.err.splitlines()
        if self.crash:
            return self.crash
        if self.code not in CODES:
            return f"exit code {self.code!r}"
        if "Traceback" in self.err:
            return f"a traceback: {self.err[-2000:]}"
        if len(lines) > MOST_LINES or max(map(len, lines), default=0) > LONGEST_LINE:
            return f"{len(lines)} lines, the longest of {max(map(len, lines))}: {self.err[:300]}"
        if self.code == 2 and not (lines and lines[-1].startswith("qprune: ")):
            return f"refused without a word: {self.err[:300]!r}"
        hidden = {c for c in self.err if not c.isprintable() and c != "\n"}
        return f"{sorted(map(ascii, hidden))} on standard error" if hidden else ""


# -- commands --------------------------------------------------------------------------------

#: Arguments with which each command is in order; an odd one takes the place of one of these.
BASES: dict[str, tuple[str, ...]] = {
    "prune": (
        *("--model", "tiny:model", "--data", "tiny:data", "--sparsity", "0.5", "--max-steps", "1"),
        *("--block-size", "8", "--stages", "1", "--rounds", "1", "--final-rounds", "1"),
        *("--num-calibration-samples", "20", "--threads", "1"),
    ),
    "resume": ("run", "--model", "tiny:model", "--data", "tiny:data"),
    "check": ("run",),
    "verify": ("run", "--model", "tiny:model", "--data", "tiny:data"),
    "report": ("run",),
    "evaluate": ("model", "--data", "text:file.txt"),
    "measure": ("model",),
    "hold": ("model", "--mask", "run", "--output", "held"),
    "samplers": (),
    "formats": (),
    "solve": ("problem.qubo", "--time-limit", "0.05"),
    "compare": ("problem.qubo", "--sampler", "greedy", "--budget", "1reads", "--repeats", "1"),
}
_TINY = """
import torch
from torch import nn
from qprune.models.datasets import DataSet

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

def data():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    y = x.argmax(1) % 3
    return DataSet(x[:40], y[:40], x[40:], y[40:])

def raises():
    raise RuntimeError("no\\nnetwork")

def exits():
    raise SystemExit(3)

nothing = None
"""


def make_place(folder: Path) -> None:
    """Files and folders that the bases and the odd values name, in ``folder``."""
    (folder / "folder").mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    texts = {
        "tiny.py": _TINY,
        "broken.py": "1 / 0\n",
        "leaves.py": "import sys\nsys.exit(5)\n",
        "file.txt": "text\n",
        "problem.qubo": "p qubo 0 4 4 1\n0 0 -1\n1 1 -1\n2 2 1\n3 3 -2\n0 1 2\n",
        "deep.yaml": "a: " + "[" * 10000,
        "date.yaml": "model: tiny:model\nseed: 2024-02-30\n",
        "twice.yaml": "seed: 1\nseed: 2\n",
        "odd.yaml": "model: tiny:model\ndata: tiny:data\nsparsity: 0.5\nseed: yes\n",
        "bomb.yaml": "a: &a [x, x]\n"
        + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "binary").write_bytes(bytes(range(256)) * 4)
    os.mkfifo(folder / "fifo")


def options_of(name: str) -> dict[str, bool]:
    """The options of a command, and whether each takes a value."""
    return {
        option: not getattr(parameter, "is_flag", False)
        for parameter in _commands()[name].params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--") and option != "--help"
    }


def _commands() -> dict[str, Any]:
    import typer

    from qprune.cli.main import app

    group: Any = typer.main.get_command(app)
    return group.commands


def drawn(
    choose: Callable[[Sequence[Any]], Any], commands: Sequence[str] = tuple(BASES)
) -> tuple[str, ...]:
    """A call with one to three odd values.

    Args:
        choose: one of several, by chance.
        commands: to choose from.
    """
    name = choose(commands)
    argv = list(BASES[name])
    for _ in range(choose((1, 1, 2, 3))):
        places = [i for i, part in enumerate(argv) if not part.startswith("--")]
        options = options_of(name)
        if places and choose((True, False)):
            argv[choose(places)] = choose(ODD)
            continue
        if not options:
            continue
        option = choose(sorted(options))
        if option in argv and options[option]:
            argv[argv.index(option) + 1] = choose(ODD)
        else:
            argv += [option, choose(ODD)] if options[option] else [option]
    return (name, *argv)


# -- calls -----------------------------------------------------------------------------------


@contextlib.contextmanager
def fit_for_many(place: Path) -> Iterator[None]:
    """Inside, calls run in ``place``, start no processes, and reach no hub."""

    class Begun:
        def __init__(self, *given: Any) -> None:
            raise KeyboardInterrupt  # It would work now.

    before, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    home: Any = importlib.import_module("solvers.study.compare")
    worker = home.Worker
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    outside = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    os.chdir(place)
    home.Worker = Begun
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        home.Worker = worker
        for name, value in outside.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for name in {"tiny", "broken", "leaves"} & (set(sys.modules) - modules):
            del sys.modules[name]


def called(argv: Sequence[str], limit: int = LONGEST) -> Outcome:
    """One call of the command line, in this process, within ``limit`` seconds."""
    from qprune.cli.main import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    before, path = sys.argv, list(sys.path)
    sys.argv = ["qprune", *argv]
    code, crash = None, ""
    timer = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(limit)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        crash = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, timer)
        sys.argv, sys.path[:] = before, path
    for stream in (out, err):
        stream.flush()
    text = err.buffer.getvalue().decode()  # pyright: ignore[reportAttributeAccessIssue]
    return Outcome(tuple(argv), code, text, crash)


class TooLongError(BaseException):
    """A call did not end."""


def _too_long(number: int, frame: Any) -> None:
    raise TooLongError("no end in time")


def make_run(place: Path) -> None:
    """The finished run that the bases name; inside `fit_for_many`."""
    # Imports and compiles for all that follows.
    done = called(["prune", *BASES["prune"], "--output", "run"], 600)
    if done.code != 0:
        raise RuntimeError(f"the run to try commands on was not made: {done.err}{done.crash}")
    assert (place / "run" / "report.json").is_file()


# -- the hunt --------------------------------------------------------------------------------


def hunt(seconds: float, seed: int, crashes: Path, place: Path, only: Sequence[str]) -> int:
    """Try calls for a while, and tell what was not in order; how much that is."""
    rng, found, counts = random.Random(seed), dict[str, str](), Counter[str]()
    crashes.mkdir(parents=True, exist_ok=True)
    make_place(place)
    with fit_for_many(place):
        make_run(place)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            argv = drawn(rng.choice, only or tuple(BASES))
            # A call that ends this process is told by what stands here.
            (crashes / "last.json").write_text(json.dumps(argv))
            done = called(argv)
            counts[f"{argv[0]}: {done.code}"] += 1
            if done.complaint:
                place_of = done.complaint.strip().splitlines()
                key = f"{argv[0]}: {place_of[-1][:120]}"
                if key not in found:
                    found[key] = repr(argv)
                    (crashes / f"{len(found)}.txt").write_text(
                        f"{argv!r}\n{done.complaint}\n", errors="backslashreplace"
                    )
    (crashes / "last.json").unlink()
    for name, number in sorted(counts.items()):
        print(f"{name:16} {number:,}")
    for key, argv in found.items():
        print(ascii(f"{key}  {argv[:300]}"))
    print(f"{sum(counts.values()):,} calls, {len(found)} kinds not in order", flush=True)
    return len(found)


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crashes", type=Path, default=Path("crashes"))
    parser.add_argument("--only", nargs="*", default=[], help="commands")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    crashes = given.crashes.absolute()
    if given.inside:
        with tempfile.TemporaryDirectory() as place:
            ended = hunt(given.seconds, given.seed, crashes, Path(place), given.only)
        sys.exit(min(ended, 1))
    # In a process of its own, since a value may end it.
    command = [sys.executable, "-m", "benchmarks.reliability.command_line", "--inside"]
    command += ["--seconds", str(given.seconds), "--seed", str(given.seed)]
    command += ["--crashes", str(crashes), *(["--only", *given.only] if given.only else [])]
    code = subprocess.run(command, check=False).returncode
    last = crashes / "last.json"
    if code not in (0, 1) or last.exists():
        print(f"the process ended with {code} at {last.read_text() if last.exists() else '?'}")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
