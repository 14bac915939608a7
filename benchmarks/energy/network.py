"""The network form: a pruning run with one sampler; its blocks' energies, its loss on test data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

import qprune
from benchmarks.energy.measures import in_parts, missed, short
from benchmarks.energy.plan import Network, Run
from qprune.results import Step
from qprune.steps.solve import SolvedBlock
from solvers import Ask

#: Parts of the test set, whose means say how well the whole one's is known.
PARTS = 50
_BATCH = 500
# A promise of less, nats, is rounding.
_NOTHING = 1e-9


@dataclass(eq=False)
class Certified:
    """Observer of blocks: the answer's energy, and a bound below which no answer can be.

    Attributes:
        energies, bounds: nats, one for each answer; leaving a block as it is has energy 0.
        spent: CPU seconds of the bounds, which are not the run's.
    """

    energies: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    spent: float = 0.0

    def __call__(self, block: SolvedBlock) -> None:
        """Note one answer."""
        began = time.process_time()
        found = Ask.to("relax")(block.problem, block.present, block.seed)
        self.energies.append(block.answer.energy)
        self.bounds.append(min(0.0, max(found.lower_bound, block.answer.lower_bound)))
        self.spent += time.process_time() - began


@dataclass(frozen=True)
class Subject:
    """A network with its data, loaded once.

    Args:
        part: its name in `qprune.models.zoo`.
        network: its setting.
        folder: with its files.
    """

    part: str
    network: Network
    folder: Path

    @cached_property
    def data(self) -> Any:
        """The images."""
        spec = f"{self.network.data}:{self.folder / self.network.images}"
        return qprune.load_data(spec)

    @cached_property
    def model(self) -> nn.Module:
        """The dense network; not to be changed."""
        return qprune.load_model(self.part, self.folder / self.network.weights)

    @cached_property
    def dense(self) -> Tensor:
        """Its outputs for the test images, shape (samples, classes)."""
        return outputs(self.model, self.data.test_inputs)

    def result(self, run: Run) -> dict[str, Any]:
        """Make a run; what is noted of it."""
        asked = self.network.staged if run.schedule == "staged" else self.network.one_shot
        method = qprune.Networkwise(
            block_size=self.network.block_size, samples_per_step=self.network.samples, **asked
        )
        calibration = self.data.calibration(self.network.calibration, seed=run.seed)
        certified = Certified()
        pruned = qprune.prune(
            deepcopy(self.model),
            calibration,
            sparsity=float(run.sparsity),
            method=method,
            sampler=run.sampler,
            sampler_options=run.options,
            compensate=run.moves,
            observe_blocks=certified,
            seed=run.seed,
        )
        report = pruned.report
        return {
            "missed": missed(certified.energies, certified.bounds),
            "energies": short(certified.energies),
            "bounds": short(certified.bounds),
            **self.quality(pruned.model, calibration.inputs),
            **promises(report.steps),
            "cpu_seconds": report.cpu_seconds - certified.spent,
        }

    def quality(self, pruned: nn.Module, inputs: Tensor) -> dict[str, list[float]]:
        """Return loss (nats against the dense outputs) and accuracy, of parts of the test set.

        The loss is the run's own, which leaves the scale of the outputs open: it is chosen on the
        calibration ``inputs``.
        """
        scale = fitted_scale(outputs(pruned, inputs), outputs(self.model, inputs))
        found = outputs(pruned, self.data.test_inputs)
        right = (found.argmax(1) == self.data.test_labels).double()
        return {
            "losses": short(in_parts(divergences(scale * found, self.dense).numpy(), PARTS)),
            "scores": short(in_parts(100 * right.numpy(), PARTS)),
        }


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the model's logits in float64, shape (samples, classes)."""
    return torch.cat([model(batch).double() for batch in inputs.split(_BATCH)])


def divergences(logits: Tensor, dense: Tensor) -> Tensor:
    """Return each sample's divergence from the dense network's distribution, nats."""
    pair = (log_softmax(logits, dim=1), log_softmax(dense, dim=1))
    return kl_div(*pair, reduction="none", log_target=True).sum(1)


def fitted_scale(logits: Tensor, dense: Tensor) -> float:
    """Return the factor of ``logits`` that brings them closest to the dense network's.

    Example:
        >>> dense = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
        >>> round(fitted_scale(dense / 4, dense), 2)
        4.0
    """
    found: Any = minimize_scalar(
        lambda log: float(divergences(np.exp(log) * logits, dense).mean()),
        bounds=(-3.0, 3.0),
        method="bounded",
    )
    return float(np.exp(found.x))


def promises(steps: Sequence[Step]) -> dict[str, Any]:
    """Return what the first proposal of every expansion promised and what it brought, in nats."""
    asked: dict[tuple[int, int], Step] = {}
    for step in steps:
        if step.kind == "blocks" and (step.predicted or 0.0) < -_NOTHING:
            asked.setdefault((step.stage, step.round), step)
    return {
        "predicted": short([step.predicted or 0.0 for step in asked.values()]),
        "real": short([step.at_once or 0.0 for step in asked.values()]),
        "taken": [int(step.accepted) for step in asked.values()],
        "flips": sum(step.flips for step in steps if step.kind == "blocks"),
    }
