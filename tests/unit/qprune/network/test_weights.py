"""One flat index over all targeted weights, and the price of a changed decision."""

import pytest
import torch
from torch import nn

from qprune.errors import ImpossibleRequestError
from qprune.network.weights import find_weights
from qprune.steps.accept import Trust


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 6, (2, 3), groups=2),
            "norm": nn.BatchNorm2d(6),
            "head": nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)),
        }
    )


def test_offsets_and_shapes(model):
    layers = find_weights(model)
    assert [(y.name, y.offset, y.end, y.rows, y.inputs) for y in layers] == [
        ("conv", 0, 72, 6, 12),
        ("head.0", 72, 87, 3, 5),
        ("head.2", 87, 93, 2, 3),
    ]
    assert layers.size == 93
    assert [y.parameter_name for y in find_weights(nn.Linear(2, 2))] == ["weight"]


@pytest.mark.parametrize(
    ("targets", "ignore", "names"),
    [
        (("Linear",), (), ["head.0", "head.2"]),
        (("Conv2d", "head.2"), (), ["conv", "head.2"]),
        ((r"re:head\..*2",), (), ["head.2"]),
        (("Linear", "Conv2d"), ("Conv2d", "re:.*0"), ["head.2"]),
    ],
)
def test_targets_and_ignore(model, targets, ignore, names):
    assert [layer.name for layer in find_weights(model, targets, ignore)] == names


def test_a_pattern_names_the_whole_name(model):
    with pytest.raises(ImpossibleRequestError, match="no weights to prune"):
        find_weights(model, ("re:head",), ("head",))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_reading_and_writing(model, memory_format):
    model["conv"].to(memory_format=memory_format)
    layers = find_weights(model)
    layers.write(torch.arange(93.0))
    assert model["conv"].weight[3, 1, 0, 2] == 3 * 12 + 1 * 6 + 0 * 3 + 2
    assert model["head"][0].weight[1, 4] == 72 + 5 + 4
    where = torch.tensor([92, 0, 44, 80])
    layers.write_at(where, torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    wanted = torch.arange(93.0)
    wanted[where] = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    assert torch.equal(layers.read(), wanted)
    assert layers.count_by_layer(where) == {"conv": 2, "head.0": 1, "head.2": 1}
    for layer, positions, local in layers.locate(where):
        flat = layer.module.weight.detach().reshape(-1)
        assert torch.equal(flat[local], wanted[where[positions]])


def test_reading_copies(model):
    layers = find_weights(model)
    values = layers.read()
    layers.write(torch.zeros(93))
    assert values.abs().sum() > 0


@pytest.mark.parametrize(("real", "factor"), [(-0.9, 0.25), (-0.5, 1.0), (-0.1, 4.0), (0.3, 4.0)])
def test_the_price_follows_what_happens(real, factor):
    trust = Trust(price=0.5).taken(predicted=-1.0, real=real, flips=100)
    assert trust.price == pytest.approx(0.5 * factor)


def test_the_price_leaves_zero_only_upwards():
    assert Trust().taken(predicted=-1.0, real=-0.9, flips=4).price == 0.0
    assert Trust().lowered().price == 0.0
    assert Trust().raised(predicted=-1.0, flips=4).price == pytest.approx(0.025)
    assert Trust(low=0.1).raised(-1.0, 4).low == 0.1
