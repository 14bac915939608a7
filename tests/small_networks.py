"""The small networks of many tests, with the same weights every time."""

import torch
from torch import nn


def seeded(make, seed):
    """The network that ``make`` returns under this seed; the global one is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def layer():
    """Twelve weights, no two of the same size."""
    return seeded(lambda: nn.Linear(4, 3, bias=False), 1)


def mlp(inputs=10, hidden=12):
    """Two layers around a ReLU in place, four outputs."""
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 4)
        ),
        2,
    )


def tanh_network():
    """5-6-3 units in double precision."""
    return seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double(), 0)


def cnn():
    """A convolution and a layer, of images of 3 x 8 x 8 numbers, in evaluation mode."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        ).eval(),
        0,
    )
