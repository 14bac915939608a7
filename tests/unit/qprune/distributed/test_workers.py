"""Any number of threads: the same mask and weights, and the caller's own numbers put back."""

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

import qprune
from qprune.distributed.workers import DEFAULT_THREADS, Workers, workers_for
from qprune.errors import ImpossibleRequestError

SHORT = qprune.Networkwise(stages=1, rounds=1, final_rounds=1, block_size=48, num_blocks=2)
QUICK = {
    "method": SHORT,
    "batch_size": 8,
    "augment": None,
    "compensate": qprune.Compensation(iterations=(2,), lengths=(1.0,), final_steps=1),
}


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 5))


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(72, 5),
    ).eval()


INPUTS = {mlp: (12,), cnn: (2, 8, 8)}


def pruned(make, threads, **options):
    inputs = torch.randn(50, *INPUTS[make], generator=torch.Generator().manual_seed(1))
    return qprune.prune(make(), inputs, sparsity=0.6, threads=threads, **QUICK | options)


def bytes_of(run):
    """Mask and weights, to the last bit."""
    tensors = [*run.mask.values(), *run.model.state_dict().values()]
    return b"".join(tensor.numpy().tobytes() for tensor in tensors)


@pytest.fixture
def three_torch_threads():
    """As a user has them; all numbers must come out as with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("curvature", ["fisher", "empirical"])
def test_the_bytes_are_those_of_one_thread(make, curvature, three_torch_threads):
    method = replace(SHORT, curvature=curvature)
    one, two, three = (pruned(make, n, method=method) for n in (None, 2, 3))
    assert any(step.accepted and step.kind != "start" for step in one.report.steps)
    assert bytes_of(one) == bytes_of(two) == bytes_of(three)


def test_traces_that_are_made_again_are_the_same(monkeypatch):
    monkeypatch.setattr("qprune.objective.fisher.KEEP_FLOATS", 0)
    assert bytes_of(pruned(mlp, 1)) == bytes_of(pruned(mlp, 3))


def test_dense_outputs_that_are_not_kept_are_the_same(monkeypatch):
    monkeypatch.setattr("qprune.objective.samples.KEEP_OUTPUTS", 0)
    assert bytes_of(pruned(mlp, 1)) == bytes_of(pruned(mlp, 3))


class Remembers(nn.Module):
    """Keeps on itself what it computes with, as two threads in one module would notice."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 24), nn.Linear(24, 5)

    def forward(self, x):
        self.seen = self.first(x)
        for _ in range(20):  # Time for another thread.
            self.seen = self.seen.relu() + 0.1 * self.seen
        return self.last(self.seen)


def test_every_thread_has_a_module_of_its_own():
    def run(threads):
        torch.manual_seed(0)
        inputs = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
        return qprune.prune(Remembers(), inputs, sparsity=0.6, threads=threads, **QUICK)

    assert bytes_of(run(1)) == bytes_of(run(3))


class Borrows(nn.Module):
    """Runs by a function that holds the weight: a copy would run on the original's."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(12, 5)
        weight = self.inner.weight
        self.function = lambda x: x @ weight.T

    def forward(self, x):
        return self.function(x)


def test_a_model_whose_copy_is_another_goes_by_one_thread(caplog):
    def gradients(model):
        number = model(torch.ones(2, 12)).square().sum()
        return torch.autograd.grad(number, [model.inner.weight], allow_unused=True)

    with caplog.at_level(logging.WARNING):
        assert workers_for(3, Borrows(), gradients).serial is workers_for(1, None, gradients)
    assert "passed by one thread, not 3" in caplog.text


def test_results_keep_the_order_and_the_first_error_is_raised():
    workers = Workers(3)
    assert workers.gather(lambda number, batch: 10 * number + batch, [4, 3, 2, 1]) == [
        4,
        13,
        22,
        31,
    ]

    def fail(number, _):
        raise ValueError(number)

    with pytest.raises(ValueError, match=r"^0$"):
        workers.gather(fail, [0] * 5)
    with torch.no_grad():
        assert workers.gather(lambda *_: torch.is_grad_enabled(), [0] * 4) == [False] * 4


def test_a_run_is_resumed_with_another_number(tmp_path):
    stop = iter([False, False, True])
    limits = qprune.Limits(should_stop=lambda: next(stop, True))
    first = pruned(mlp, 1, output_dir=tmp_path / "run", limits=limits)
    assert first.report.stopped == "interrupted"
    whole, resumed = pruned(mlp, 1), pruned(mlp, 3, resume_from=tmp_path / "run")
    assert len(resumed.report.steps) > len(first.report.steps)
    assert bytes_of(whole) == bytes_of(resumed)


def test_inside_is_one_thread_and_afterwards_what_was_before(three_torch_threads):
    def blas():
        return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]

    seen, before = [], blas()
    pruned(mlp, 2, observe=lambda step: seen.append((torch.get_num_threads(), *blas())))
    assert set(seen) == {(1, *[1] * len(before))}
    assert torch.get_num_threads() == 3
    assert blas() == before


def test_an_error_puts_the_threads_back_too(three_torch_threads):
    def fail(_):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        pruned(mlp, 2, observe=fail)
    assert torch.get_num_threads() == 3


def test_no_clock_decides_anything(monkeypatch):
    expected = bytes_of(pruned(mlp, 2))
    now = [0.0]

    def late():
        now[0] += 1000.0
        return now[0]

    for clock in ("perf_counter", "process_time", "thread_time", "time"):
        monkeypatch.setattr(f"time.{clock}", late)
    assert bytes_of(pruned(mlp, 2)) == expected


@pytest.mark.parametrize("threads", [0, -1, 2.0, True, "2", 10**6])
def test_what_is_no_number_of_threads_is_refused(threads):
    with pytest.raises(ImpossibleRequestError, match="threads must"):
        pruned(mlp, threads)


def test_python_and_the_command_line_share_one_default():
    from qprune.jobs.settings import Settings

    assert Settings.model_fields["threads"].default == DEFAULT_THREADS == 1


def test_the_command_line_gives_the_same_bytes(tmp_path):
    from typer.testing import CliRunner

    from qprune.cli.main import app

    found = []
    for threads in (1, 2):
        output = tmp_path / str(threads)
        command = f"prune --model digits-mlp --data digits --sparsity 0.9 --output {output} --json"
        command += " --stages 1 --rounds 0 --final-rounds 1 --samples-per-step 300 --seed 0"
        command += (
            f" --mask-only --targets Linear --num-calibration-samples 300 --threads {threads}"
        )
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0, done.output
        json.loads(done.stdout)
        found.append(next(output.glob("*.safetensors")).read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("steps", [0, 3])
def test_both_stages_of_a_language_model(steps, three_torch_threads):
    pytest.importorskip("transformers")
    import tiny_language

    model = tiny_language.llama()
    windows = torch.randint(1, 28, (24, 16), generator=torch.Generator().manual_seed(0))
    across = qprune.Networkwise(start=None, rounds=1, block_size=64, num_blocks=2)
    method = qprune.Layerwise(), across
    one, two, three = (
        qprune.prune(
            copy.deepcopy(model),
            windows,
            sparsity=0.6,
            method=method,
            compensate=qprune.Distillation(steps=steps, at_end=True) if steps else False,
            batch_size=4,
            threads=threads,
        )
        for threads in (1, 2, 3)
    )
    assert bytes_of(one) == bytes_of(two) == bytes_of(three)


@pytest.mark.parametrize("shares", [None, qprune.Sensitivity()])
def test_rows_of_stage_1_are_shared_among_threads_unless_coupled(monkeypatch, shares):
    pytest.importorskip("transformers")
    import tiny_language

    from solvers.rows import moves as row_moves

    asked, each_row = [], row_moves.each_row

    def noted(work, rows, num_threads):
        asked.append(num_threads)
        return each_row(work, rows, num_threads)

    monkeypatch.setattr(row_moves, "each_row", noted)
    windows = torch.randint(1, 28, (16, 16), generator=torch.Generator().manual_seed(0))
    runs = []
    for threads in (1, 3):
        model = tiny_language.llama()
        method = qprune.Layerwise(shares=shares)
        done = qprune.prune(model, windows, sparsity=0.5, method=method, threads=threads)
        assert set(asked) == (set() if shares else {threads})
        asked.clear()
        runs.append((done.mask, [layer.error for layer in done.report.layers], model.state_dict()))
    (mask, errors, weights), other = runs[0], runs[1]
    assert errors == other[1]
    assert all(torch.equal(mask[name], other[0][name]) for name in mask)
    assert all(torch.equal(weights[name], other[2][name]) for name in weights)
