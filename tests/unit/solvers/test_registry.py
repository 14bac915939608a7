"""Names, what they stand for, and what happens when they stand for nothing."""

import sys
import types
from importlib.metadata import EntryPoint

import dimod
import numpy as np
import pytest

from solvers import registry
from solvers.ask import CountsByModel, configured, counting
from solvers.errors import (
    InvalidOptionError,
    MissingPackageError,
    SamplerFailedError,
    UnknownOptionError,
    UnknownSamplerError,
)
from solvers.foreign.penalty import CardinalityPenalty
from solvers.problem.problem import QuadraticProblem
from solvers.registry import SamplerEntry, get_sampler, list_samplers

ASKED_FOR = {
    "relax", "exact", "enumerate", "swap-anneal", "swap-tabu", "greedy", "random", "bifurcation",
    "torch-anneal", "rows", "sa", "tabu", "steepest", "path-integral", "rotor", "tree", "neal",
    "openjij-sa", "openjij-sqa", "roof-duality", "decompose", "qpu", "qpu-clique", "hybrid-bqm",
    "hybrid-cqm",
}  # fmt: skip


class Mine(dimod.Sampler):
    """My sampler, which counts."""

    parameters = {"cardinality": [], "groups": [], "seed": []}  # noqa: RUF012
    properties = {}  # noqa: RUF012

    def __init__(self, strength=1.0):
        self.strength = strength

    def sample(self, bqm, cardinality=None, groups=None, seed=None):
        states = np.zeros((1, bqm.num_variables), dtype=np.int8)
        states[0, : 0 if cardinality is None else cardinality] = 1
        return dimod.SampleSet.from_samples_bqm((states, list(bqm.variables)), bqm)


@pytest.fixture
def third_party(monkeypatch):
    module = types.ModuleType("third_party")
    module.Mine = Mine
    monkeypatch.setitem(sys.modules, "third_party", module)
    points = [
        EntryPoint("mine", "third_party:Mine", registry.GROUP),
        EntryPoint("gone", "third_party:Gone", registry.GROUP),
        EntryPoint("sa", "third_party:Mine", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def test_everything_asked_for_is_listed_once():
    names = [entry.name for entry in list_samplers()]
    assert set(names) >= ASKED_FOR
    assert len(names) == len(set(names))


HERE = [
    entry
    for entry in list_samplers()
    if entry.solves == "QuadraticProblem" and entry.where not in ("QPU", "cloud")
]


@pytest.mark.parametrize("entry", HERE, ids=lambda entry: entry.name)
def test_listed_abilities_are_real(entry):
    if not entry.installed:
        pytest.skip(entry.missing)
    sampler = get_sampler(entry.name)
    assert hasattr(sampler, "sample_problem") == entry.counts
    assert ("seed" in sampler.parameters) == entry.seed
    assert ("initial_states" in sampler.parameters) == entry.warm_start
    assert bool(sampler.properties.get("bound")) == entry.bound


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(
        UnknownSamplerError, match=r"no sampler is called 'anneal'; there are: .*sa"
    ):
        get_sampler("anneal")


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    entry = SamplerEntry("x", "x:X", packages=("no_such_package",), install="pip install x")
    monkeypatch.setattr(registry, "BUILTIN", (entry,))
    assert entry.missing == "package no_such_package is not installed: pip install x"
    with pytest.raises(MissingPackageError, match="no_such_package is not installed: pip install"):
        get_sampler("x")


def test_constructor_options_are_checked():
    with pytest.raises(UnknownOptionError, match="'greedy' cannot be made with these options"):
        get_sampler("greedy", colour="red")
    with pytest.raises(InvalidOptionError, match="already made"):
        get_sampler(dimod.ExactSolver(), size=2)
    with pytest.raises(InvalidOptionError, match="neither a sampler's name nor an object"):
        get_sampler(42)


def test_a_class_is_made_and_an_object_kept():
    sampler = Mine()
    assert get_sampler(sampler) is sampler
    assert get_sampler(Mine, strength=2.0).strength == 2.0


def test_a_constructor_that_raises_is_reported():
    class Breaks:
        def __init__(self):
            raise OSError("no route to host")

    with pytest.raises(SamplerFailedError, match="OSError: no route to host"):
        get_sampler(Breaks)


def test_a_third_party_registers_a_name(third_party):
    entries = {entry.name: entry for entry in list_samplers()}
    assert isinstance(get_sampler("mine", strength=3.0), Mine)
    assert entries["mine"].about == "My sampler, which counts."
    assert (entries["mine"].counts, entries["mine"].seed) == (True, True)
    # One that cannot be imported is listed with the reason and harms nobody else.
    assert not entries["gone"].installed
    assert "third_party:Gone: AttributeError" in entries["gone"].missing
    with pytest.raises(MissingPackageError, match="Gone"):
        get_sampler("gone")
    # Names of ours cannot be taken over.
    assert entries["sa"].factory == "solvers.foreign.local:simulated_annealing"


def test_counting_wraps_only_what_needs_it():
    problem = QuadraticProblem([3.0, 1.0, 2.0], np.zeros((3, 3)), counts=2)
    greedy = get_sampler("greedy")
    assert counting(greedy) is greedy
    assert isinstance(counting("sa"), CardinalityPenalty)
    mine = counting(Mine())
    assert isinstance(mine, CountsByModel)
    solution = mine.sample_problem(problem)
    assert solution.sample.tolist() == [1, 1, 0]
    assert solution.info["repaired"] == 0


def test_rows_are_a_function_of_layers():
    from solvers.rows.search import solve_rows

    assert get_sampler("rows") is solve_rows
    for refuse in (counting, lambda name: configured(name, {})):
        with pytest.raises(InvalidOptionError, match="solves whole layers"):
            refuse("rows")


def test_configured_sends_options_where_they_belong(third_party):
    sampler, options = configured("mine", {"strength": 5.0, "seed": 3})
    assert sampler.child.child.strength == 5.0
    assert options == {"seed": 3}
    assert configured("tree", {"seed": 0})[1] == {}
    with pytest.raises(UnknownOptionError, match=r"greedy has no option 'colour'; it has: .*seed"):
        configured("greedy", {"colour": "red"})
    assert configured("mine", {"time_limit": 1.0})[1] == {"time_limit": 1.0}


def test_importing_solvers_is_light():
    import subprocess

    code = (
        "import solvers, sys; print([m for m in ('torch', 'numba', 'pyqubo') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
