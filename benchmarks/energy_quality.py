"""Energy against quality: is a better sample a better network? Mask only, every sampler.

    python -m benchmarks.energy_quality --data DATA --output runs/energy_quality    # a night
    python -m benchmarks.energy_quality --data DATA --output OUT --reduced    # 45 CPU minutes
    python -m benchmarks.energy_quality --data DATA --output OUT --short      # 3 CPU minutes
    python -m benchmarks.energy_quality --data DATA --output OUT --table      # what is there

DATA holds tinyllama-wikitext2/, wikitext2/, mlpnet_mnist.safetensors, mnist.npz and, but for
``--short``, resnet20_cifar10_bn.safetensors and cifar10_subset.npz. A run is a line of
``OUT/runs.jsonl`` as soon as it ends, and is not made again: stopped at any moment, the same
command goes on. On two cores, two commands share the work: ``--only rows text`` and ``--only
mlpnet resnet20``. One thread, seeds from 0, samplers limited by counts, never by a clock; those
whose package is not installed are named and left out. The tables and pictures of ENERGY.md are
what ``--table`` prints and writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.energy.plan import SETTINGS, Run, Setting, absent
from benchmarks.energy.tables import report
from qprune.distributed.workers import limited_threads

PARTS = ("rows", "text", "mlpnet", "resnet20")
_KEY = [field.name for field in fields(Run)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the results so far; a last line that a kill has cut off is taken away."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def key_of(line: dict[str, Any]) -> Run:
    """Return the run that a line is of."""
    return Run(**{name: line[name] for name in _KEY})


def makers(setting: Setting, folder: Path) -> dict[str, Callable[[Run], dict[str, Any]]]:
    """Return what makes the runs of every part; nothing is loaded before it is needed."""
    from benchmarks.energy.layers import Text
    from benchmarks.energy.network import Subject

    text = Text(setting.layers, folder)
    subjects = {n: Subject(n, network, folder) for n, network in setting.networks.items()}
    networks = {name: subject.result for name, subject in subjects.items()}
    return {"rows": text.rows_result, "text": text.text_result, **networks}


def made(runs: Iterable[Run], setting: Setting, folder: Path, path: Path) -> None:
    """Make the runs, each a line of ``path`` as soon as it ends."""
    make, console = makers(setting, folder), Console(stderr=True)
    for run in track(list(runs), "runs", console=console, disable=not console.is_terminal):
        with limited_threads(1):
            line = asdict(run) | {"options": dict(run.options)} | make[run.part](run)
        with path.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/energy_quality"))
    size = parser.add_mutually_exclusive_group()
    for name in ("short", "reduced"):
        size.add_argument(f"--{name}", dest="setting", action="store_const", const=name)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--figures", type=Path, help="folder of the pictures; default: the output")
    arguments = parser.parse_args()
    name, left_out = arguments.setting or "full", absent()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "runs.jsonl"
    done = {key_of(line) for line in read_lines(path)}
    runs = [run for run in SETTINGS[name].runs(name) if run.part in arguments.only]
    runs = [run for run in runs if run.sampler not in left_out and run not in done]
    if not arguments.table:
        made(runs, SETTINGS[name], arguments.data, path)
    lines = [line for line in read_lines(path) if line["setting"] == name]
    print(report(lines, left_out, arguments.figures or arguments.output))


if __name__ == "__main__":
    main()
