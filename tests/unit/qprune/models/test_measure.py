"""Measured numbers: right where they can be known, modest where they cannot."""

import json
import time

import pytest
import tiny_language as tiny
import torch
from torch import nn

from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.models.measure import measure_folder
from qprune.models.measure.latency import Comparison, Timing, compare, take_turns
from qprune.models.measure.semi_structured import (
    disagreement,
    is_2_of_4,
    obstacle,
    suitable_layers,
    with_sparse_kernels,
)
from qprune.models.measure.sizes import packed_size, zipped_size
from qprune.models.save import save_model

pytest.importorskip("transformers")


class Machine:
    """A clock of its own, on which calls take what they are said to, and more as time goes."""

    def __init__(self, drift=0.0):
        self.now, self.drift = 0.0, drift

    def call(self, seconds):
        def run():
            self.now += seconds * (1 + self.drift * self.now)

        return run

    def clock(self):
        return self.now


def comparison(dense, pruned, *, noise=0.01, twice=2.0):
    return Comparison("a pass", Timing(dense, 0.0, 9), Timing(pruned, 0.0, 9), noise, twice)


def test_a_call_that_takes_a_third_of_the_time_is_found_to():
    machine = Machine()
    found = compare(
        "waiting", machine.call(0.03), machine.call(0.01), rounds=5, clock=machine.clock
    )
    assert found.speedup == pytest.approx(3)
    assert found.twice == pytest.approx(2)
    assert found.noise == pytest.approx(0)
    assert found.gain
    assert found.pruned == Timing(pytest.approx(0.01), pytest.approx(0), 5)


def test_a_machine_that_gets_slower_favours_nobody():
    machine = Machine(drift=0.2)
    one = machine.call(0.01)
    found = compare("waiting", one, one, rounds=20, clock=machine.clock)
    last = machine.now
    assert machine.call(0.01)() is None
    assert machine.now - last > 0.015, "it is half as slow again by then"
    assert found.speedup == pytest.approx(1, abs=0.05)
    assert not found.gain


def test_the_clock_of_this_machine_moves():
    found = take_turns({"work": lambda: time.sleep(0.002)}, rounds=3)
    assert found["work"].median >= 0.002


def test_calls_take_turns_and_each_round_begins_with_another():
    order, machine = [], Machine()

    def call(name):
        return lambda: (order.append(name), machine.call(0.1)())

    take_turns({name: call(name) for name in "abc"}, rounds=3, clock=machine.clock)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert {"".join(turns[i : i + 3]) for i in range(len(turns) - 2)} >= {"abc", "bca", "cab"}


@pytest.mark.parametrize(
    ("case", "gain", "says"),
    [
        (comparison(2.0, 1.0), True, "2.00 times as fast"),
        (comparison(1.0, 1.0), False, "no gain (ratio 1.00, this machine's noise is 1.0 %)"),
        (comparison(1.04, 1.0), False, "no gain"),
        (comparison(1.1, 1.0), True, "1.10 times"),
        (comparison(1.1, 1.0, noise=0.05), False, "no gain"),
        (comparison(1.0, 2.0), False, "no gain (ratio 0.50"),
        (comparison(2.0, 1.0, noise=0.3), False, "no verdict"),
        (comparison(2.0, 1.0, twice=1.1), False, "made twice takes 1.10 times as long"),
        (comparison(2.0, 1.0, twice=4.0), False, "no verdict"),
    ],
)
def test_a_gain_is_claimed_only_above_the_noise_and_by_a_clock_that_works(case, gain, says):
    assert case.gain is gain
    assert says in case.verdict()


def test_packed_is_the_kept_values_and_one_bit_a_weight():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3)).half()
    mask = {"0.weight": torch.zeros(4, 8, dtype=torch.bool)}
    mask["0.weight"][0] = True
    assert packed_size(model, mask) == 2 * 8 + 4 + 2 * (4 + 12 + 3)
    assert packed_size(model, {}) == 2 * (32 + 4 + 12 + 3)


def test_zipped_sees_the_zeros_and_a_sample_is_near_the_whole():
    torch.manual_seed(0)
    model = nn.Linear(1000, 1000, bias=False)
    whole = zipped_size(model)
    assert 0.85 * 4e6 < whole < 4e6
    assert zipped_size(model, sample=1 << 19) == pytest.approx(whole, rel=0.02)
    with torch.no_grad():
        model.weight[torch.rand_like(model.weight) < 0.9] = 0
    assert zipped_size(model) < 0.25 * whole
    with torch.no_grad():
        model.weight.zero_()
    assert zipped_size(model) < 0.01 * whole


def test_what_counts_as_2_of_4():
    kept = torch.tensor([[1, 1, 0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0, 0, 0]]).bool()
    assert is_2_of_4(kept)
    kept[0, 2] = True
    assert not is_2_of_4(kept)
    assert not is_2_of_4(torch.zeros(2, 6).bool())
    assert not is_2_of_4(torch.zeros(2, 4, 4).bool())


def two_of_four(model):
    kept = torch.zeros(model[0].weight.shape, dtype=torch.bool)
    kept[:, ::4] = kept[:, 1::4] = True
    model[0].weight.data *= kept
    return {"0.weight": kept}


def test_only_layers_whose_size_the_kernels_take():
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 64))
    assert [name for name, _ in suitable_layers(model, two_of_four(model))] == ["0"]
    narrow = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 64))
    assert not list(suitable_layers(narrow, two_of_four(narrow)))


def test_why_sparse_kernels_are_not_tried_is_said(monkeypatch):
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 64))
    mask, gpu = two_of_four(model), torch.device("cuda:0")
    assert "NVIDIA GPU, this is cpu" in obstacle(model, mask, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An old card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "An old card is older than Ampere" in obstacle(model, mask, gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "take float16" in obstacle(model, mask, gpu)
    assert "no Linear layer has a 2:4 mask" in obstacle(model.half(), {}, gpu)
    assert obstacle(model.half(), mask, gpu) is None


def test_logits_that_are_wrong_are_told_from_half_precision():
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    assert disagreement(logits, logits * 1.01) is None
    assert "differ from the dense kernels' by" in disagreement(logits, logits.flip(1))
    assert disagreement(logits, logits * float("nan")) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sparse_kernels_compute_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 64))
    mask = two_of_four(model)
    model = model.half().cuda()
    reason = obstacle(model, mask, torch.device("cuda"))
    if reason:
        pytest.skip(reason)
    inputs = torch.randn(64, 128).half().cuda()
    with torch.inference_mode():
        sparse = with_sparse_kernels(model, mask)(inputs)
        assert disagreement(model(inputs), sparse) is None


@pytest.fixture
def folder(tmp_path):
    model = tiny.llama()
    mask = tiny.magnitude_mask(model, 0.75)
    save_model(tmp_path / "pruned", model, mask)
    return tmp_path / "pruned"


def test_a_folder_against_its_dense_twin(folder):
    seen = []

    def track(items, description):
        seen.append(description)
        return items

    measured = measure_folder(folder, rounds=3, track=track)
    assert measured.sparsity == pytest.approx(0.75, abs=0.01)
    assert measured.sizes.disk == (folder / "model.safetensors").stat().st_size
    assert measured.sizes.memory == measured.dense_sizes.memory
    assert measured.sizes.packed < measured.dense_sizes.packed
    assert measured.sizes.zipped < measured.dense_sizes.zipped
    assert [one.work for one in measured.latency] == ["prompt of 32 tokens", "one token"]
    assert all(one.dense.median > 0 and one.pruned.median > 0 for one in measured.latency)
    assert measured.sparse_kernels == ()
    assert measured.peak_memory is None
    assert seen == ["timing", "timing"]
    assert any("2:4 kernels not used" in line for line in measured.verdicts())
    assert json.dumps(measured.to_json())


def test_no_gain_is_said_plainly(folder, monkeypatch):
    monkeypatch.setattr(
        "qprune.models.measure.folder.compare",
        lambda work, dense, pruned, **_: comparison(1.0, 1.0),
    )
    measured = measure_folder(folder)
    assert not measured.gain
    assert measured.verdicts()[-1].startswith("no gain in speed or memory on this machine")


def test_against_the_dense_model_and_not_another(folder, tmp_path):
    tiny.llama().save_pretrained(tmp_path / "dense")
    measured = measure_folder(folder, str(tmp_path / "dense"), rounds=3)
    assert measured.dense_sizes.disk == (tmp_path / "dense/model.safetensors").stat().st_size
    assert measured.dense_sizes.zipped > measured.sizes.zipped
    tiny.llama(tied=True).save_pretrained(tmp_path / "other")
    with pytest.raises(ImpossibleRequestError, match=r"other is another model.*lm_head"):
        measure_folder(folder, str(tmp_path / "other"))


def test_a_folder_without_mask_is_measured_by_its_zeros(folder):
    (folder / "mask.safetensors").unlink()
    assert measure_folder(folder, rounds=3).sparsity == pytest.approx(0.75, abs=0.01)


def test_folders_that_cannot_be_measured(folder, tmp_path):
    with pytest.raises(RunFolderError, match=r"holds no model\*\.safetensors"):
        measure_folder(tmp_path)
    tiny.llama().save_pretrained(tmp_path / "dense")
    with pytest.raises(ImpossibleRequestError, match="has no zeros"):
        measure_folder(tmp_path / "dense")
    (folder / "mask.safetensors").rename(tmp_path / "dense/mask.safetensors")
    with pytest.raises(
        RunFolderError, match=r"is not zero where the mask prunes it; `qprune hold`"
    ):
        measure_folder(tmp_path / "dense")
