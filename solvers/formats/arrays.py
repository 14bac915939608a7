"""Formats of arrays, NumPy's, SciPy's and Matrix Market's: their readers and writers."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from scipy import sparse

from solvers.errors import InvalidProblemError
from solvers.formats.contents import Contents, run_apart
from solvers.formats.text import from_matrix
from solvers.formats.texts import Parsed
from solvers.host.machine import require_memory
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Dense, LowRank, Sparse

NPY_MAGIC = b"\x93NUMPY"


def read_npz(contents: Contents) -> Parsed:
    """``d`` and one of ``U`` (factor), ``Q`` (matrix) or ``data, indices, indptr`` (sparse).

    E = offset + d.x + 1/2 x.Q.x, with U'U in place of Q. ``offset``, ``groups``, ``counts`` and
    ``labels`` (JSON) are read where present. ``k``, the counts that a Fisher block is usually
    solved for, and ``meta`` are not part of the problem.

    Without ``d``: one square matrix Q of any name, or a matrix of `scipy.sparse.save_npz`; then
    E = x.Q.x, plus ``offset`` where there is one.
    """
    _require_magic(contents, b"PK", ".npz")
    with np.load(io.BytesIO(contents.data), allow_pickle=False) as arrays:
        have = set(arrays.files)
        if {"format", "shape", "data"} <= have:
            matrix = sparse.load_npz(io.BytesIO(contents.data))
            return Parsed(from_matrix(sparse.coo_array(matrix)))
        (name, *others) = have - {"offset"} or {"offset"}
        if not others and arrays[name].ndim == 2:
            problem = from_matrix(arrays[name])
            offset = float(arrays["offset"]) if "offset" in have else 0.0
            return Parsed(problem.with_linear(problem.linear, offset))
        if "d" not in have or not have & {"U", "Q", "data"}:
            raise InvalidProblemError(
                "an .npz problem has arrays d and U (or Q), or one square matrix alone; this has "
                + ", ".join(sorted(have))
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
        problem = QuadraticProblem(
            linear,
            quadratic,
            float(arrays["offset"]) if "offset" in have else 0.0,
            arrays["groups"] if "groups" in have else None,
            arrays["counts"] if "counts" in have else None,
            labels,
        )
        return Parsed(problem)


def read_npy(contents: Contents) -> Parsed:
    """A square matrix Q as `numpy.save` writes it, of one triangle or both; E = x.Q.x."""
    _require_magic(contents, NPY_MAGIC, ".npy")
    return Parsed(from_matrix(np.load(io.BytesIO(contents.data), allow_pickle=False)))


def _require_magic(contents: Contents, magic: bytes, what: str) -> None:
    """Refuse what is no such file: NumPy would take it for a pickle and advise to run it."""
    if not contents.data.startswith(magic):
        raise InvalidProblemError(f"it is no {what} file")


def read_mtx(contents: Contents) -> Parsed:
    """A square matrix Q in Matrix Market's format, through SciPy; E = x.Q.x."""
    banner, sizes = _mtx_head(contents)
    layout, field, symmetry = banner[2:5]
    if field not in ("real", "integer", "double") or symmetry not in ("general", "symmetric"):
        raise InvalidProblemError(
            f"a {symmetry} matrix of {field} entries is no objective; real and integer ones are, "
            "general and symmetric (a pattern is a graph: write its edges, see rudy)"
        )
    rows, columns, *entries = sizes
    if rows != columns:
        raise InvalidProblemError(f"a matrix of a problem is square; this is {rows} x {columns}")
    number = rows * columns if layout == "array" else sum(entries)
    require_memory(100.0 * (rows + number), f"a matrix of {rows} rows", "split it")
    # SciPy's reader ends the process on some broken files.
    done = run_apart(
        "import scipy.io, scipy.sparse",
        "scipy.sparse.save_npz(answer, scipy.sparse.coo_array(scipy.io.mmread(given)))",
        contents.data,
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InvalidProblemError(f"SciPy's reader does not take it: {''.join(reason)[:200]}")
    return Parsed(from_matrix(sparse.load_npz(io.BytesIO(done.stdout))))


def _mtx_head(contents: Contents) -> tuple[list[str], list[int]]:
    """The words of the first line, and the numbers in the first one that is no comment."""
    lines = ["", ""] if contents.text is None else contents.text.whole.splitlines()
    banner = lines[0].lower().split()
    sizes = next((line.split() for line in lines[1:] if line.strip()[:1] not in ("", "%")), [])
    kinds = {"coordinate": 3, "array": 2}
    if banner[:2] != ["%%matrixmarket", "matrix"] or len(banner) != 5 or banner[2] not in kinds:
        raise InvalidProblemError(
            "line 1: expected '%%MatrixMarket matrix coordinate real general' or the like"
        )
    if len(sizes) != kinds[banner[2]] or not all(w.isascii() and w.isdigit() for w in sizes):
        raise InvalidProblemError(f"expected the sizes of the matrix, found {sizes[:5]}")
    return banner, [int(word[:18]) for word in sizes]


def write_npz(problem: QuadraticProblem) -> bytes:
    """NumPy's file with all there is of the problem, see `read_npz`."""
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
