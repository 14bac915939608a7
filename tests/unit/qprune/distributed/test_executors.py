"""Blocks solved elsewhere: the same mask, whoever solves and whoever dies."""

import os
import pickle
import signal
import sys
import warnings

import numpy as np
import psutil
import pytest
import small_networks
import torch

import qprune
from qprune.distributed.executors import (
    Packer,
    RayExecutor,
    batched,
    executor_named,
    shared_evenly,
    unpacked,
)
from qprune.errors import ImpossibleRequestError
from qprune.moving.compensate import Compensation
from solvers.registry import get_sampler
from solvers.sampler import CountingSampler

INPUTS = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
RUN = {
    "sparsity": 0.5,
    "method": qprune.Networkwise(stages=2, rounds=2, block_size=32, num_blocks=4),
    "sampler": "greedy",
    "compensate": Compensation(iterations=(2,), final_steps=1),
}


def mlp():
    return small_networks.mlp(16, 20)


def same_as(expected, executor):
    pruned = qprune.prune(mlp(), INPUTS, **RUN, executor=executor)
    return all(torch.equal(expected.mask[name], pruned.mask[name]) for name in expected.mask)


@pytest.fixture(scope="module")
def expected():
    return qprune.prune(mlp(), INPUTS, **RUN)


@pytest.mark.parametrize(
    ("batches", "workers", "expected"),
    [(7, 2, 6), (6, 2, 6), (2, 2, 2), (1, 2, 1), (3, 1000, 3), (0, 2, 1), (5, 1, 5)],
)
def test_workers_share_batches_evenly(batches, workers, expected):
    assert shared_evenly(batches, workers) == expected


def test_threads_give_the_same_mask(expected):
    for spec in ("threads", "threads:3"):
        with executor_named(spec) as threads:
            assert same_as(expected, threads)


@pytest.mark.parametrize("spec", ["processes", "threads:0", "threads:x", "ray:here"])
def test_unknown_executors_are_refused(spec):
    with pytest.raises(ImpossibleRequestError, match="no executor named"), executor_named(spec):
        pytest.fail("entered")


def test_batches_are_even_and_keep_the_order():
    assert [list(b) for b in batched(range(7), 3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [list(b) for b in batched(range(2), 2)] == [[0], [1]]


def test_an_array_that_two_parcels_share_is_put_once():
    large, other, small = np.ones((200, 100)), np.zeros((200, 100)), np.arange(5.0)
    out = []

    def put(array):
        out.append(array)
        return array

    packer = Packer(pickle.Pickler, put)
    parcels = [packer.pack([large, small, large]), packer.pack({"a": other, "b": large})]
    assert [len(parcel.payload) < large.nbytes // 10 for parcel in parcels] == [True, True]
    first, second = (unpacked(parcel.payload, parcel.arrays) for parcel in parcels)
    assert first[0] is first[2]
    assert first[0].flags.writeable
    assert np.array_equal(first[0], large)
    assert np.array_equal(first[1], small)
    assert np.array_equal(second["a"], other)
    assert len(out) == 2
    packer.forget_unused()
    packer.pack(large)
    packer.forget_unused()
    packer.pack((large, other))
    assert len(out) == 3, "an array that no call used in between goes out again"


@pytest.fixture(scope="module")
def ray():
    """Two workers on this machine; batches so small that the runs here make several."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'qprune[ray]'")
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, while it starts.
        executor = RayExecutor(num_cpus=2, batch_seconds=1e-4)
        assert signal.getsignal(signal.SIGTERM) is handler
        started = psutil.Process().children(recursive=True)
        assert started
        yield executor
        executor.close()
        assert not [process for process in started if process.is_running()]


@pytest.mark.filterwarnings("ignore")
def test_ray_workers_give_the_same_mask(expected, ray):
    assert same_as(expected, ray)


@pytest.mark.filterwarnings("ignore")
def test_a_worker_killed_in_the_middle_of_a_run_changes_nothing(expected, ray, tmp_path):
    # Inside, so that Ray sends it by value: its workers cannot import the tests.
    class Deadly(CountingSampler):
        """Greedy; kills the worker that it is called on, once, after some calls."""

        options = get_sampler("greedy").options

        def sample_problem(self, problem, **options):
            calls = len(list(tmp_path.iterdir()))
            (tmp_path / f"{os.getpid()}-{calls}").touch()
            if calls > 5 and not died.exists() and os.getpid() != driver:
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return get_sampler("greedy").sample_problem(problem, **options)

    driver, died = os.getpid(), tmp_path / "died"
    pruned = qprune.prune(mlp(), INPUTS, **(RUN | {"sampler": Deadly()}), executor=ray)
    assert all(torch.equal(expected.mask[name], pruned.mask[name]) for name in expected.mask)
    assert died.exists()


@pytest.mark.filterwarnings("ignore")
def test_results_of_killed_workers_are_not_lost(ray, tmp_path):
    def deadly(number):
        """Kills its worker the first time, now and then."""
        mark = tmp_path / str(number)
        if number % 3 == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2

    ray._seconds_per_item = 0.0  # Forget: every item goes out by itself.
    assert ray.map(deadly, range(9)) == [number**2 for number in range(9)]
    assert len(list(tmp_path.iterdir())) == 3
    assert ray.map(deadly, []) == []


@pytest.mark.filterwarnings("ignore")
def test_what_a_function_raises_on_a_worker_is_raised_here(ray):
    def failing(item):
        raise ValueError(f"item {item}")

    ray._seconds_per_item = 0.0
    with pytest.raises(ValueError, match="item 0"):
        ray.map(failing, [0])


def test_work_not_worth_a_message_is_done_here(ray):
    ray._seconds_per_item = 1e-6
    assert set(ray.map(lambda item: os.getpid(), range(3))) == {os.getpid()}


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImpossibleRequestError, match=r"qprune\[ray\]"), executor_named("ray"):
        pytest.fail("entered")
