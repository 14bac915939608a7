"""Residual streams: a block's outputs without another pass, to the bit, or by one."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

import tiny_models

import qprune
from qprune.distributed.ranks import ALONE
from qprune.moving.residuals import streams_of
from qprune.walk.streams import Passage


@pytest.mark.parametrize(
    ("name", "again"), [("llama", 0), ("qwen2", 0), ("gpt2", 1), ("gemma3", 1)]
)
def test_outputs_that_are_known_need_no_other_pass(name, again, monkeypatch):
    """The last matrix' stream is kept; not where a Conv1D adds its bias, or a norm follows."""
    passes, found = [], []

    def forward(self, hidden):
        passes.append(forward_before(self, hidden))
        return passes[-1]

    def outputs(self, hidden):
        given = outputs_before(self, hidden)
        found.append((given, forward_before(self, hidden)))
        return given

    forward_before, outputs_before = Passage.forward, Passage.outputs
    monkeypatch.setattr(Passage, "forward", forward)
    monkeypatch.setattr(Passage, "outputs", outputs)
    model = tiny_models.make(name)
    samples = tiny_models.samples(model, 6)
    qprune.prune(model, samples, sparsity=0.5, method=qprune.Layerwise(shares=None), batch_size=4)
    assert len(passes) == again
    ((given, expected),) = found  # Behind the last block nothing comes.
    assert len(given) == 2
    for index in range(len(given)):
        one, other = (store.get(index, torch.device("cpu")) for store in (given, expected))
        assert torch.equal(one, other)


@pytest.mark.parametrize("exact", [False, True])
def test_every_rank_takes_what_the_first_batch_of_rank_0_shows(exact):
    """A batch of its own may differ by rounding, and other sums would be taken than elsewhere."""

    class Second(type(ALONE)):
        size = 2

        def once(self, function):
            return {"b": (True, exact)}

    groups = [[SimpleNamespace(name=name)] for name in "ab"]
    behind = SimpleNamespace(get=lambda index, device: index)
    device = torch.device("cpu")
    found = streams_of(pytest.fail, groups, {}, behind, behind, device, Second())
    assert found.keys() == {"b"}
    assert (found["b"].at_end, found["b"].exact, found["b"].dense(3)) == (True, exact, 3)
