"""One problem in every dialect, written here by hand: the same energy at every state."""

import bz2
import gzip
import io
import itertools
import json
import lzma

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solvers.formats.files import read_file

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def objectives(draw):
    """Size, {(i, j): value} with i <= j, and a constant: E = constant + sum of value x_i x_j."""
    size = draw(st.integers(2, 5))
    pairs = list(itertools.combinations_with_replacement(range(size), 2))
    values = draw(st.lists(st.integers(-9, 9), min_size=len(pairs), max_size=len(pairs)))
    terms = {pair: value for pair, value in zip(pairs, values, strict=True) if value}
    # A first coupling and diagonal entry leave no doubt about what kind of file it is.
    terms = {(0, 0): 3, (0, 1): -4, **{pair: v for pair, v in terms.items() if pair != (0, 1)}}
    return size, terms, draw(st.integers(-9, 9))


def energy(objective, x):
    _, terms, constant = objective
    return constant + sum(value * x[i] * x[j] for (i, j), value in terms.items())


def as_spins(objective):
    """The same with x = (s + 1) / 2: fields, couplings and a constant, in exact eighths."""
    size, terms, constant = objective
    fields, couplings = [0.0] * size, {}
    for (i, j), value in terms.items():
        constant += value / 2 if i == j else value / 4
        if i == j:
            fields[i] += value / 2
        else:
            couplings[i, j] = value / 4
            fields[i] += value / 4
            fields[j] += value / 4
    return fields, couplings, constant


def lines(*rows):
    return "".join(f"{row}\n" for row in rows)


def own_and_pairs(terms):
    own = sum(i == j for i, j in terms)
    return own, len(terms) - own


def coo(objective):
    size, terms, constant = objective
    every = {(i, i): 0 for i in range(size)} | terms
    return lines(
        "# vartype: BINARY",
        f"# offset: {constant}",
        *(f"{j} {i} {value}" for (i, j), value in every.items()),
    )


def spin_coo(objective):
    fields, couplings, constant = as_spins(objective)
    return lines(
        f"# vartype=SPIN offset={constant}",
        *(f"{i} {i} {value!r}" for i, value in enumerate(fields)),
        *(f"{i} {j} {value!r}" for (i, j), value in couplings.items()),
    )


def qubist(objective):
    fields, couplings, constant = as_spins(objective)
    return lines(
        f"# offset : {constant}",
        f"{len(fields)} {len(fields) + len(couplings)}",
        *(f"{i} {i} {value!r}" for i, value in enumerate(fields)),
        *(f"{i} {j} {value!r}" for (i, j), value in couplings.items()),
    )


def qubo(objective):
    size, terms, constant = objective
    own, pairs = own_and_pairs(terms)
    return lines(
        "c scale : 4.0",
        f"c offset : {constant / 4}",
        f"p qubo 0 {size} {own} {pairs}",
        *(f"{i} {j} {value / 4}" for (i, j), value in terms.items()),
    )


def halved(terms, base=1):
    return [
        f"{i + base} {j + base} {value if i == j else value / 2}" for (i, j), value in terms.items()
    ]


def qs(objective):
    size, terms, constant = objective
    return lines(f"# ObjectiveOffset {constant}", f"{size} {len(terms)}", *halved(terms))


def mqlib(objective):
    size, terms, constant = objective
    return lines(f"# offset : {constant}", f"{size} {len(terms)}", "# terms", *halved(terms))


def lp(objective, sign=1):
    size, terms, constant = objective
    own = [f"{sign * value:+d} x{i}" for (i, j), value in terms.items() if i == j]
    pairs = [f"{2 * sign * v:+d} x{i} * x{j}" for (i, j), v in terms.items() if i != j]
    names = " ".join(f"x{i}" for i in range(size))
    return lines(
        "Minimize" if sign > 0 else "Maximize",
        f" obj: {' '.join(own)} + [ {' '.join(pairs)} ] / 2 {sign * constant:+d}",
        "Subject To",
        "Binary",
        f" {names}",
        "End",
    )


def qplib(objective, sign=1):
    size, terms, constant = objective
    pairs = {pair: value for pair, value in terms.items() if pair[0] != pair[1]}
    own = {i: value for (i, j), value in terms.items() if i == j}
    # One linear term sits on the diagonal of Q, where it is halved.
    first = own.pop(0)
    return lines(
        *("NAME", "QBB", "minimize" if sign > 0 else "maximize", f"{size} # n", len(pairs) + 1),
        f"1 1 {2 * sign * first}",
        *(f"{j + 1} {i + 1} {sign * value} |" for (i, j), value in pairs.items()),
        *("0.0", len(own), *(f"{i + 1} {sign * value}" for i, value in own.items())),
        *(sign * constant, "1.0E+30", "0.0", 0, "0.0", 0, 0, 0),
    )


def bqpjson(objective):
    fields, couplings, constant = as_spins(objective)
    content = {
        "variable_domain": "spin",
        "variable_ids": list(range(len(fields))),
        "scale": 0.5,
        "offset": 2 * constant,
        "linear_terms": [{"id": i, "coeff": 2 * h} for i, h in enumerate(fields)],
        "quadratic_terms": [
            {"id_tail": i, "id_head": j, "coeff": 2 * J} for (i, j), J in couplings.items()
        ],
    }
    return json.dumps(content)


def upper(objective):
    size, terms, _ = objective
    matrix = np.zeros((size, size))
    for (i, j), value in terms.items():
        matrix[i, j] = value
    return matrix


def npy(objective):
    stream = io.BytesIO()
    np.save(stream, (upper(objective) + upper(objective).T) / 2)
    return stream.getvalue()


def npz(objective):
    stream = io.BytesIO()
    np.savez(stream, Q=upper(objective), offset=objective[2])
    return stream.getvalue()


def mtx(objective):
    size, terms, _ = objective
    return lines(
        "%%MatrixMarket matrix coordinate integer general",
        f"{size} {size} {len(terms)}",
        *(f"{i + 1} {j + 1} {value}" for (i, j), value in terms.items()),
    )


#: name of a file, its contents, whether its format has a constant.
DIALECTS = [
    *[("a.coo", coo, True), ("spin.coo", spin_coo, True), ("a.qh", qubist, True)],
    *[("a.qubo", qubo, True), ("a.qs", qs, True), ("a.txt", mqlib, True)],
    *[("a.qplib", qplib, True), ("a.json", bqpjson, True), ("a.npz", npz, True)],
    *[("a.npy", npy, False), ("a.mtx", mtx, False)],
    ("max.qplib", lambda objective: qplib(objective, sign=-1), True),
]


def assert_same(path, objective, has_constant):
    problem = read_file(path).problem
    lost = 0 if has_constant else objective[2]
    # LP files name their variables, x0 to x4, and have them in the order in which they occur.
    order = [int(str(label).removeprefix("x")) for label in problem.variables]
    assert sorted(order) == list(range(objective[0]))
    for x in itertools.product((0, 1), repeat=objective[0]):
        found = problem.energy([x[i] for i in order])
        assert found + lost == pytest.approx(energy(objective, x))


@pytest.mark.parametrize(("name", "write", "has_constant"), DIALECTS, ids=lambda v: str(v)[:9])
@QUICK
@given(objective=objectives())
def test_a_dialect_has_the_energies_of_its_objective(
    tmp_path, name, write, has_constant, objective
):
    content = write(objective)
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_same(path, objective, has_constant)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(objective=objectives(), sign=st.sampled_from([1, -1]))
def test_lp_files(tmp_path, objective, sign):
    # In a process of its own each time, which takes a second.
    (tmp_path / "a.lp").write_text(lp(objective, sign))
    assert_same(tmp_path / "a.lp", objective, has_constant=True)


CLOTHES = {
    "mark": lambda text: "\ufeff" + text,
    "returns": lambda text: text.replace("\n", "\r\n"),
    "tabs": lambda text: text.replace(" ", "\t"),
    "commas": lambda text: "".join(
        line if line[:1] in "#cp" else line.replace(" ", ",")
        for line in text.splitlines(keepends=True)
    ),
    "comments": lambda text: text.replace("\n", "\n% 3 4 5\n"),
    "behind": lambda text: "".join(
        line if line[:1] in "#cp" else line.replace("\n", " // 3\n")
        for line in text.splitlines(keepends=True)
    ),
    "blanks": lambda text: "\n\n" + text.replace("\n", "\n \n"),
}
PACKINGS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    objective=objectives(),
    dialect=st.sampled_from([one for one in DIALECTS if one[0].endswith((".coo", ".qs", ".qubo"))]),
    clothes=st.lists(st.sampled_from(sorted(CLOTHES)), unique=True, max_size=3),
    packing=st.sampled_from(sorted(PACKINGS)),
)
def test_clothes_and_packings_change_nothing(tmp_path, objective, dialect, clothes, packing):
    name, write, has_constant = dialect
    text = write(objective)
    for one in sorted(clothes, key=("mark", "returns").count):
        text = CLOTHES[one](text)
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(PACKINGS[packing](text.encode()))
    assert_same(path, objective, has_constant)
