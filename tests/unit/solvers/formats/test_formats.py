"""Formats of problem files: which one a file gets, and what is refused with which way out."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import solvers.host.machine
from solvers import QuadraticProblem, read_problem, write_problem
from solvers.errors import (
    FileWarning,
    InvalidOptionError,
    InvalidProblemError,
    ProblemTooLargeError,
)
from solvers.formats.files import read_file
from solvers.formats.table import FORMATS, get_format
from solvers.study import read_instances

#: min of x.q.x is -5, at x = (1, 1, 1); its maximum 6, at (1, 0, 1). (MQLib, bin/README.)
SAMPLE = "3 5\n1 1 5\n2 2 3\n3 3 1\n1 2 -6\n2 3 -1\n"
PATH = "3 2\n1 2 3\n2 3 -2\n"
PAGE = (Path(__file__).parents[4] / "docs" / "formats.md").read_text(encoding="utf-8")
QPLIB = """! from the paper's appendix
NAME # the name
QBN # class
Minimize
3 # variables
5 # nonzeros in lower triangle of Q^0
1 1 2.0 5 lines row & column index & value
2 1 -1.0 |
2 2 2.0 |
3 2 -1.0 |
3 3 2.0 |
-0.2 default value for entries in b_0
1 # non default entries in b_0
2 -0.4 1 line of index & value
0.5 value of q^0
1.0E+20 infinity
"""
LP = """\\ a comment
Maximize
 obj: 2 a - 3 b + c + [ 4 a ^ 2 - 10 a * b ] / 2 + 7
Subject To
 one: a + b + c = 2
Binary
 a b c
End
"""
BQP = {
    "version": "1.0.0",
    "id": 0,
    "metadata": {},
    "variable_ids": [2, 4, 6],
    "variable_domain": "spin",
    "scale": 2.0,
    "offset": 1.0,
    "linear_terms": [{"id": 2, "coeff": 1.3}, {"id": 6, "coeff": -0.7}],
    "quadratic_terms": [{"id_tail": 2, "id_head": 4, "coeff": -0.2}],
}


def saved(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lowest(problem):
    states = itertools.product((0, 1), repeat=problem.num_variables)
    return min(problem.energy(state) for state in states if problem.feasible([state])[0])


def array_bytes(save, *arrays, **named):
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()


def zipped(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


UPPER = np.array([[5.0, -12, 0], [0, 3, -2], [0, 0, 1]])
#: name, contents, format, lowest energy by hand.
FAMILIES = [
    ("bqp50.1", SAMPLE, "orlib", -5),
    ("mqlib.txt", "# one\n3 5\n# two\n" + SAMPLE[4:], "orlib", -5),
    ("a.qubo", "3 2\n1 2 -3\n2 3 -2\n", "orlib", -10),
    ("G1.txt", PATH, "rudy", -3),
    ("g05_3.0", PATH, "rudy", -3),
    ("unweighted.txt", "3 2\n1 2\n2 3\n", "rudy", -2),
    ("a.mc", "c graph\n% more\n// more\n" + PATH, "rudy", -3),
    ("b.mc", "1 2 1\n2 3 1\n3 4 1\n", "edges", -3),
    ("a.qs", "# ObjectiveOffset 7\n# Vars Non-zeros\n" + SAMPLE, "qs", 2),
    ("qs-in.txt", "# ObjectiveOffset 7\n" + SAMPLE, "qs", 2),
    # 1.3 s1 - 0.7 s5 - 0.2 s1 s3 + 1.5 s1 s5 is lowest at s1 = -1, s5 = 1, s3 = -1. (bqpjson.)
    ("a.qh", "6 4\n1 1 1.3\n5 5 -0.7\n1 3 -0.2\n1 5 1.5\n", "qubist", -3.7),
    ("from-one.qh", "2 2\n1 1 1.0\n1 2 -2.0\n", "qubist", -3),
    ("a.coo", "# vartype: SPIN\n0 0 0.5\n0 1 -1.5\n", "coo", -2),
    ("b.coo", "# Vartype = spin, offset=4\n0 0 0.5\n0 1 -1.5\n", "coo", 2),
    ("q.qubo", "c scale : 2.0\nc offset : 2.5\np qubo 0 2 2 1\n0 0 1\n1 1 1\n0 1 -4\n", "qubo", 1),
    ("q.txt", "p qubo 0 2 2 1\n0 0 1\n1 1 1\n0 1 -4\n", "qubo", -2),
    # x1^2 + x2^2 + x3^2 - x1 x2 - x2 x3 - 0.2 x1 - 0.4 x2 - 0.2 x3 + 0.5; highest at (1, 0, 1).
    ("a.qplib", QPLIB, "qplib", 0.5),
    ("b.qplib", QPLIB.replace("Minimize", "maximize"), "qplib", -2.1),
    # Minus the largest of 2 a - 3 b + c + 2 a - 5 a b + 7 with two ones: a and c.
    ("a.lp", LP, "lp", -12),
    ("a.json", json.dumps(BQP), "bqpjson", 2 * (1 - 1.3 - 0.7 - 0.2)),
    ("a.npz", array_bytes(np.savez, Q=UPPER), "npz", -5),
    ("b.npz", array_bytes(np.savez, UPPER.astype(int), offset=2.0), "npz", -3),
    ("c.npz", array_bytes(sparse.save_npz, sparse.csr_array(UPPER)), "npz", -5),
    ("a.npy", array_bytes(np.save, (UPPER + UPPER.T) / 2), "npy", -5),
    (
        "a.mtx",
        "%%MatrixMarket matrix coordinate real symmetric\n% c\n3 3 5\n1 1 5\n2 2 3\n3 3 1\n"
        "2 1 -6\n3 2 -1\n",
        "mtx",
        -5,
    ),
    (
        "b.mtx",
        "%%MatrixMarket matrix coordinate integer general\n3 3 5\n1 1 5\n2 2 3\n3 3 1\n"
        "1 2 -12\n2 3 -2\n",
        "mtx",
        -5,
    ),
]


@pytest.mark.parametrize(("name", "content", "format", "best"), FAMILIES, ids=lambda v: str(v)[:12])
def test_each_family_is_read_as_what_it_is(tmp_path, name, content, format, best):
    path = saved(tmp_path, name, content)
    reading = read_file(path)
    assert reading.format.name == format
    assert lowest(reading.problem) == pytest.approx(best)
    assert lowest(read_file(path, format=format).problem) == pytest.approx(best)
    for packed, pack in (("x.gz", gzip.compress), ("x.bz2", bz2.compress), ("x", lzma.compress)):
        again = saved(tmp_path, packed.replace("x", name, 1), pack(path.read_bytes()))
        assert read_file(again).format.name == format


WRITTEN_AS_PEOPLE_HAVE_THEM = {
    "mark": b"\xef\xbb\xbf" + SAMPLE.replace("\n", "\r\n").encode(),
    "utf-16": SAMPLE.encode("utf-16"),
    "old Mac": SAMPLE.replace("\n", "\r").encode(),
    "tabs": SAMPLE.replace(" ", "\t").encode(),
    "commas": SAMPLE.replace(" ", ", ").encode(),
    "Fortran": b"3 5\n1 1 5.0D+00\n2 2 3.0d0\n3 3 .1D+01\n1 2 -6.D0\n2 3 -1\n",
    "Matlab": b"3 5\n" + b"1.0000e+00 1.0000e+00 5\n2 2 3\n3 3 1\n1 2 -6.0000e+00\n2 3 -1\n",
    "behind": b"3 5 # n m\n1 1 5 % a\n2 2 3 // b\n3 3 1 ; c\n1 2 -6 ! d\n2 3 -1#e\n",
    "between": b"# a\n\n3 5\n% b\n1 1 5\n// c\n2 2 3\nc d\n3 3 1\n;e\n1 2 -6\n\n2 3 -1",
    "Latin-1": "# Käse\n".encode("latin-1") + SAMPLE.encode(),
    "zip": zipped(**{"a.txt": SAMPLE, "__MACOSX/a.txt": "x"}),
    "twice": gzip.compress(zipped(**{"a.txt": SAMPLE})),
}


@pytest.mark.parametrize("way", WRITTEN_AS_PEOPLE_HAVE_THEM)
def test_the_same_numbers_in_other_clothes(tmp_path, way):
    path = saved(tmp_path, "bqp.txt", WRITTEN_AS_PEOPLE_HAVE_THEM[way])
    assert lowest(read_problem(path, maximize=False)) == -5
    assert lowest(read_problem(path, maximize=True)) == -6


@pytest.mark.parametrize(
    "comment",
    [
        *("offset=4", "Offset: 4", "offset : 4.0", "ObjectiveOffset 4", "objective offset = 4D0"),
        *("constant term: 4", "const = 4", "CONSTANT 4", "n=3, offset=4"),
    ],
)
def test_a_constant_in_a_comment_counts(tmp_path, comment):
    path = saved(tmp_path, "a.coo", f"# vartype=BINARY\n# {comment}\n0 0 -1\n")
    assert lowest(read_problem(path)) == 3
    qubo = saved(tmp_path, "a.qubo", f"c {comment}\np qubo 0 1 1 0\n0 0 -1\n")
    assert lowest(read_problem(qubo)) == 3


def test_what_is_left_open_is_said_once(tmp_path):
    path = saved(tmp_path, "bqp.txt", SAMPLE)
    with pytest.warns(FileWarning, match="which does not say its sense") as caught:
        read_problem(path)
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    with pytest.warns(FileWarning, match="taken as 0 and 1"):
        read_problem(saved(tmp_path, "a.coo", "0 0 1\n"))
    words = "# the constant 17 is left out\n"
    with pytest.warns(FileWarning, match="line 1: the comment 'the constant 17 is left out'"):
        read_problem(saved(tmp_path, "b.txt", words + SAMPLE), maximize=True)
    with pytest.warns(FileWarning, match="does not say its sense"):
        (instance,) = read_instances(path)
    assert instance.name == "bqp"
    assert lowest(read_instances(path, maximize=True, format="orlib")[0].problem) == -6


OPEN = [
    ("a.txt", PATH, ("orlib", "rudy")),
    ("a.dat", PATH, ("orlib", "rudy")),
    ("edges.txt", "1 2 3\n2 3 -2\n", ("coo", "edges")),
    ("edges", "1 1 3\n2 3 -2\n", ("coo", "edges")),
    ("a.qubo", "0 0 1\n0 1 -4\n", ("coo", "qubo", "orlib")),
    ("G1.txt", SAMPLE, ("orlib", "rudy")),
    ("a.mc", SAMPLE, ("orlib", "rudy")),
    ("a.coo", SAMPLE, ("orlib", "coo")),
]


@pytest.mark.parametrize(("name", "content", "names"), OPEN)
def test_a_file_of_two_formats_is_refused_with_both_names(tmp_path, name, content, names):
    path = saved(tmp_path, name, content)
    with pytest.raises(InvalidProblemError, match="say which, as in --format") as caught:
        read_problem(path)
    assert all(one in str(caught.value) for one in names)
    assert "\n" not in str(caught.value)


def test_the_format_can_be_said(tmp_path):
    path = saved(tmp_path, "a.txt", PATH)
    assert lowest(read_problem(path, format="rudy")) == -3
    assert lowest(read_problem(path, format="orlib", maximize=False)) == -4
    assert lowest(read_problem(path, format="orlib", maximize=True)) == -6
    with pytest.raises(InvalidOptionError, match=r"no format is called 'nix'; there are coo, qubo"):
        read_problem(path, format="nix")


@pytest.mark.parametrize("name", [one.name for one in FORMATS])
def test_a_file_of_another_format_is_refused_by_each(tmp_path, name):
    path = saved(tmp_path, "a.txt", "hello world\n\x00")
    with pytest.raises(InvalidProblemError, match=r"a\.txt"):
        read_problem(path, format=name)


REFUSED = [
    ("three.txt", "3 5 0\n" + SAMPLE[4:], "header of three numbers: keep the first two"),
    ("three.mc", "3 2 1\n" + PATH[4:], "header of three numbers"),
    ("loop.mc", "1 1 3\n2 3 -2\n", "line 1: '1 1 3' joins a node to itself"),
    ("twice.mc", "1 2 3\n2 1 -2\n", "line 2: entry 2 1 occurs a second time"),
    ("qubist.txt", "6 2\n0 0 1.3\n0 3 -0.2\n", "--format qubist"),
    ("short.qubo", "p qubo 0 3 3 2\n0 0 1\n1 1 1\n2 2 1\n0 1 -4\n", "line 1: promises 3 nodes"),
    ("twice.qubo", "p qubo 0 2 0 2\n0 1 1\n1 0 1\n", "line 3: entry 1 0 occurs a second time"),
    ("form.qubo", "p qubo 0 2 0\n0 1 1\n", "expected 'p qubo 0 maxNodes nNodes nCouplers'"),
    ("two.coo", "# offset: 1\n# offset: 2\n0 0 1\n", "line 2: a second offset"),
    ("none.coo", "# offset: much\n0 0 1\n", "line 1: the offset 'much' is no finite number"),
    ("vartype.coo", "# vartype: INTEGER\n0 0 1\n", "vartype must be SPIN or BINARY, not 'INTEGER'"),
    ("spins.txt", "# vartype=SPIN\n" + SAMPLE, "an OR-Library file has variables 0 and 1"),
    ("cut.mc", "# offset = 3\n" + PATH, "a MaxCut has no place for it"),
    ("edge.col", "p edge 3 2\ne 1 2\ne 2 3\n", "line 1: expected 'p qubo"),
    ("other.qubo", "MAXIMIZE\n2.0\n0 0 1.0\n", "in no known format; its first line is 'MAXIMIZE'"),
    ("dense.csv", "1,2,0,0\n2,1,0,0\n0,0,1,0\n0,0,0,1\n", "a matrix? save it as .npy"),
    ("only.txt", "# nothing\n", "comments only"),
    ("dict.json", '{"0,1": -2}', "not a BinaryQuadraticModel"),
    ("pattern.mtx", "%%MatrixMarket matrix coordinate pattern symmetric\n3 3 1\n2 1\n", "pattern"),
    ("wide.mtx", "%%MatrixMarket matrix array real general\n1 2\n1\n2\n", "square; this is 1 x 2"),
    (
        "ising.npz",
        array_bytes(np.savez, h=np.ones(2), J=np.ones((2, 2))),
        "one square matrix alone",
    ),
    ("wide.npy", array_bytes(np.save, np.ones((2, 3))), r"square; this has shape (2, 3)"),
    ("complex.npy", array_bytes(np.save, np.ones((2, 2)) * 1j), "holds complex128"),
    ("two.zip", zipped(**{"a.txt": SAMPLE, "b.txt": SAMPLE}), "a zip file of 2 files"),
    ("a.tar.gz", gzip.compress(b"\0" * 257 + b"ustar" + b"\0" * 250), "a tar archive"),
    ("a.txt.zst", b"\x28\xb5\x2f\xfd....", "packed with zstd"),
    ("real.lp", LP.replace("Binary\n a b c\n", ""), "variable 'a' is real, not binary"),
    ("int.lp", LP.replace("Binary", "General"), "variable 'a' is integer, not binary"),
    ("less.lp", LP.replace("= 2", "<= 2"), "constraint 'one' is not an exact count"),
    ("bound.lp", LP.replace("Binary", "Bounds\n a = 1\nBinary"), "variable 'a' has bounds 1 and 1"),
    ("sos.lp", LP.replace("End", "SOS\n s: S1:: a:1\nEnd"), "its section 'SOS' has no place"),
    ("cut.lp", LP[:60], "dimod's LP reader does not take it"),
    ("int.qplib", QPLIB.replace("QBN", "QIN"), "QPLIB's class 'QIN'"),
    ("quad.qplib", QPLIB.replace("QBN", "QBQ"), "QPLIB's class 'QBQ'"),
    ("cut.qplib", QPLIB[:192], "the file ends where an entry should be"),
    ("out.qplib", QPLIB.replace("3 2 -1", "4 2 -1"), "line 10: index 4 2 is outside"),
    ("ids.json", json.dumps(BQP | {"variable_ids": [2, 4]}), "variable 6 is not in variable_ids"),
    ("scale.json", json.dumps(BQP | {"scale": "2"}), "no scale of type float"),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), REFUSED, ids=[name for name, *_ in REFUSED]
)
def test_what_has_no_place_is_refused_by_name(tmp_path, name, content, message):
    path = saved(tmp_path, name, content)
    with pytest.raises(InvalidProblemError) as caught:
        read_problem(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sense_that_the_file_says_is_not_overruled(tmp_path):
    for name, content in (("a.lp", LP), ("a.mc", PATH)):
        path = saved(tmp_path, name, content)
        assert read_file(path, maximize=True).problem.energy([1, 0, 1]) == read_file(
            path
        ).problem.energy([1, 0, 1])
        with pytest.raises(InvalidOptionError, match="is one to maximise"):
            read_problem(path, maximize=False)


def test_counts_in_a_qplib_file(tmp_path):
    counted = "N\nQBL\nminimize\n3\n1\n1\n2 1 -3\n1.0\n0\n0\n3\n1 1 1\n1 2 1\n1 3 1\n1e30\n"
    path = saved(tmp_path, "a.qplib", counted + "2\n0\n2\n0\n")
    problem = read_problem(path)
    assert problem.counts.tolist() == [2]
    assert lowest(problem) == 2 - 3
    path = saved(tmp_path, "b.qplib", counted + "1\n0\n2\n0\n")
    with pytest.raises(InvalidProblemError, match="constraint 1 is an inequality"):
        read_problem(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_contents_that_would_not_fit_are_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(solvers.host.machine, "available_memory", lambda: 2.0**24)
    path = saved(tmp_path, "a.txt.x", pack(bytes(2**22)))
    assert path.stat().st_size < 2**13
    with pytest.raises(ProblemTooLargeError, match=r"a\.txt\.x: its contents are more than"):
        read_problem(path)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, what in (
        (tmp_path, "a folder"),
        (tmp_path / "fifo", "a pipe"),
        ("/dev/zero", "a pipe, socket or device"),
    ):
        with pytest.raises(InvalidProblemError, match=what):
            read_problem(path)


def test_a_text_without_linear_terms_comes_back_as_itself(tmp_path):
    problem = QuadraticProblem([0.0, 0.0, 0.0], [[0, -1, 0], [-1, 0, 2], [0, 2, 0]])
    write_problem(problem, tmp_path / "a.txt")
    back = read_problem(tmp_path / "a.txt", maximize=False)
    assert back.energy([1, 1, 0]) == problem.energy([1, 1, 0]) == -1
    nothing = QuadraticProblem([0.0, 0.0], np.zeros((2, 2)))
    write_problem(nothing, tmp_path / "b.txt")
    assert read_problem(tmp_path / "b.txt", maximize=False).num_variables == 2


def test_labels_that_a_numbered_format_has_no_place_for(tmp_path):
    problem = QuadraticProblem([1.0, 2.0], np.zeros((2, 2)), labels=[3, 7])
    for name in ("a.txt", "a.qubo", "a.qs"):
        with pytest.raises(InvalidProblemError, match=r"write \.coo"):
            write_problem(problem, tmp_path / name)
        assert not (tmp_path / name).exists()
    write_problem(problem, tmp_path / "a.coo")
    assert read_problem(tmp_path / "a.coo").variables == (3, 7)


def test_formats_that_are_only_read_say_so(tmp_path):
    problem = QuadraticProblem([1.0], [[0.0]])
    with pytest.raises(InvalidOptionError, match="format lp is only read; there are coo"):
        write_problem(problem, tmp_path / "a.txt", format="lp")
    with pytest.raises(InvalidProblemError, match=r"lzma is not written; use \.gz"):
        write_problem(problem, tmp_path / "a.txt.lzma")
    write_problem(problem, tmp_path / "a.dat.xz", format="qs")
    assert read_problem(tmp_path / "a.dat.xz").energy([1]) == 1.0


def test_names_are_unique_and_on_the_page():
    names = [one.name for one in FORMATS]
    assert len(set(names)) == len(names)
    for one in FORMATS:
        assert get_format(one.name) is one
        assert one.to_json()["written"] == (one.write is not None)
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{one.name}` |"))
        assert row.split("|")[2].split() == list(one.suffixes)
        assert ("yes" in row.split("|")[7]) == (one.write is not None)
        assert ("yes" in row.split("|")[6]) == one.counts
