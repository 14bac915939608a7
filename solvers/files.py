"""Reading and writing problems: every common file format of QUBO and Ising instances.

==============  ================================================================  =============
suffix          contents                                                          counts kept
==============  ================================================================  =============
.coo            dimod's COO: ``i j value``, 0-based, ``# vartype=SPIN`` for spins  no
.qubo           qbsolv's: ``p qubo 0 nodes ...``, then ``i j value``, 0-based      no
.txt            OR-Library ``bqp`` and gka: ``n m``, then ``i j q``, 1-based       no
.gset .rud .mc  G-set: ``n m``, then edges ``i j w``, 1-based; E = -cut            no
.npz            E = d.x + 1/2 |U x|^2 (Fisher blocks), or Q in place of U          yes
.bqm .json      dimod's serialised BQM                                            no
.cqm            dimod's serialised CQM                                            yes
==============  ================================================================  =============

Text may be compressed with gzip. A file is recognised by its contents; the name decides only
between an OR-Library and a G-set file, which look alike (see `_looks_like_a_graph`).
"""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dimod
import numpy as np
from dimod.serialization.fileview import read_header
from numpy.typing import ArrayLike
from scipy import sparse

from solvers.errors import InvalidProblemError, SolverError
from solvers.formats import (
    LineError,
    header,
    read_coo,
    read_gset,
    read_orlib,
    write_coo,
    write_gset,
    write_orlib,
    write_qubo,
)
from solvers.problem import QuadraticProblem
from solvers.quadratic import Dense, LowRank, Sparse

_BQM_MAGIC = b"DIMODBQM"
_GRAPH_SUFFIXES = (".gset", ".rud", ".mc")


def read_problem(
    path: str | Path, count: ArrayLike | None = None, maximize: bool = False
) -> QuadraticProblem:
    """The problem in a file of any supported format.

    Args:
        path: the file.
        count: how many variables are 1 (or one count per group of the file's own groups);
            None leaves the file's counts, which most formats lack.
        maximize: the file's objective is to be maximised: the problem is minus it. A G-set
            file is always a MaxCut, E = -cut, with and without.

    Raises:
        InvalidProblemError: the file cannot be read, is empty, or is in no known format; names
            the file, and the line where there are lines.
        ProblemTooLargeError: it does not fit into memory.
    """
    path = Path(path)
    try:
        problem, stated_as_minimum = _parsed(_contents(path), path.name)
    except SolverError as error:
        raise (
            type(error)(f"{path}: {error}")
            if not isinstance(error, LineError)
            else InvalidProblemError(f"{path}, {error}")
        ) from None
    except Exception as error:
        # A broken file makes gzip, zip, JSON and dimod's readers raise nearly anything.
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise InvalidProblemError(f"cannot read {path}: {reason}") from error
    if maximize and not stated_as_minimum:
        problem = negated(problem)
    return problem if count is None else with_counts(problem, count)


def write_problem(problem: QuadraticProblem, path: str | Path) -> None:
    """Write ``problem`` in the format of the file's suffix (``.gz`` compresses a text format).

    Raises:
        InvalidProblemError: no format has that suffix, or the format has no place for
            something the problem has (counts, labels, an offset); the message has the way out.
    """
    path = Path(path)
    path.write_bytes(problem_bytes(problem, path))


def problem_bytes(problem: QuadraticProblem, name: str | Path = "problem.npz") -> bytes:
    """What a file of that name holds of ``problem``, see `write_problem`."""
    path = Path(name)
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    writer = _WRITERS.get(suffixes[-1] if suffixes else "")
    if writer is None:
        known = ", ".join(_WRITERS)
        raise InvalidProblemError(f"{path}: no format has this suffix; there are {known}")
    data = writer(problem)
    return gzip.compress(data, mtime=0) if path.suffix == ".gz" else data


def negated(problem: QuadraticProblem) -> QuadraticProblem:
    """The problem with energy -E, counts and labels as they are."""
    quadratic = problem.quadratic
    flipped = (
        Sparse(-quadratic.matrix) if isinstance(quadratic, Sparse) else Dense(-quadratic.dense())
    )
    return QuadraticProblem(
        -problem.linear, flipped, -problem.offset, problem.groups, problem.counts, problem.labels
    )


def with_counts(problem: QuadraticProblem, counts: ArrayLike) -> QuadraticProblem:
    """The problem with other counts: one for all variables, or one per group it already has."""
    groups = problem.groups if np.size(counts) > 1 else None
    return QuadraticProblem(
        problem.linear, problem.quadratic, problem.offset, groups, counts, problem.labels
    )


# -- reading --------------------------------------------------------------------------------


def _contents(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if not data.strip():
        raise InvalidProblemError("the file is empty")
    return data


def _parsed(data: bytes, name: str) -> tuple[QuadraticProblem, bool]:
    """The problem, and whether it is a minimum whatever the caller says."""
    for magic, reader in _BINARY.items():
        if data.startswith(magic):
            return reader(data), False
    try:
        lines = [line.strip() for line in data.decode().splitlines()]
    except UnicodeDecodeError:
        raise InvalidProblemError("neither text nor any known binary format") from None
    first = next(line for line in lines if line)
    if first.startswith("{"):
        return _read_json(data), False
    if first[0] in "#cp" or len(first.split()) == 3:
        return read_coo(lines), False
    header(lines)
    if _looks_like_a_graph(lines, name):
        return read_gset(lines), True
    return read_orlib(lines), False


def _looks_like_a_graph(lines: Sequence[str], name: str) -> bool:
    """G-set or OR-Library? By name where it says so, else: a graph has no diagonal entry."""
    lowered = name.lower().removesuffix(".gz")
    if re.match(r"g\d", lowered) or lowered.endswith(_GRAPH_SUFFIXES):
        return True
    if re.match(r"bqp|gka", lowered):
        return False
    rows = [line.split() for line in lines if line][1:]
    return all(len(fields) < 2 or fields[0] != fields[1] for fields in rows)


def _read_json(data: bytes) -> QuadraticProblem:
    content = json.loads(data)
    if content.get("type") != "BinaryQuadraticModel":
        raise InvalidProblemError("this JSON is not a BinaryQuadraticModel serialised by dimod")
    return QuadraticProblem.from_bqm(dimod.BinaryQuadraticModel.from_serializable(content))


def _read_bqm(data: bytes) -> QuadraticProblem:
    _require_variables(io.BytesIO(data))
    return QuadraticProblem.from_bqm(dimod.BinaryQuadraticModel.from_file(io.BytesIO(data)))


def _require_variables(stream: io.BytesIO) -> None:
    """Refuse a BQM with couplings of variables it lacks: dimod's reader would write to them.

    The layout is that of `dimod.BinaryQuadraticModel.to_file`: the offset, for every variable
    where its couplings start and its bias, then pairs of neighbour and coupling.
    """
    header = read_header(stream, _BQM_MAGIC).data
    size, couplings = header["shape"]
    bias = np.dtype(header["dtype"])
    linear = np.dtype([("start", header["ntype"]), ("bias", bias)])
    pair = np.dtype([("neighbour", header["itype"]), ("bias", bias)])
    stream.seek(bias.itemsize, io.SEEK_CUR)
    starts = np.frombuffer(stream.read(size * linear.itemsize), linear)["start"].astype(np.int64)
    bounds = [0, *starts.tolist(), 2 * couplings]
    pairs = np.frombuffer(stream.read(2 * couplings * pair.itemsize), pair)["neighbour"]
    if size and (starts[0] or bounds != sorted(bounds)):
        raise InvalidProblemError("its couplings are in no order: it is damaged")
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < size:
        raise InvalidProblemError(f"it couples variables beyond its {size}: it is damaged")


def _require_harmless(data: bytes) -> None:
    """Refuse a CQM on which dimod's own reader, which trusts the indices in it, would crash."""
    program = (
        "import io, sys, dimod; "
        "dimod.ConstrainedQuadraticModel.from_file(io.BytesIO(sys.stdin.buffer.read()))"
    )
    command = [sys.executable, "-c", program]
    tried = subprocess.run(command, input=data, capture_output=True, check=False)
    if tried.returncode < 0:
        raise InvalidProblemError("dimod's reader crashes on it: it is damaged")


def _read_cqm(data: bytes) -> QuadraticProblem:
    _require_harmless(data)
    problem = QuadraticProblem.from_cqm(dimod.ConstrainedQuadraticModel.from_file(io.BytesIO(data)))
    if problem.groups is None or problem.counts is None:
        return problem
    # The file's constraints come in any order; groups are numbered as their variables come.
    old, first = np.unique(problem.groups, return_index=True)
    old = old[np.argsort(first)]
    return QuadraticProblem(
        problem.linear,
        problem.quadratic,
        problem.offset,
        np.argsort(old)[np.searchsorted(np.sort(old), problem.groups)],
        problem.counts[old],
        problem.labels,
    )


def _read_npz(data: bytes) -> QuadraticProblem:
    """``d`` and one of ``U`` (factor), ``Q`` (matrix) or ``data, indices, indptr`` (sparse).

    ``offset``, ``groups``, ``counts`` and ``labels`` (JSON) are read where present. ``k``, the
    counts that a Fisher block is usually solved for, and ``meta`` are not part of the problem.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        have = set(arrays.files)
        if "d" not in have or not have & {"U", "Q", "data"}:
            raise InvalidProblemError(
                f"an .npz problem has arrays d and U (or Q); this has {', '.join(sorted(have))}"
            )
        linear = arrays["d"].astype(np.float64)
        quadratic: Any
        if "U" in have:
            quadratic = LowRank(arrays["U"].astype(np.float64))
        elif "Q" in have:
            quadratic = Dense(arrays["Q"])
        else:
            parts = (arrays["data"], arrays["indices"], arrays["indptr"])
            quadratic = Sparse(sparse.csr_array(parts, shape=(linear.size, linear.size)))
        labels = json.loads(str(arrays["labels"])) if "labels" in have else None
        return QuadraticProblem(
            linear,
            quadratic,
            float(arrays["offset"]) if "offset" in have else 0.0,
            arrays["groups"] if "groups" in have else None,
            arrays["counts"] if "counts" in have else None,
            labels,
        )


_BINARY: dict[bytes, Callable[[bytes], QuadraticProblem]] = {
    b"PK": _read_npz,
    _BQM_MAGIC: _read_bqm,
    b"DIMODCQM": _read_cqm,
}


# -- writing --------------------------------------------------------------------------------


def _text(
    lines: Callable[[QuadraticProblem], Iterator[str]],
) -> Callable[[QuadraticProblem], bytes]:
    return lambda problem: "".join(f"{line}\n" for line in lines(problem)).encode()


def _write_npz(problem: QuadraticProblem) -> bytes:
    arrays: dict[str, Any] = {"d": problem.linear, "offset": np.float64(problem.offset)}
    quadratic = problem.quadratic
    if isinstance(quadratic, LowRank):
        arrays["U"] = quadratic.factor
    elif isinstance(quadratic, Sparse):
        matrix = quadratic.matrix
        arrays |= {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
    else:
        arrays["Q"] = quadratic.dense()
    if problem.counts is not None:
        arrays |= {"groups": problem.groups, "counts": problem.counts, "k": problem.counts}
    if problem.labels is not None:
        if any(type(label) not in (int, str) for label in problem.labels):
            raise InvalidProblemError("labels in an .npz file are whole numbers or text")
        arrays["labels"] = np.array(json.dumps(problem.labels))
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _without_counts(problem: QuadraticProblem) -> dimod.BinaryQuadraticModel:
    if problem.counts is not None:
        raise InvalidProblemError(
            "a BQM has no place for counts; write .npz or .cqm, or problem.without_counts()"
        )
    return problem.to_bqm()


def _write_bqm(problem: QuadraticProblem) -> bytes:
    with _without_counts(problem).to_file() as stream:
        return stream.read()


def _write_json(problem: QuadraticProblem) -> bytes:
    return json.dumps(_without_counts(problem).to_serializable()).encode()


def _write_cqm(problem: QuadraticProblem) -> bytes:
    with problem.to_cqm().to_file() as stream:
        return stream.read()


_WRITERS: dict[str, Callable[[QuadraticProblem], bytes]] = {
    ".coo": _text(write_coo),
    ".qubo": _text(write_qubo),
    ".txt": _text(write_orlib),
    **dict.fromkeys(_GRAPH_SUFFIXES, _text(write_gset)),
    ".npz": _write_npz,
    ".bqm": _write_bqm,
    ".json": _write_json,
    ".cqm": _write_cqm,
}
