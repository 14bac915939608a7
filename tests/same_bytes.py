"""Comparison of two revisions, byte by byte: `python tests/same_bytes.py --against REV`.

Small pruning runs and samplers (`same_bytes_runs.RUNS`) are carried out in REV and in the working
tree. Masks, weights, steps, layers and samples have to be the same to the last bit. One line for
each run says so; the exit code is 1 where anything differs, 2 where nothing could be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TREE = HERE.parent
RUNS = HERE / "same_bytes_runs.py"
#: What the bytes may depend on besides the code.
PACKAGES = ("torch", "numpy", "scipy", "numba", "scikit-learn", "transformers", "dwave-samplers")
#: Parts of a run's result, in the order in which they are told.
ARRAYS = ("mask", "weights", "samples", "energies", "bounds")
ROWS = ("steps", "layers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", required=True, metavar="REV", help="the other revision")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these runs alone")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / f"same-bytes-{os.getuid()}",
        metavar="DIR",
        help="where REV's results are kept for the next time (%(default)s)",
    )
    asked = parser.parse_args()
    commit = git("rev-parse", "--verify", "--quiet", f"{asked.against}^{{commit}}")
    if not commit:
        parser.error(f"git knows no revision {asked.against!r}")
    with tempfile.TemporaryDirectory(prefix="same-bytes-") as place:
        cache, after = asked.cache.resolve() / commit[:12], Path(place)
        before = cache / surroundings()
        before.mkdir(parents=True, exist_ok=True)
        print(f"{asked.against} = {commit[:12]}, kept in {before}", flush=True)
        carry_out(checked_out(commit, cache / "tree"), before, asked.only)
        print("the working tree", flush=True)
        carry_out(TREE, after, asked.only)
        names = asked.only or [*named(before) | named(after)]
        told = {name: differences(before, after, name) for name in names}
    for name, found in told.items():
        print(f"{name}: {'different: ' + '; '.join(found) if found else 'same'}")
    number = sum(map(bool, told.values()))
    print(f"{number} of {len(told)} runs differ from {asked.against}")
    return 1 if number else 0


def git(*arguments: str) -> str:
    ended = subprocess.run(
        ["git", "-C", str(TREE), *arguments], capture_output=True, text=True, check=False
    )
    return ended.stdout.strip()


def checked_out(commit: str, tree: Path) -> Path:
    """The packages as they are in ``commit``; they stay, with the kernels that are compiled."""
    if not tree.exists():
        with tempfile.TemporaryDirectory(dir=tree.parent) as place:
            packed, unfinished = Path(place) / "packages.tar", Path(place) / "tree"
            git("archive", f"--output={packed}", commit, "qprune", "solvers")
            with tarfile.open(packed) as archive:
                archive.extractall(unfinished, filter="data")
            unfinished.rename(tree)
    return tree


def surroundings() -> str:
    """A digest of what results depend on besides the revision: the runs, and this machine."""
    files = (RUNS, *sorted(path for path in (HERE / "golden").rglob("*") if path.is_file()))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    digest.update(repr((versions, sys.version, platform.machine(), platform.node())).encode())
    return digest.hexdigest()[:12]


def carry_out(tree: Path, folder: Path, names: Sequence[str]) -> None:
    """Have ``tree`` carry out the runs that ``folder`` does not have."""
    for name in named(folder):
        # What went wrong before may have been the machine's fault.
        if "error" in facts_of(folder, name):
            (folder / f"{name}.json").unlink()
    # One thread for each library: the same sums in the same order on any machine. The folder of
    # this file stays out of the way, so that the packages are those of the tree.
    settings = {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(RUNS), str(folder), str(tree), *names],
        env=os.environ | settings,
        check=False,
    )
    if ended.returncode:
        sys.exit(2)


def named(folder: Path) -> dict[str, None]:
    """Names of the runs that a folder has the results of, in the order they were carried out."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return dict.fromkeys(path.stem for path in files)


def facts_of(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def differences(before: Path, after: Path, name: str) -> list[str]:
    """What differs between two results of one run, each part in a few words."""
    facts = facts_of(before, name), facts_of(after, name)
    errors = [fact.get("error") for fact in facts]
    if any(errors):
        places = zip(("before", "now"), errors, strict=True)
        return [f"failed {place}: {error}" for place, error in places if error]
    with np.load(before / f"{name}.npz") as one, np.load(after / f"{name}.npz") as other:
        arrays = dict(one), dict(other)
    return [*_of_arrays(*arrays), *_of_rows(*facts)]


def _of_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> Iterator[str]:
    for part in ARRAYS:
        names = [key for key in one | other if key.startswith(f"{part}/")]
        wrong = [key for key in names if not _same(one.get(key), other.get(key))]
        if wrong:
            told = ", ".join(_told(key, one.get(key), other.get(key)) for key in wrong[:3])
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            yield f"{part}: {len(wrong)} of {len(names)} arrays ({told}{more})"


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Byte by byte: -0.0 is not 0.0, and NaN is NaN."""
    if one is None or other is None:
        return False
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def _told(key: str, one: np.ndarray | None, other: np.ndarray | None) -> str:
    name = key.partition("/")[2]
    if one is None or other is None:
        return f"{name} only {'now' if one is None else 'before'}"
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{name} {one.dtype}{list(one.shape)} before, {other.dtype}{list(other.shape)} now"
    numbers = [np.frombuffer(a.tobytes(), np.uint8).reshape(a.size, -1) for a in (one, other)]
    number = int((numbers[0] != numbers[1]).any(axis=1).sum())
    return f"{name} {number} of {one.size}"


def _of_rows(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for part in ROWS:
        before, now = one[part], other[part]
        longer = max(len(before), len(now))
        rows = [(*before[i : i + 1], *now[i : i + 1]) for i in range(longer)]
        wrong = [i for i, row in enumerate(rows) if len(row) == 1 or row[0] != row[1]]
        if wrong:
            first = wrong[0]
            was, became = (rows[first : first + 1] or [None] for rows in (before, now))
            yield (
                f"{part}: {len(wrong)} of {longer}, the first is number {first}: "
                f"{was[0]} before, {became[0]} now"
            )


if __name__ == "__main__":
    sys.exit(main())
