"""A small network, its samples and its objective, for the grids of strategies."""

from dataclasses import replace

import torch
from torch import nn

from qprune.network.weights import find_weights
from qprune.objective.losses import DenseOutputs
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import Samples, forward

SAMPLES = 24


def network():
    """A tanh network of 5-6-3 units in double precision, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def objective(model=None, loss=None, moved=0.3):
    """KL to the dense outputs at weights ``moved`` away from the dense ones."""
    model = model or network()
    weights = find_weights(model)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
    answers = forward(model, inputs).detach()
    shift = torch.randn(weights.size, generator=generator, dtype=torch.float64)
    weights.write(weights.read() + moved * shift)
    resolved = (loss or DenseOutputs(fit_scale=False)).resolved(answers, None)
    return Objective(model, weights, Samples(inputs, answers), resolved, 7, SAMPLES)


def shuffled(made):
    """The same objective with its samples in another order."""
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(2))
    return replace(made, samples=made.samples.take(order))


def broken(made):
    """The same objective with a weight of the first layer that is not a number."""
    made.weights[0].parameter.data[0, 0] = torch.nan
    return made
