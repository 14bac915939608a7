"""Blocks solved elsewhere: the same mask, whoever solves and whoever dies."""

import os
import signal
import warnings

import pytest
import torch
from torch import nn

import qprune
from qprune.compensate import Compensation
from qprune.errors import ImpossibleRequestError
from qprune.executors import RayExecutor, batched, executor_named

INPUTS = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
RUN = {
    "sparsity": 0.5,
    "stages": 2,
    "rounds": 2,
    "block_size": 32,
    "num_blocks": 4,
    "sampler": "greedy",
    "compensate": Compensation(iterations=(2,), final_steps=1),
}


def mlp():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(16, 20), nn.ReLU(inplace=True), nn.Linear(20, 4))


def same_as(expected, executor):
    pruned = qprune.prune(mlp(), INPUTS, **RUN, executor=executor)
    return all(torch.equal(expected.mask[name], pruned.mask[name]) for name in expected.mask)


@pytest.fixture(scope="module")
def expected():
    return qprune.prune(mlp(), INPUTS, **RUN)


def test_threads_give_the_same_mask(expected):
    for spec in ("threads", "threads:3"):
        with executor_named(spec) as threads:
            assert same_as(expected, threads)


@pytest.mark.parametrize("spec", ["processes", "threads:0", "threads:x", "ray:here"])
def test_unknown_executors_are_refused(spec):
    with pytest.raises(ImpossibleRequestError, match="no executor named"), executor_named(spec):
        pytest.fail("entered")


def test_batches_keep_the_order():
    assert [list(b) for b in batched(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_gives_the_same_mask_and_loses_nothing(expected, tmp_path):
    pytest.importorskip("ray")

    # Inside, so that Ray sends them by value: its workers cannot import the tests.
    def deadly(number):
        """Kills its worker the first time, now and then."""
        mark = tmp_path / str(number)
        if number % 3 == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2

    def failing(item):
        raise ValueError(f"item {item}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executor = RayExecutor(num_cpus=2, include_dashboard=False)
        try:
            assert same_as(expected, executor)
            assert executor.map(deadly, range(9)) == [number**2 for number in range(9)]
            assert len(list(tmp_path.iterdir())) == 3
            with pytest.raises(ValueError, match="item 0"):
                executor.map(failing, [0])
        finally:
            executor.close()
