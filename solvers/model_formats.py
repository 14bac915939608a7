"""Formats of whole models and of arrays: their readers and writers.

dimod's own files, LP files, bqp-json, NumPy's and Matrix Market's. A reader takes the `Contents` of
a file and answers with a `Parsed` problem.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import dimod
import numpy as np
from dimod.serialization.fileview import read_header
from scipy import sparse

from solvers.coefficients import from_matrix, from_spins, from_terms, labelled, scaled
from solvers.contents import Contents
from solvers.errors import InvalidProblemError
from solvers.memory import require_memory
from solvers.problem import QuadraticProblem
from solvers.quadratic import Dense, LowRank, Sparse
from solvers.text_formats import Parsed, Sense

BQM_MAGIC = b"DIMODBQM"
CQM_MAGIC = b"DIMODCQM"
NPY_MAGIC = b"\x93NUMPY"
#: First words of an LP file, in small letters.
LP_SENSES = {
    **dict.fromkeys(("minimize", "minimise", "minimum", "min"), Sense.MINIMISE),
    **dict.fromkeys(("maximize", "maximise", "maximum", "max"), Sense.MAXIMISE),
}
#: Heads of sections of an LP file that dimod's reader passes over, or has no place for.
_LP_FOREIGN = re.compile(
    r"(sos[12]?|semi-continuous|semis?|lazy constraints|user cuts|pwlobj|general constraints?)",
    re.IGNORECASE,
)


# -- dimod's --------------------------------------------------------------------------------


def read_bqm(contents: Contents) -> Parsed:
    """A BQM as `dimod.BinaryQuadraticModel.to_file` writes it."""
    _require_variables(io.BytesIO(contents.data))
    bqm = dimod.BinaryQuadraticModel.from_file(io.BytesIO(contents.data))
    return Parsed(QuadraticProblem.from_bqm(bqm))


def _require_variables(stream: io.BytesIO) -> None:
    """Refuse a BQM with couplings of variables it lacks: dimod's reader would write to them.

    The layout is that of `dimod.BinaryQuadraticModel.to_file`: the offset, for every variable
    where its couplings start and its bias, then pairs of neighbour and coupling.
    """
    header = read_header(stream, BQM_MAGIC).data
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


def read_cqm(contents: Contents) -> Parsed:
    """A CQM as `dimod.ConstrainedQuadraticModel.to_file` writes it; its constraints are counts."""
    # dimod's own reader trusts the indices in a file and would take this process with it.
    statement = "dimod.ConstrainedQuadraticModel.from_file(given)"
    _in_another_process("import dimod", statement, contents.data)
    cqm = dimod.ConstrainedQuadraticModel.from_file(io.BytesIO(contents.data))
    return Parsed(_in_order(QuadraticProblem.from_cqm(cqm)))


def _in_order(problem: QuadraticProblem) -> QuadraticProblem:
    """The problem with its groups numbered as their variables come: constraints come in any."""
    if problem.groups is None or problem.counts is None:
        return problem
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


def _in_another_process(
    imports: str, statement: str, data: bytes
) -> subprocess.CompletedProcess[bytes]:
    """Run ``statement``, which reads ``given`` and may write to ``answer``, in another process.

    Raises:
        InvalidProblemError: the process did not survive it.
    """
    # What is printed below Python goes to the error output, apart from the answer.
    program = (
        f"import io, os, sys; {imports}\n"
        "out = os.fdopen(os.dup(1), 'wb'); os.dup2(2, 1)\n"
        "given = io.BytesIO(sys.stdin.buffer.read()); answer = io.BytesIO()\n"
        f"{statement}\n"
        "out.write(answer.getvalue()); out.flush()"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode < 0:
        raise InvalidProblemError("its reader crashes on it: it is damaged")
    return done


def write_bqm(problem: QuadraticProblem) -> bytes:
    """The bytes of dimod's file of a BQM."""
    with _without_counts(problem).to_file() as stream:
        return stream.read()


def write_cqm(problem: QuadraticProblem) -> bytes:
    """The bytes of dimod's file of a CQM."""
    with problem.to_cqm().to_file() as stream:
        return stream.read()


def write_bqm_json(problem: QuadraticProblem) -> bytes:
    """The JSON of a BQM as dimod has it."""
    return json.dumps(_without_counts(problem).to_serializable()).encode()


def _without_counts(problem: QuadraticProblem) -> dimod.BinaryQuadraticModel:
    if problem.counts is not None:
        raise InvalidProblemError(
            "a BQM has no place for counts; write .npz or .cqm, or problem.without_counts()"
        )
    return problem.to_bqm()


# -- JSON -----------------------------------------------------------------------------------


def read_bqm_json(contents: Contents) -> Parsed:
    """A BQM as `dimod.BinaryQuadraticModel.to_serializable` makes it."""
    content = contents.json
    if content is None or content.get("type") != "BinaryQuadraticModel":
        raise InvalidProblemError(
            "this JSON is not a BinaryQuadraticModel serialised by dimod, and not bqp-json"
        )
    return Parsed(QuadraticProblem.from_bqm(dimod.BinaryQuadraticModel.from_serializable(content)))


def read_bqpjson(contents: Contents) -> Parsed:
    """bqp-json: E = scale * (sum of coeff b_i b_j + sum of coeff b_i + offset), spins or bits.

    (C. Coffrin and others, bqpjson, "The bqpjson Format".)
    """
    content = contents.json
    if content is None:
        raise InvalidProblemError("bqp-json is a JSON object")
    ids = _entry(content, "variable_ids", list, "the file")
    if any(type(one) is not int for one in ids) or len(set(ids)) != len(ids):
        raise InvalidProblemError("variable_ids of bqp-json are whole numbers, each once")
    domain = _entry(content, "variable_domain", str, "the file")
    if domain not in ("spin", "boolean"):
        raise InvalidProblemError(f"variable_domain {domain!r}: there are spin and boolean")
    place = {one: k for k, one in enumerate(ids)}
    linear = _terms(content, "linear_terms", ("id",), place)
    quadratic = _terms(content, "quadratic_terms", ("id_tail", "id_head"), place)
    if any(i == j for i, j in quadratic):
        raise InvalidProblemError("a quadratic term of bqp-json joins a variable to itself")
    pairs = [*((i, i) for (i,) in linear), *quadratic]
    row, col = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    value = np.array([*linear.values(), *quadratic.values()])
    offset = _entry(content, "offset", float, "the file")
    problem = labelled(from_terms(len(ids), row, col, value, offset), ids)
    problem = from_spins(problem) if domain == "spin" else problem
    return Parsed(scaled(problem, _entry(content, "scale", float, "the file")))


def _terms(
    content: Mapping[str, Any], name: str, keys: tuple[str, ...], place: Mapping[int, int]
) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = {}
    for number, term in enumerate(_entry(content, name, list, "the file")):
        where = f"{name}[{number}]"
        if not isinstance(term, dict):
            raise InvalidProblemError(f"{where} is no JSON object")
        ids = [_entry(term, key, int, where) for key in keys]
        unknown = [one for one in ids if one not in place]
        if unknown:
            raise InvalidProblemError(f"{where}: variable {unknown[0]} is not in variable_ids")
        key = tuple(place[one] for one in ids)
        if key in found:
            raise InvalidProblemError(f"{where} occurs a second time")
        found[key] = _entry(term, "coeff", float, where)
    return found


def _entry(content: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = content.get(key)
    if kind is float and type(value) in (int, float):
        return float(value)  # pyright: ignore[reportArgumentType]
    if type(value) is not kind:
        raise InvalidProblemError(f"{where} has no {key} of type {kind.__name__}")
    return value


# -- LP -------------------------------------------------------------------------------------


def read_lp(contents: Contents) -> Parsed:
    """An LP file, through `dimod.lp`: binary variables; constraints that are exact counts.

    Raises:
        InvalidProblemError: dimod cannot read it, or it has something else in it.
    """
    text = contents.text
    words = lp_words("" if text is None else text.whole)
    sense = LP_SENSES.get(words[0] if words else "")
    if sense is None:
        raise InvalidProblemError("an LP file begins with Minimize or Maximize")
    for line in [] if text is None else text.whole.splitlines():
        if _LP_FOREIGN.fullmatch(line.strip()):
            raise InvalidProblemError(
                f"its section {line.strip()!r} has no place in a binary quadratic problem; leave "
                "it out"
            )
    # A byte-order mark is not for dimod's reader.
    data = ("" if text is None else text.whole).encode()
    statement = "answer.write(dimod.lp.loads(given.read().decode()).to_file().read())"
    done = _in_another_process("import dimod, dimod.lp", statement, data)
    if done.returncode or not done.stdout.startswith(CQM_MAGIC):
        raise InvalidProblemError(
            "dimod's LP reader does not take it; products stand in one bracket, '[ 2 x * y ] / 2', "
            "sides of a constraint are sums and a number, and the last line is End"
        )
    cqm = dimod.ConstrainedQuadraticModel.from_file(io.BytesIO(done.stdout))
    for name in cqm.variables:
        kind, low, high = cqm.vartype(name), cqm.lower_bound(name), cqm.upper_bound(name)
        if kind is not dimod.BINARY:
            raise InvalidProblemError(
                f"variable {name!r} is {kind.name.lower()}, not binary; if it is 0 or 1, list it "
                "under Binary"
            )
        if (low, high) != (0, 1):
            raise InvalidProblemError(
                f"variable {name!r} has bounds {low:g} and {high:g}; put its value in instead"
            )
    # dimod has turned the sign of what is maximised.
    return Parsed(_in_order(QuadraticProblem.from_cqm(cqm)), sense)


def lp_words(text: str) -> list[str]:
    """The words of an LP file without comments, in small letters."""
    return " ".join(line.partition("\\")[0] for line in text.splitlines()).lower().split()


# -- arrays ---------------------------------------------------------------------------------


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
    done = _in_another_process(
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
