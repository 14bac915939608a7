"""What a run is said to need: added up rightly, refused rightly, and close to what it takes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import small_networks
import torch

import qprune
from qprune import Limits
from qprune.cost import Pass, Phase, Tally, estimate, gauged, require_fit
from qprune.errors import ImpossibleRequestError
from qprune.moving.compensate import Compensation
from qprune.moving.distill import Distillation
from qprune.results import Estimate, Part, in_bytes, in_seconds
from qprune.walk.network_cost import Load, needs_of
from solvers.host.machine import available_memory, cgroup_memory, peak_memory

ROOT = Path(__file__).parents[3]
INPUTS = torch.randn(60, 16, generator=torch.Generator().manual_seed(5))
QUICK = {
    "sparsity": 0.5,
    "method": qprune.Networkwise(stages=1, final_rounds=1, block_size=32),
}
QUICK |= {"compensate": Compensation(iterations=(2,), final_steps=1)}


def mlp():
    return small_networks.mlp(16, 20)


def test_what_is_always_there_adds_to_the_worst_phase():
    phases = [
        Phase("a", (Part("x", 100.0), Part("y", 50.0)), (Part("t", 3.0),)),
        Phase("b", (Part("x", 120.0),), (Part("t", 1.0), Part("u", 9.0))),
    ]
    needs = estimate(1000.0, 900.0, [Part("z", 70.0), Part("y", 5.0)], phases)
    assert needs.peak_memory == 1000 + 75 + 150
    assert [(part.what, part.amount) for part in needs.memory] == [
        ("x", 100.0),
        ("z", 70.0),
        ("y", 55.0),
    ]
    assert [(part.what, part.amount) for part in needs.time] == [("u", 9.0), ("t", 4.0)]
    assert needs.seconds == 13
    assert str(needs) == (
        "needs about 1.23 kB (most of it the process as it is, with model and data) "
        "and 13 s (most of it u)"
    )
    assert json.loads(json.dumps(needs.to_json()))["peak_memory"] == needs.peak_memory


def test_a_limit_on_the_time_cuts_the_estimate():
    phases = [Phase("a", (), (Part("t", 30.0), Part("u", 10.0)))]
    needs = estimate(1.0, 5.0, [], phases, limit=4.0, unknown="what the sampler QPU takes")
    assert [part.amount for part in needs.time] == [3.0, 1.0]
    assert needs.peak_memory == 5.0
    assert str(needs).startswith("needs about 5 B (most of it what loading took) and 4 s")
    assert str(needs).endswith("(most of it t), and what the sampler QPU takes")


def test_what_does_not_fit_is_refused_with_what_dominates_and_a_way_out():
    memory = (Part("traces", 8e9, "smaller samples_per_step"), Part("state", 1e9))
    needs = Estimate(5e8, 5e8, memory, ())
    require_fit(needs, 9.1e9)
    require_fit(needs, 1e9, asked=math.inf)
    with pytest.raises(ImpossibleRequestError) as refused:
        require_fit(needs, 8.9e9)
    assert str(refused.value) == (
        "the run needs about 9.5 GB of memory, most of it traces (8 GB), and 9.4 GB are "
        "available; take smaller samples_per_step, or raise max_memory (--max-memory) to run all "
        "the same"
    )
    with pytest.raises(ImpossibleRequestError, match=r"1 GB may be taken \(max_memory\)"):
        require_fit(needs, 1e12, asked=1e9)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1234, "1.23 kB"), (999.6e6, "1 GB"), (4e12, "4 TB")]
)
def test_bytes_are_short(number, text):
    assert in_bytes(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0.42, "0.42 s"), (119, "1.2e+02 s"), (150, "2.5 min"), (2e5, "2.3 days")]
)
def test_seconds_are_rough(number, text):
    assert in_seconds(number) == text


def test_the_tally_counts_what_is_alive_at_once():
    weight = torch.randn(100, 100, requires_grad=True)  # There before: not counted.
    with Tally() as tally:
        x = weight * 2
        y = x.view(-1)[:50]  # No memory of its own.
        assert tally.live == 40_000
        x = x.exp()  # The old one lives on through y.
        assert (tally.live, tally.peak) == (80_000, 80_000)
        del y
        (gradient,) = torch.autograd.grad(x.sum(), weight)
        peak = tally.peak
        del x, gradient
        assert tally.live == 0
    assert peak > 80_000


def test_a_gauge_finds_what_each_sample_holds():
    kept = []

    def run(size):
        kept[:] = [torch.zeros(1000), torch.zeros(size, 250)]

    found = gauged(run, (4, 8))
    assert (found.fixed_bytes, found.sample_bytes) == (4000, 1000)
    assert found.num_bytes(10) == 14000
    assert Pass(0, 0, 2.0, 0.5).seconds(100, 10) == 50 + 20
    assert gauged(run, (1, 1)).num_bytes(3) == 3 * 5000


def load(**others):
    values = {
        "weights": 1000,
        "model_bytes": 4000,
        "given": 80,
        "accepted": 20,
        "copies": 0,
        "input_bytes": 64,
        "outputs": 4,
        "trace": 50,
        "per_step": 40,
        "batch": 16,
        "block_size": 32,
        "num_blocks": 2,
        "starts": 2,
        "rounds": 5,
        "moves": 3,
        "judged_moves": 4,
        "moved": 100.0,
        "moved_batch": 40,
        "vectors": 40,
        "fits": False,
        "piece": 0.0,
        "positions": 1,
        "workers": 1,
        "expand": Pass(10, 1000, 0, 1e-3),
        "judge": Pass(10, 500, 0, 1e-4),
        "move": Pass(10, 2000, 0, 1e-3),
        "solve": 0.1,
    }
    return Load(**(values | others))


def estimated(**others):
    needs = needs_of(load(**others), "relax")
    return estimate(0.0, 0.0, needs.always, needs.phases, unknown=needs.unknown)


@pytest.mark.parametrize(
    "more",
    [
        {"weights": 10**6},
        {"given": 10**5, "copies": 8},
        {"per_step": 80, "trace": 10**5},
        {"block_size": 4096},
        {"num_blocks": 100, "block_size": 1024},
        {"workers": 2, "block_size": 2048},
        {"batch": 40, "expand": Pass(0, 10**6)},
    ],
)
def test_more_of_anything_needs_more(more):
    assert estimated(**more).peak_memory > 1.5 * estimated().peak_memory


def test_every_thread_holds_a_batch_and_a_copy_and_the_passes_take_less_time():
    large = {"expand": Pass(0, 10**6, 0, 1e-3), "model_bytes": 10**6}
    one, three = (estimated(threads=n, **large) for n in (1, 3))
    held, more = ({part.what: part.amount for part in needs.memory} for needs in (one, three))
    # 40 samples are three batches of 16; a fourth thread would find none.
    assert more["a batch's activations"] == 3 * held["a batch's activations"]
    assert more["copies of the model for threads"] == 3 * 10**6
    assert estimated(threads=4, **large).memory == three.memory
    taken, less = ({part.what: part.amount for part in needs.time} for needs in (one, three))
    assert less["expanding the loss"] == taken["expanding the loss"] / 3
    assert less["solving blocks"] == taken["solving blocks"]


def test_corrected_models_take_time_and_weights_that_move_along_memory():
    plain, more = estimated(), estimated(correct=0.25, along=10**9)
    assert more.seconds - plain.seconds == pytest.approx(0.25 * 5 * 2)
    held = {part.what: part.amount for part in more.memory}
    # Once, and once more in each view that is copied from it.
    assert held["weights that move along"] == 24 * 10**9


def test_dense_outputs_that_are_too_many_are_not_kept():
    kept, copied = estimated(outputs=1000, given=60_000), estimated(outputs=1000, given=80_000)
    assert any(part.what == "dense outputs" for part in kept.memory)
    assert any(part.what == "a copy of the dense network" for part in copied.memory)


def test_time_is_passes_times_what_one_takes():
    time = {part.what: part.amount for part in estimated().time}
    assert time["expanding the loss"] == pytest.approx((2 + 5) * 40 * 1e-3)
    assert time["moving kept weights"] == pytest.approx(3 * 100 * 1e-3)
    assert time["solving blocks"] == pytest.approx(5 * 2 * 1.3 * 0.1)


def test_a_run_states_its_needs_and_gives_the_same_mask():
    said = []
    told = qprune.prune(mlp(), INPUTS, **QUICK, limits=Limits(expect=said.append))
    (needs,) = said
    report = told.report
    assert report.estimate == needs
    assert needs.seconds > 0
    assert 0.7 < report.peak_memory / needs.peak_memory < 1.3
    again = qprune.prune(mlp(), INPUTS, **QUICK, limits=Limits(max_memory=math.inf))
    assert all(torch.equal(told.mask[name], again.mask[name]) for name in told.mask)


def test_what_cannot_fit_is_refused_before_anything_happens(monkeypatch):
    model, steps = mlp(), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ImpossibleRequestError, match="max_memory"):
        qprune.prune(model, INPUTS, **QUICK, limits=Limits(max_memory=1e6), observe=steps.append)
    monkeypatch.setattr(sys.modules["qprune.prune"], "available_memory", lambda: 1.0)
    with pytest.raises(ImpossibleRequestError, match="are available"):
        qprune.prune(model, INPUTS, **QUICK, observe=steps.append)
    assert not steps
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)
    qprune.prune(model, INPUTS, **QUICK, observe=steps.append, limits=Limits(max_memory=math.inf))
    assert steps


def test_a_limit_that_makes_no_sense_is_refused():
    with pytest.raises(ImpossibleRequestError, match="max_memory must be more than 0"):
        qprune.prune(mlp(), INPUTS, **QUICK, limits=Limits(max_memory=0))


def test_what_cannot_be_foreseen_is_said():
    class Foreign:
        parameters, properties = {}, {}

        def sample(self, bqm):
            import dimod

            calls.append(bqm)
            return dimod.SampleSet.from_samples_bqm(dict.fromkeys(bqm.variables, 0), bqm)

    calls, said = [], []

    def stop(needs):
        said.append(str(needs))
        assert not calls, "a foreign sampler may charge for a call"

    qprune.prune(mlp(), INPUTS, **QUICK, sampler=Foreign(), limits=Limits(expect=stop))
    assert said[0].endswith("what the sampler Foreign takes")


@pytest.mark.parametrize("move", [False, Distillation(steps=2, samples_per_step=4)])
def test_every_way_to_move_weights_is_foreseen(move):
    said = []
    limits = Limits(expect=said.append)
    qprune.prune(mlp(), INPUTS, **QUICK | {"compensate": move}, limits=limits)
    moving = [part for part in said[0].time if part.what == "moving kept weights"]
    assert bool(moving) is bool(move)


def test_container_limits_are_read(tmp_path):
    def group(folder, **files):
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    stat = "anon 5\ninactive_file 100\n"
    group(tmp_path / "two/a", memory__max="1000\n", memory__current="400\n", memory__stat=stat)
    group(tmp_path / "two/a/b", memory__max="max\n", memory__current="300\n", memory__stat=stat)
    limits = {"memory__limit_in_bytes": "900", "memory__usage_in_bytes": "600"}
    group(tmp_path / "one/memory/c", **limits, memory__stat="total_inactive_file 50\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    assert cgroup_memory(tmp_path, tmp_path / "two") == 1000 - 400 + 100
    (tmp_path / "cgroup").write_text("4:cpu,memory:/c\n3:cpu:/x\n")
    assert cgroup_memory(tmp_path, tmp_path / "one") == 900 - 600 + 50
    (tmp_path / "cgroup").write_text("0::/nowhere\n")
    assert cgroup_memory(tmp_path, tmp_path / "two") == math.inf
    assert cgroup_memory(tmp_path / "missing") == math.inf
    assert 0 < available_memory() < math.inf
    assert peak_memory() > 1e7


def test_a_run_takes_what_it_said():
    """`benchmarks.reliability.memory` in short: a process of its own, four million weights."""
    command = [sys.executable, "-m", "benchmarks.reliability.memory", "--only", "wide, distilled"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
