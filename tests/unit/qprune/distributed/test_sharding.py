"""Derivatives by weights that no module holds for long, against those of autograd."""

import pytest
import torch
from torch import nn
from torch.autograd.forward_ad import unpack_dual
from torch.func import functional_call, jvp

from qprune.distributed.sharding import Tangents, is_sharded, refuse_other_shardings, whole
from qprune.errors import ImpossibleRequestError
from qprune.network.weights import find_weights
from qprune.objective.trace.recorder import Recorder

LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "tokens": (nn.Linear(6, 4), (5, 3, 6)),
    "conv": (nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (2, 4, 7, 8)),
    "same": (nn.Conv2d(2, 3, (3, 2), padding="same", dilation=2), (2, 2, 7, 8)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 7, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_weights_gradient_is_autograds(name):
    module, shape = LAYERS[name]
    inputs = torch.randn(shape)
    outputs = module(inputs)
    delta = torch.randn_like(outputs)
    (expected,) = torch.autograd.grad(outputs, module.weight, delta)
    with Recorder(find_weights(module)) as recorder:
        seen = module(inputs)
    (noted,) = recorder.outputs()
    (deltas,) = torch.autograd.grad(seen, noted, delta)
    (found,) = recorder.gradients([deltas])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_tangents_are_the_forward_derivative_through_a_whole_network(name):
    module, shape = LAYERS[name]
    network = nn.Sequential(module, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    inputs = torch.randn(shape)
    network(inputs)
    last = network[3]
    directions = {"0.weight": torch.randn_like(module.weight)}
    directions["3.weight"] = torch.randn_like(last.weight)
    weights = {n: p.detach() for n, p in network.named_parameters() if n in directions}
    expected = jvp(lambda w: functional_call(network, w, (inputs,)), (weights,), (directions,))
    pairs = zip((module, last), directions.values(), strict=True)
    with torch.no_grad(), Tangents(pairs):
        outputs, moved = unpack_dual(network(inputs))
    torch.testing.assert_close(outputs, expected[0])
    torch.testing.assert_close(moved, expected[1])
    assert not any(m._forward_hooks for m in network)


def test_a_plain_tensor_is_whole():
    tensor = torch.ones(2)
    assert whole(tensor) is tensor
    assert not is_sharded(tensor)


class Mesh:
    def __init__(self, *sizes):
        self.ndim, self._size = len(sizes), sizes[0]

    def size(self):
        return self._size


class Spread:
    def __init__(self, mesh, dim=0):
        self.device_mesh, self.placements = mesh, [self]
        self.dim = dim

    def is_shard(self, dim):
        return dim == self.dim


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (Spread(Mesh(2, 2)), "over a mesh of 2"),
        (Spread(Mesh(2), dim=1), "what fully_shard"),
        (Spread(Mesh(4)), "spread over 4 processes, and the run has 2; pass ranks="),
    ],
)
def test_other_shardings_are_refused(weight, message):
    with pytest.raises(ImpossibleRequestError, match=message):
        refuse_other_shardings("fc", weight, 2)


def test_the_right_sharding_is_not_refused():
    refuse_other_shardings("fc", Spread(Mesh(2)), 2)
