"""Trials: pruning runs that can be repeated in another process with any sampler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from qprune.data.calibration import Calibration, as_calibration
from qprune.errors import ImpossibleRequestError
from qprune.prune import Pruned, prune
from qprune.record.fingerprint import digest_of_data, digest_of_model, plain_settings
from qprune.results import Score
from qprune.steps.solve import BlockObserver
from qprune.walk.journal import Limits

#: Options that the study sets itself.
RESERVED = (
    "sampler",
    "sampler_options",
    "seed",
    "observe",
    "observe_blocks",
    "evaluate",
    "executor",
    "output_dir",
    "resume_from",
)


@dataclass(frozen=True, eq=False)
class Loaded:
    """Trial with model and data in memory.

    Attributes:
        model: dense model, never changed.
        calibration: seed -> calibration samples of the run with that seed.
        evaluate: model -> its score on test data; None without.
        options: options of `qprune.prune`.
    """

    model: nn.Module
    calibration: Callable[[int], Calibration]
    evaluate: Callable[[nn.Module], Score] | None
    options: Mapping[str, Any]

    def prune(self, sampler: Any, seed: int, observe_blocks: Sequence[BlockObserver]) -> Pruned:
        """Make one run.

        Raises:
            QpruneError, SolverError: see `qprune.prune`.
        """
        return prune(
            copy.deepcopy(self.model),
            self.calibration(seed),
            sampler=sampler,
            seed=seed,
            evaluate=self.evaluate,
            observe_blocks=observe_blocks,
            **self.options,
        )


class Trial(Protocol):
    """Protocol of a trial: a run for any sampler, sent to another process."""

    @property
    def title(self) -> str:
        """Short title of the run."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return all that decides the run, JSON-friendly; equal for equal trials only."""
        ...

    def load(self) -> Loaded:
        """Load model and data."""
        ...


@dataclass(frozen=True, eq=False)
class ModelTrial:
    """Run of `qprune.prune` on a model in memory.

    Args:
        model: dense, picklable; not changed.
        calibration: as for `qprune.prune`; the same for all seeds.
        evaluate: model -> `Score` on test data; defined in a module, not in a notebook.
        options: of `qprune.prune`: sparsity, stages, ...
        name: in figures and tables; the model's class if not given.

    Raises:
        ImpossibleRequestError: an option is set by the study, or unknown to `qprune.prune`.
    """

    model: nn.Module
    calibration: Any
    evaluate: Callable[[nn.Module], Score] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        known = set(inspect.signature(prune).parameters) - {"model", "calibration", "moved"}
        for option in self.options:
            if option in RESERVED:
                raise ImpossibleRequestError(f"{option} is the study's to choose; leave it out")
            if option not in known:
                raise ImpossibleRequestError(
                    f"qprune.prune has no option {option!r}; it has: {', '.join(sorted(known))}"
                )

        limits = self.options.get("limits", Limits())
        if limits.max_seconds is not None or limits.should_stop is not None:
            raise ImpossibleRequestError(
                "max_seconds and should_stop in limits are the study's to choose; leave them out"
            )

    @property
    def title(self) -> str:
        """Name and sparsity."""
        sparsity = self.options.get("sparsity")
        asked = "" if sparsity is None else f" pruned to {100 * sparsity:.4g} %"
        return (self.name or type(self.model).__name__) + asked

    def to_json(self) -> dict[str, Any]:
        """Return digests of model and data, and the options."""
        return plain_settings(
            {
                "model": digest_of_model(self.model),
                "data": digest_of_data(as_calibration(self.calibration, self.model)),
                **self.options,
            }
        )

    def load(self) -> Loaded:
        """Return the trial itself, already in memory."""
        data = as_calibration(self.calibration, self.model)
        return Loaded(self.model, lambda seed: data, self.evaluate, self.options)
