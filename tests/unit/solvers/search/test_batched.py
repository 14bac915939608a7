"""The samplers that run in torch: exact counts, seeds, batches, devices."""

import time

import numpy as np
import pytest
from interrupting import interrupt_after

from solvers import QuadraticProblem
from solvers.errors import (
    InvalidOptionError,
    InvalidProblemError,
    MissingPackageError,
    ProblemTooLargeError,
)
from solvers.host.clock import Deadline
from solvers.problem.repair import repair
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem
from solvers.rows.search import solve_rows
from solvers.rows.starts import admm, magnitude, obs_sweep, wanda

torch = pytest.importorskip("torch")

from solvers.search.batched.annealing import TorchAnnealing  # noqa: E402
from solvers.search.batched.batch import (  # noqa: E402
    Batch,
    generator,
    largest_in_groups,
    matrices_of,
)
from solvers.search.batched.bifurcation import Bifurcation  # noqa: E402
from solvers.search.batched.moves import Swaps  # noqa: E402

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]

ANNEAL = (TorchAnnealing(), {"num_reads": 4, "num_sweeps": 20})
BALLISTIC = (Bifurcation(), {"num_reads": 8, "num_steps": 200})
DISCRETE = (Bifurcation(), {"num_reads": 8, "num_steps": 200, "discrete": True})
SAMPLERS = [ANNEAL, BALLISTIC, DISCRETE]


def problem_of(size, seed=0, **counts):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, size))
    return QuadraticProblem(rng.normal(size=size), factor.T @ factor / size, 1.5, **counts)


def enumerated(problem):
    size = problem.num_variables
    states = (np.arange(2**size)[:, None] >> np.arange(size)) & 1
    return problem.energies(states[problem.feasible(states)]).min()


CASES = {
    "one count": {"counts": 4},
    "groups": {"groups": np.arange(10) % 3, "counts": [2, 1, 3]},
    "plain": {},
    "none": {"counts": 0},
    "all": {"counts": 10},
    "mixed": {"groups": np.arange(10) // 5, "counts": [0, 5]},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_counts_exact_energies_true_and_small_problems_solved(sampler, options, case, device):
    for seed in range(3):
        problem = problem_of(10, seed, **CASES[case])
        solution = sampler.sample_problem(problem, seed=seed, device=device, **options)
        assert problem.feasible(solution.samples).all()
        np.testing.assert_allclose(solution.energies, problem.energies(solution.samples))
        assert solution.energy == pytest.approx(enumerated(problem))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_a_seed_fixes_the_samples_and_the_global_generator_rests(sampler, options, device):
    problem = problem_of(40, counts=15)
    before = torch.get_rng_state()
    one, again = (
        sampler.sample_problem(problem, seed=7, device=device, **options) for _ in range(2)
    )
    np.testing.assert_array_equal(one.samples, again.samples)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_never_worse_than_the_initial_state(sampler, options):
    problem = problem_of(30, counts=12)
    best = TorchAnnealing().sample_problem(problem, seed=1, num_sweeps=50)
    more = {**options, "num_reads": 1, "time_limit": 0.0}
    solution = sampler.sample_problem(problem, initial_states=best.sample, seed=2, **more)
    assert solution.energy <= best.energy


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
@pytest.mark.parametrize("size", [0, 1])
def test_hardly_any_variables(sampler, options, size):
    for counts in (None, 0, size):
        problem = problem_of(size, counts=counts)
        solution = sampler.sample_problem(problem, seed=0, **options)
        assert solution.energy == pytest.approx(enumerated(problem))


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_scale_does_not_matter(sampler, options, scale):
    small = problem_of(10, counts=4)
    problem = QuadraticProblem(scale * small.linear, scale * small.quadratic.dense(), counts=4)
    solution = sampler.sample_problem(problem, seed=0, **options)
    assert solution.energy == pytest.approx(enumerated(problem), rel=1e-6, abs=0)


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_bqm_interface_with_labels(sampler, options):
    bqm = problem_of(8, counts=3).to_bqm().relabel_variables(dict(enumerate("abcdefgh")), False)
    for vartype in ("BINARY", "SPIN"):
        answer = sampler.sample(
            bqm.change_vartype(vartype, inplace=False), cardinality=3, seed=0, **options
        )
        assert (answer.record.sample > 0).sum(1).tolist() == [3] * len(answer)
        np.testing.assert_allclose(
            answer.record.energy, bqm.change_vartype(vartype, inplace=False).energies(answer)
        )


def test_what_is_refused():
    problem = problem_of(5, counts=2)
    for sampler in (TorchAnnealing(), Bifurcation()):
        with pytest.raises(InvalidOptionError, match="num_reads"):
            sampler.sample_problem(problem, num_reads=0)
        with pytest.raises(InvalidOptionError, match="time_limit"):
            sampler.sample_problem(problem, time_limit=-1)
        with pytest.raises(InvalidOptionError, match="device"):
            sampler.sample_problem(problem, device="abacus")
        if not torch.cuda.is_available():
            with pytest.raises(MissingPackageError, match="CUDA"):
                sampler.sample_problem(problem, device="cuda")
    with pytest.raises(InvalidOptionError, match="time_step"):
        Bifurcation().sample_problem(problem, time_step=3.0)
    with pytest.raises(InvalidProblemError, match="problem 1 has 6 variables"):
        TorchAnnealing().sample_problems([problem, problem_of(6, counts=2)])
    with pytest.raises(InvalidProblemError, match="differ in having counts"):
        TorchAnnealing().sample_problems([problem, problem_of(5)])


def test_the_discrete_variant_finds_the_ground_state_of_a_ferromagnet_faster_than_chance():
    size = 30
    ring = np.zeros((size, size))
    ring[np.arange(size), (np.arange(size) + 1) % size] = -4.0
    problem = QuadraticProblem(np.full(size, 3.9), ring + ring.T)  # all ones: -3, all zeros: 0
    solution = Bifurcation().sample_problem(problem, seed=0, num_steps=300)
    assert solution.energy == pytest.approx(-0.1 * size)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_solves_each_problem_with_its_own_counts(device):
    problems = [problem_of(12, seed, counts=k) for seed, k in enumerate((0, 3, 6, 12))]
    solutions = TorchAnnealing().sample_problems(problems, seed=3, num_sweeps=20, device=device)
    for problem, solution in zip(problems, solutions, strict=True):
        assert problem.feasible(solution.samples).all()
        assert solution.energy == pytest.approx(enumerated(problem))
    assert TorchAnnealing().sample_problems([]) == []


def test_swaps_sample_boltzmanns_distribution():
    problem = problem_of(6, seed=4, counts=3)
    states = (np.arange(64)[:, None] >> np.arange(6)) & 1
    states = states[problem.feasible(states)]
    expected = np.exp(-problem.energies(states))
    expected /= expected.sum()
    device = torch.device("cpu")
    start = np.repeat(states[:1], 400, axis=0)[None].astype(np.int8)
    matrices = matrices_of([problem], device, Deadline())
    batch = Batch([problem], *matrices, start, generator(3, device))
    swaps = Swaps(batch, None)
    seen = np.zeros(len(states))
    for sweep in range(60):
        swaps.sweep(torch.tensor([1.0 / batch.scales[0]], dtype=torch.float32), Deadline())
        if sweep >= 10:
            seen += (batch.states()[0][:, None] == states[None]).all(-1).sum(0)
    assert abs(seen / seen.sum() - expected).sum() / 2 < 0.03


def test_largest_in_groups_counts_exactly():
    rng = np.random.default_rng(0)
    groups = torch.from_numpy(rng.permutation(np.repeat([0, 1, 2], [5, 3, 4])))
    counts = torch.tensor([2, 0, 4])
    positions = torch.from_numpy(rng.integers(0, 3, (6, 12)).astype(np.float32))
    chosen = largest_in_groups(positions, groups, torch.tensor([0, 5, 8]), counts)
    for row, mask in zip(positions, chosen, strict=True):
        for group, count in enumerate(counts.tolist()):
            inside, outside = row[mask & (groups == group)], row[~mask & (groups == group)]
            assert len(inside) == count
            assert not len(inside) or not len(outside) or inside.min() >= outside.max()


def layer(rows=24, inputs=32, seed=0):
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(3 * inputs, inputs)) @ rng.normal(size=(inputs, inputs))
    return seen.T @ seen / len(seen), rng.laplace(size=(rows, inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("budget", [Counts([10]), Counts(240), Counts.n_of_m(2, 4)])
@pytest.mark.parametrize("compensate", [True, False])
def test_rows_on_a_device_agree_with_the_host(budget, dtype, device, compensate):
    problem = RowProblem(*layer(), budget)
    mask = wanda(problem).mask
    host = solve_rows(problem, mask=mask, exact=False, compensate=compensate)
    there = solve_rows(problem.on(device, dtype), mask=mask, compensate=compensate)
    kept = there.mask.cpu().numpy()
    np.testing.assert_array_equal(budget.of(kept), budget.wanted(24, 32))
    assert not there.values.cpu().numpy()[~kept].any()
    np.testing.assert_allclose(
        there.objectives, problem.objectives(there.values.cpu().numpy()), rtol=1e-4
    )
    # Another order of swaps, another local optimum: alike in quality, not in every weight.
    assert there.objective == pytest.approx(host.objective, rel=0.1)
    assert there.finished


@pytest.mark.parametrize("device", DEVICES)
def test_rows_on_a_device_are_locally_optimal(device):
    problem = RowProblem(*layer(4, 12, 1), Counts([5])).on(device, "float64")
    solution = solve_rows(problem, mask=magnitude(problem).mask)
    gram, targets = (array.cpu().numpy() for array in (problem.gram, problem.targets))
    for mask, values, target, reached in zip(
        *(a.cpu().numpy() for a in (solution.mask, solution.values)),
        targets,
        solution.objectives,
        strict=True,
    ):
        for i in np.flatnonzero(mask):
            for j in np.flatnonzero(~mask):
                other = values.copy()
                other[i] = 0.0
                other[j] = -((other - target) @ gram)[j] / gram[j, j]
                change = other - target
                assert 0.5 * change @ gram @ change >= reached * (1 - 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("start", [magnitude, wanda, obs_sweep, admm])
def test_starts_on_a_device_are_those_on_the_host(start, device):
    for budget in (Counts([10]), Counts(240), Counts.n_of_m(2, 4)):
        problem = RowProblem(*layer(), budget)
        mask = start(problem).mask
        there = start(problem.on(device, "float64")).mask.cpu().numpy()
        assert (mask == there).mean() > 0.99


def test_a_batch_too_large_for_memory_says_so():
    problem = QuadraticProblem(np.zeros(2000), np.zeros((2000, 2000)), counts=5)
    with pytest.raises(ProblemTooLargeError, match="fewer problems"):
        TorchAnnealing().sample_problems([problem] * 100_000, num_reads=1)


@pytest.mark.parametrize("sampler", [TorchAnnealing(), Bifurcation()])
def test_an_interrupt_ends_with_the_best_so_far(sampler):
    problem = problem_of(300, counts=120)
    start = repair(problem, np.zeros(300))
    sampler.sample_problem(problem, num_reads=1, seed=0)  # compiled
    with interrupt_after(2.0) as sent:
        solution = sampler.sample_problem(problem, seed=0, num_reads=10**7, initial_states=start)
    assert time.perf_counter() - sent[0] < 10
    assert solution.info["interrupted"] is True
    assert problem.feasible(solution.samples).all()
    assert solution.energy <= problem.energies(start).min()
    assert len(solution.samples) < 10**6
