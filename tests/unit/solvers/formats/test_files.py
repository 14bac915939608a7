"""Reading and writing problems: golden files with known energies, and files that are wrong."""

import gzip
import itertools
from pathlib import Path

import dimod
import numpy as np
import pytest

from solvers import Dense, LowRank, QuadraticProblem, Sparse
from solvers.errors import InvalidProblemError
from solvers.formats.files import read_problem, write_problem

GOLDEN = Path(__file__).parents[3] / "golden" / "problems"
SHARED = Path(__file__).parents[5] / "shared" / "data" / "qubo"


def binary_energy(x):
    return -x[0] + 2 * x[1] + 0.5 * x[2] + 3 * x[0] * x[1] - 4 * x[1] * x[2]


def spin_energy(x):
    s = [2 * value - 1 for value in x]
    return 0.5 * s[0] - s[0] * s[1] + 2 * s[1] * s[2]


def bqp_objective(x):
    # Symmetric matrix: off-diagonal entries count twice.
    return -x[0] + 2 * x[1] + x[2] + 2 * (3 * x[0] * x[1] - 4 * x[1] * x[2])


def minus_cut(x):
    edges = [(0, 1, 1), (1, 2, 2), (0, 2, -1), (2, 3, 5)]
    return -sum(w for i, j, w in edges if x[i] != x[j])


CASES = [
    ("tiny.coo", False, 3, binary_energy),
    ("tiny.coo", True, 3, lambda x: -binary_energy(x)),
    ("tiny-spin.coo", False, 3, spin_energy),
    ("tiny.qubo", False, 4, lambda x: binary_energy(x) + 1.25),
    ("bqp-tiny.txt", False, 3, bqp_objective),
    ("bqp-tiny.txt", True, 3, lambda x: -bqp_objective(x)),
    ("triangle.gset", None, 4, minus_cut),
    ("triangle.gset", True, 4, minus_cut),
]


@pytest.mark.parametrize(("name", "maximize", "size", "energy"), CASES)
def test_golden_files_have_their_energies_at_every_state(name, maximize, size, energy):
    problem = read_problem(GOLDEN / name, maximize=maximize)
    states = list(itertools.product((0, 1), repeat=size))
    assert problem.num_variables == size
    np.testing.assert_allclose(problem.energies(states), [energy(x) for x in states])


def test_a_count_is_put_on_the_problem():
    problem = read_problem(GOLDEN / "bqp-tiny.txt", count=2, maximize=False)
    assert problem.counts.tolist() == [2]
    with pytest.raises(InvalidProblemError, match="3 variables; its count cannot be 4"):
        read_problem(GOLDEN / "bqp-tiny.txt", count=4, maximize=False)


def test_gzip_is_seen_through(tmp_path):
    packed = tmp_path / "bqp-tiny.txt.gz"
    packed.write_bytes(gzip.compress((GOLDEN / "bqp-tiny.txt").read_bytes()))
    assert read_problem(packed, maximize=False).energy([1, 1, 0]) == bqp_objective([1, 1, 0])


def test_a_fisher_block_stays_low_rank(tmp_path):
    rng = np.random.default_rng(0)
    factor, linear = rng.normal(size=(3, 6)), rng.normal(size=6)
    path = tmp_path / "block.npz"
    np.savez(path, U=factor.astype(np.float16), d=linear.astype(np.float32), k=[3], meta="{}")
    problem = read_problem(path, count=3)
    assert isinstance(problem.quadratic, LowRank)
    x = np.array([1, 0, 1, 0, 0, 1])
    expected = linear.astype(np.float32).astype(np.float64) @ x
    expected += 0.5 * np.square(factor.astype(np.float16).astype(np.float64) @ x).sum()
    assert problem.energy(x) == pytest.approx(expected, rel=1e-12)
    negative = read_problem(path, maximize=True)
    assert negative.energy(x) == pytest.approx(-expected, rel=1e-12)


def test_a_large_sparse_file_stays_sparse(tmp_path):
    path = tmp_path / "path.gset"
    path.write_text("500 499\n" + "".join(f"{i} {i + 1} 1\n" for i in range(1, 500)))
    problem = read_problem(path)
    assert isinstance(problem.quadratic, Sparse)
    assert problem.energy(np.arange(500) % 2) == -499


def test_unused_indices_become_labels_where_no_size_is_declared(tmp_path):
    path = tmp_path / "gaps.coo"
    path.write_text("# vartype=BINARY\n3 3 1\n7 3 -2\n")
    assert read_problem(path).variables == (3, 7)


def test_dimods_own_files(tmp_path):
    bqm = dimod.BinaryQuadraticModel({"b": 1.0, "a": -2.0}, {("a", "b"): 3.0}, 0.5, "SPIN")
    path = tmp_path / "model.bqm"
    with bqm.to_file() as file:
        path.write_bytes(file.read())
    problem = read_problem(path)
    for spins in itertools.product((-1, 1), repeat=2):
        sample = dict(zip(problem.variables, spins, strict=True))
        assert problem.energy([(s + 1) // 2 for s in spins]) == pytest.approx(bqm.energy(sample))


def test_a_cqm_keeps_its_counts(tmp_path):
    problem = QuadraticProblem(
        [1.0, -1.0, 2.0, 0.0], np.zeros((4, 4)), groups=[0, 0, 1, 1], counts=[1, 2]
    )
    write_problem(problem, tmp_path / "p.cqm")
    back = read_problem(tmp_path / "p.cqm")
    assert back.counts.tolist() == [1, 2]
    assert back.groups.tolist() == [0, 0, 1, 1]


BAD = [
    ("empty.txt", "", "the file is empty"),
    ("blank.txt", " \n\n", "the file is empty"),
    ("word.coo", "0 0 1\n0 one 2\n", "line 2: expected 'i j value', found '0 one 2'"),
    ("short.coo", "0 0 1\n0 1\n", "line 2: expected 'i j value'"),
    ("nan.coo", "0 0 nan\n", "line 1: expected 'i j value'"),
    ("fraction.coo", "0 0.5 1\n", "line 1: expected"),
    ("bqp.txt", "2 1\n1 3 4\n", "line 2: index 1 or 3 is outside 1..2"),
    ("zero.txt", "2 1\n0 1 4\n", "line 2: index 0 or 1 is outside 1..2"),
    ("many.txt", "2 2\n1 1 4\n", "line 1: promises 2 entries, the file has 1"),
    ("twice.txt", "2 3\n1 2 4\n2 2 1\n2 1 4\n", "line 4: entry 2 1 occurs a second time"),
    ("several.txt", "10\n2 1\n1 1 4\n", "line 1: one number '10': a collection"),
    ("prose.txt", "hello world\n", "in no known format; its first line is 'hello world'"),
    ("header.qubo", "p cnf 1 2\n0 0 1\n", "line 1: expected 'p qubo"),
    ("range.qubo", "p qubo 0 2 1 1\n0 2 1\n", "line 2: index 0 or 2 is outside 0..1"),
    ("other.json", '{"type": "something"}', "not a BinaryQuadraticModel"),
    ("broken.json", '{"type": ', "cannot read"),
    ("short.npz", b"PK\x03\x04rubbish", "cannot read"),
    ("short.bqm", b"DIMODBQM\x02", "cannot read"),
    ("binary.txt", b"\xff\xfe\x00\x01", "neither text nor any known binary format"),
    ("broken.gz", b"\x1f\x8b\x08\x00rubbish", "cannot read"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[name for name, *_ in BAD])
def test_a_wrong_file_is_refused_with_its_name_and_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidProblemError) as caught:
        read_problem(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(InvalidProblemError, match=r"cannot read .*nowhere.txt: No such file"):
        read_problem("nowhere.txt")


def test_an_npz_without_the_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", a=[1])
    with pytest.raises(InvalidProblemError, match="has arrays d and U"):
        read_problem(tmp_path / "x.npz")


def test_writing_what_a_format_cannot_hold(tmp_path):
    counted = QuadraticProblem([1.0, 2.0], np.zeros((2, 2)), counts=1)
    named = QuadraticProblem([1.0, 2.0], np.zeros((2, 2)), labels=["a", "b"])
    shifted = QuadraticProblem([1.0, 2.0], np.zeros((2, 2)), 3.0)
    for problem, name, message in (
        (counted, "p.coo", "no place for counts"),
        (counted, "p.bqm", "no place for counts"),
        (named, "p.coo", "whole numbers as labels"),
        (shifted, "p.txt", "no place for an offset"),
        (shifted, "p.gset", "not a MaxCut"),
        (shifted, "p.docx", "no format has this suffix"),
    ):
        with pytest.raises(InvalidProblemError, match=message):
            write_problem(problem, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_dense_matrix_survives_npz_with_everything(tmp_path):
    problem = QuadraticProblem(
        [1.0, -2.0, 0.5], np.diag([1.0, 2.0, 3.0]), 7.0, [0, 1, 1], [1, 1], ["x", 5, "z"]
    )
    write_problem(problem, tmp_path / "p.npz")
    back = read_problem(tmp_path / "p.npz")
    assert isinstance(back.quadratic, Dense)
    assert back.labels == ("x", 5, "z")
    assert back.counts.tolist() == [1, 1]
    assert back.energy([1, 0, 1]) == problem.energy([1, 0, 1])


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason=f"no shared data at {SHARED}")
@pytest.mark.parametrize(
    ("name", "maximize", "size", "entries"),
    [
        ("orlib/bqp50.1.txt.gz", True, 50, 111),
        ("orlib/gka1f.txt.gz", False, 500, 12917),
        ("gset/G43.txt.gz", True, 1000, 9990),
    ],
)
def test_published_instances(name, maximize, size, entries):
    problem = read_problem(SHARED / name, maximize=maximize)
    matrix = problem.quadratic.dense()
    assert problem.num_variables == size
    upper = np.count_nonzero(np.triu(matrix, k=1))
    own = 0 if "gset" in name else np.count_nonzero(problem.linear)
    assert upper + own == entries


PAIR = np.dtype([("outvar", np.int32), ("bias", np.float64)])


def star_bytes() -> bytearray:
    """A star of four variables as dimod writes it; its middle became the second variable."""
    star = dict.fromkeys([(0, 3), (1, 3), (2, 3)], 1.0)
    with dimod.BQM(dict.fromkeys(range(4), 1.0), star, 0.0, "BINARY").to_file() as file:
        return bytearray(file.read())


@pytest.mark.parametrize("neighbour", [-(2**30), -1, 4, 2**30])
@pytest.mark.parametrize("place", range(3))
def test_a_file_that_couples_variables_it_lacks_is_refused(neighbour, place, tmp_path):
    """In this process dimod would write wherever they point."""
    content = star_bytes()
    at = content.index(np.array([(v, 1.0) for v in (0, 2, 3)], PAIR).tobytes())
    at += place * PAIR.itemsize
    content[at : at + 4] = neighbour.to_bytes(4, "little", signed=True)
    path = tmp_path / "damaged.bqm"
    path.write_bytes(content)
    with pytest.raises(InvalidProblemError, match="couples variables beyond its 4"):
        read_problem(path)


@pytest.mark.parametrize(("variable", "start"), [(0, -2), (1, 7), (2, -1), (3, 1)])
def test_a_file_whose_couplings_are_in_no_order_is_refused(variable, start, tmp_path):
    content = star_bytes()
    rows = np.dtype([("nidx", np.int32), ("bias", np.float64)])
    linear = np.array([(at, 1.0) for at in (0, 1, 4, 5)], rows)
    at = content.index(linear.tobytes()) + variable * rows.itemsize
    content[at : at + 4] = start.to_bytes(4, "little", signed=True)
    path = tmp_path / "damaged.bqm"
    path.write_bytes(content)
    with pytest.raises(InvalidProblemError, match="no order"):
        read_problem(path)
