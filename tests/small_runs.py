"""Runs of the walk put together by hand, on one layer of a dozen weights."""

import torch

from qprune.moving.guards import Dense
from qprune.network.groups import Global
from qprune.network.weights import find_weights
from qprune.objective.losses import PerSample
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import Samples
from qprune.walk.journal import Journal, Limits
from qprune.walk.run import Run

INPUTS = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
LOSS = PerSample(lambda outputs, targets: (outputs - targets).square().sum(1), needs_labels=False)


def run_of(model, *, limits=Limits(), batch_size=16, compensate=None):
    """A run without a sampler, over `INPUTS`, that keeps to the dense outputs."""
    weights = find_weights(model)
    with torch.no_grad():
        samples = Samples(INPUTS, model(INPUTS))
    objective = Objective(model, weights, samples, LOSS, batch_size, len(INPUTS))
    return Run(
        objective=objective,
        judge=objective,
        groups=Global().groups(weights, 0.5),
        dense=Dense.of(weights),
        compensate=compensate,
        ask=None,
        journal=Journal(limits),
        observe_blocks=(),
        executor=None,
        generator=torch.Generator().manual_seed(0),
        seed=0,
    )
