"""The problems of a study: from files, generators, or blocks recorded in a pruning run."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from dimod import generators
from pydantic import Field

from solvers.errors import StudyError
from solvers.formats.contents import stem
from solvers.formats.files import read_problem, with_counts
from solvers.host.disk import read_json
from solvers.host.legible import has_lone_surrogate, legible
from solvers.host.machine import require_memory
from solvers.host.ranges import Count, Number, Pair, checked, quoted
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import LowRank, Sparse

_DIGITS = re.compile(r"[0-9]{1,20}")
# Ranges of a generator's parameters; seeds are those of NumPy's older generators.
_RANGES: Mapping[str, Any] = {
    "n": Pair,
    "samples": Number,
    "count": Count,
    "seed": Annotated[int, Field(ge=0, le=2**32 - 1)],
    "r": Annotated[int, Field(ge=1, le=10**6)],
}

#: File beside the blocks of `qprune prune --record-blocks`: one line of JSON for each block.
BLOCKS = "blocks.jsonl"


@dataclass(frozen=True, eq=False)
class Instance:
    """A problem with a name and its best-known value.

    Attributes:
        name: unique in a study.
        problem: to be minimised.
        kind: family of problems; figures group by it.
        known: lowest energy known before the study; None if none is.
        proved: True if that is the optimum.
        bound: a lower bound known before the study; None if none is.
        about: where it comes from, JSON-friendly (file; or step, stage, layers of a block).

    Example:
        >>> problem = QuadraticProblem([-1.0, 1.0], np.zeros((2, 2)))
        >>> Instance("two", problem, known=-1.0, proved=True).to_json()["known"]
        -1.0
    """

    name: str
    problem: QuadraticProblem
    kind: str = "problem"
    known: float | None = None
    proved: bool = False
    bound: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name, as a study's trial has it."""
        return self.name

    def to_json(self) -> dict[str, Any]:
        """All fields but the problem, with the checksum of its coefficients (``fingerprint``)."""
        return {
            "problem": self.name,
            "n": self.problem.num_variables,
            "num_groups": self.problem.num_groups,
            "kind": self.kind,
            "known": self.known,
            "proved": self.proved,
            "bound": self.bound,
            "fingerprint": fingerprint(self.problem),
            "about": dict(self.about),
        }


@dataclass(frozen=True)
class Known:
    """The best-known value of one problem, from a table."""

    energy: float
    proved: bool = False
    bound: float | None = None


def fingerprint(problem: QuadraticProblem) -> str:
    """A checksum of all coefficients and counts.

    Example:
        >>> one, two = generate("ran:n=8,seed=1"), generate("ran:n=8,seed=2")
        >>> fingerprint(one.problem) == fingerprint(two.problem)
        False
    """
    quadratic = problem.quadratic
    if isinstance(quadratic, LowRank):
        parts = [quadratic.factor]
    elif isinstance(quadratic, Sparse):
        matrix = quadratic.matrix
        parts = [matrix.data, matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)]
    else:
        parts = [quadratic.dense()]
    digest = hashlib.sha256(type(quadratic).__name__.encode())
    counts = [problem.groups, problem.counts] if problem.counts is not None else []
    for part in (problem.linear, np.float64(problem.offset), *parts, *counts):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def read_instances(
    path: str | Path,
    *,
    counts: Sequence[int] = (),
    maximize: bool | None = None,
    format: str | None = None,
    known: Mapping[str, Known] | None = None,
) -> tuple[Instance, ...]:
    """The problems in a file, or in a folder of recorded blocks.

    Args:
        path: a file that `read_problem` takes; or a folder with ``blocks.jsonl``, or of files.
        counts: one instance for each; without, a file's own counts, or (an .npz without
            counts) one instance for each of the counts it lists in ``k``.
        maximize: as in `read_problem`.
        format: of every file, as in `read_problem`.
        known: by the instance's name, see `read_known`.

    Raises:
        InvalidProblemError: a file cannot be read, or a count does not fit.
        StudyError: the folder has no problems.

    Example:
        >>> import tempfile
        >>> from solvers.formats.files import write_problem
        >>> path = Path(tempfile.mkdtemp()) / "two.npz"
        >>> write_problem(QuadraticProblem([-1.0, 1.0], np.zeros((2, 2))), path)
        >>> [one.name for one in read_instances(path)]
        ['two']
    """
    path = Path(path)
    read = partial(_file, counts=counts, maximize=maximize, format=format)
    if path.is_dir():
        found = tuple(_folder(path, read))
        if not found:
            raise StudyError(f"{path} has no problems; give files, or a --record-blocks folder")
    else:
        found = tuple(read(path, about={}))
    return tuple(_with_known(one, known or {}) for one in found)


def read_known(path: str | Path) -> dict[str, Known]:
    r"""Best-known values from a CSV file with columns problem, energy and maybe proved, bound.

    ``proved`` is yes or no; an empty ``bound`` is none.

    Raises:
        StudyError: the file cannot be read, lacks a column, or a value is no number.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "known.csv"
        >>> _ = path.write_text("problem,energy,proved\ntwo,-1,yes\n")
        >>> read_known(path)["two"]
        Known(energy=-1.0, proved=True, bound=None)
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {
            row["problem"]: Known(
                float(row["energy"]),
                (row.get("proved") or "no").lower() in ("yes", "true", "1"),
                float(row["bound"]) if row.get("bound") else None,
            )
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"cannot read best-known values from {path}: {error}; it is a CSV file with "
            "columns problem, energy, proved, bound"
        ) from error


def generate(spec: str) -> Instance:
    """A generated problem: ``"fisher:n=256,samples=64,count=128,seed=1"``.

    ``fisher``: E = d.x + 1/2 |U x|^2 of Laplace weights and Gaussian per-sample gradients with
    a power-law spectrum, like a block of a network. ``uniform``: couplings and
    fields uniform in [-1, 1]. ``ran``: couplings from -r to r (`dimod.generators.ran_r`).

    Raises:
        StudyError: no such generator or parameter, or an invalid value.
        ProblemTooLargeError: there is no memory for it.

    Example:
        >>> one = generate("fisher:n=16,samples=4,count=8,seed=1")
        >>> one.problem.num_variables, one.problem.counts.tolist()
        (16, [8])
    """
    kind, _, rest = spec.partition(":")
    if kind not in _GENERATORS:
        raise StudyError(f"no generator is called {kind!r}; there are {', '.join(_GENERATORS)}")
    make, defaults = _GENERATORS[kind]
    given = dict(defaults)
    for item in filter(None, rest.split(",")):
        name, equals, value = item.partition("=")
        if name not in defaults or not equals or not _DIGITS.fullmatch(value):
            raise StudyError(
                f"generator {kind!r}: {quoted(item)} is not name=whole number with a name among "
                + ", ".join(defaults)
            )
        try:
            given[name] = checked(_RANGES[name], int(value), name)
        except ValueError as error:
            raise StudyError(f"generator {kind!r}: {error}") from error
    # Bytes of three arrays of floats, or of the pairs of a C++ dictionary.
    needed = 24 * given["n"] * given["samples"] if "samples" in given else 64 * given["n"] ** 2
    require_memory(needed, f"a problem made by {spec!r}", "choose a smaller n")
    problem = make(**given)
    name = kind + "".join(f"-{key}{value}" for key, value in given.items() if value >= 0)
    return Instance(name, problem, kind=kind, about={"generator": spec})


def checked_instances(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    """The instances, if there are any, each with variables and a name of its own.

    Raises:
        StudyError: otherwise.
    """
    found = tuple(instances)
    if not found:
        raise StudyError("a study needs at least one problem; none was given")
    names = [one.name for one in found]
    for one in found:
        if names.count(one.name) > 1:
            raise StudyError(f"two problems are called {one.name!r}; give each a name of its own")
        if has_lone_surrogate(one.name):
            raise StudyError(
                f"the name of problem {legible(one.name, 60)} is no UTF-8 text; rename it"
            )
        if one.problem.num_variables == 0:
            raise StudyError(f"problem {one.name!r} is empty: it has no variables")
    return found


# -- files and folders --------------------------------------------------------------------


def _folder(path: Path, read: Callable[..., Iterator[Instance]]) -> Iterator[Instance]:
    if not (path / BLOCKS).is_file():
        for file in sorted(path.iterdir()):
            if file.is_file() and not file.name.startswith((".", "README")):
                yield from read(file, about={})
        return
    # A run that still records, or was killed, may have an incomplete last line.
    whole = (path / BLOCKS).read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            about = dict(read_json(line))
            name = Path(about["file"]).name
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{path / BLOCKS}, line {number}: not a recorded block") from error
        if name != about["file"] or name in ("", ".."):
            raise StudyError(
                f"{path / BLOCKS}, line {number}: the file {about['file']!r:.60} is not in that "
                "folder; a recorded block lies beside its list"
            )
        for one in read(path / name, about=about):
            yield replace(one, kind="recorded")


def _file(
    path: Path,
    *,
    counts: Sequence[int],
    maximize: bool | None,
    format: str | None,
    about: Mapping[str, Any],
) -> Iterator[Instance]:
    problem = read_problem(path, maximize=maximize, format=format)
    name, kind = _name_and_kind(path)
    listed = [int(count) for count in counts] or _listed_counts(path, problem)
    about = {"file": path.name, **about}
    if not listed:
        yield Instance(name, problem, kind=kind, about=about)
    for count in listed:
        counted = with_counts(problem, count)
        yield Instance(f"{name}-k{count}", counted, kind=kind, about={**about, "count": count})


def _name_and_kind(path: Path) -> tuple[str, str]:
    """The name without suffixes; what comes before its first digit or dash is the kind."""
    name = stem(path)
    head = name.split("-")[0]
    return name, "gka" if head.startswith("gka") else head.rstrip("0123456789.")


def _listed_counts(path: Path, problem: QuadraticProblem) -> list[int]:
    if path.suffix != ".npz" or problem.counts is not None:
        return []
    with np.load(path, allow_pickle=False) as arrays:
        return [int(k) for k in arrays["k"]] if "k" in arrays.files else []


def _with_known(instance: Instance, known: Mapping[str, Known]) -> Instance:
    if instance.name not in known:
        return instance
    value = known[instance.name]
    return replace(instance, known=value.energy, proved=value.proved, bound=value.bound)


# -- generators ---------------------------------------------------------------------------


def _fisher(n: int, samples: int, count: int, seed: int) -> QuadraticProblem:
    rng = np.random.default_rng(seed)
    weights = rng.laplace(size=n)
    spectrum = np.arange(1, samples + 1) ** -0.5
    mixing = rng.normal(size=(samples, n)) * spectrum[:, None]
    factor = rng.normal(size=(samples, samples)) @ mixing * weights / np.sqrt(samples)
    factor /= np.sqrt(0.5 * np.square(factor).sum(axis=0).mean())
    linear = 0.1 * weights**2 / np.mean(weights**2)
    return QuadraticProblem(linear, LowRank(factor), counts=n // 2 if count < 0 else count)


def _uniform(n: int, count: int, seed: int) -> QuadraticProblem:
    bqm = generators.uniform(n, "BINARY", low=-1.0, high=1.0, seed=seed)
    return QuadraticProblem.from_bqm(bqm, cardinality=None if count < 0 else count)


def _ran(n: int, r: int, count: int, seed: int) -> QuadraticProblem:
    bqm = generators.ran_r(r, n, seed=seed)
    return QuadraticProblem.from_bqm(bqm, cardinality=None if count < 0 else count)


_GENERATORS: Mapping[str, tuple[Callable[..., QuadraticProblem], Mapping[str, int]]] = {
    "fisher": (_fisher, {"n": 256, "samples": 64, "count": -1, "seed": 0}),
    "uniform": (_uniform, {"n": 100, "count": -1, "seed": 0}),
    "ran": (_ran, {"n": 100, "r": 1, "count": -1, "seed": 0}),
}
