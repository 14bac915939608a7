"""The objective of a small network, for the grids of strategies."""

from dataclasses import replace

import torch
from small_networks import tanh_network

from qprune.network.weights import find_weights
from qprune.objective.losses import DenseOutputs
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import Samples, forward

SAMPLES = 24


def objective(model=None, loss=None, moved=0.3):
    """KL to the dense outputs at weights ``moved`` away from the dense ones."""
    model = model or tanh_network()
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
