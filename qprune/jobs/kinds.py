"""Kinds of models: how each is loaded, pruned, scored and saved; the only place that asks which."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qprune.data.augment import Augmentation
from qprune.data.calibration import Calibration
from qprune.data.inputs import mapped
from qprune.errors import DISK, ImpossibleRequestError
from qprune.jobs.settings import Settings
from qprune.models.card import CARD_JSON, Card, Quality, layer_records
from qprune.models.datasets import DataSet, load_data
from qprune.models.evaluate import Track
from qprune.models.heads import Samples, Subject, head_of
from qprune.models.pretrained import (
    IMAGES,
    is_pretrained,
    load_checkpoint,
    load_pretrained,
    stored_dtype,
)
from qprune.models.save import save_model
from qprune.models.zoo import load_model
from qprune.moving.distill import Distillation
from qprune.network.groups import Budget, Global, PerLayer, PerRow
from qprune.network.layouts import Kind as WeightKind
from qprune.network.layouts import layout_of
from qprune.network.transformer import block_weights, find_blocks, reproduces, stores
from qprune.network.weights import Weight, Weights, indexed
from qprune.objective.losses import Loss
from qprune.prune import Pruned
from qprune.record.folder import FILES, MODEL, RunFolder
from qprune.results import LayerRecord, Report, Score
from qprune.steps.reconstruct import ROWS, RowMethod, SampledRows
from qprune.walk.layerwise import Layerwise
from qprune.walk.networkwise import Networkwise
from qprune.walk.sensitivity import Sensitivity
from solvers import Ask

logger = logging.getLogger(__name__)

Tell = Callable[[str, int, int], None]
"""Progress callback: (description of the work, number done, total)."""


def untold(what: str, done: int, total: int) -> None:
    """Do nothing: the `Tell` without a display."""


class Kind(ABC):
    """Base of the kinds of model; an instance is one model of it, loaded with its data.

    Whoever adds a kind writes a class with these methods, and names it in `KINDS` and `kind_of`.

    Attributes:
        foreign: settings that have no meaning for the kind.
        alone: True if one process alone prunes such a model from the command line.
        needed: files of a finished run's folder.
        loaded: True if any file of the folder may be read with the model, so that a new one has to
            be empty.
        scored_along: True if scoring is cheap enough for a curve along the run.
        model: dense, in evaluation mode.
        carried: name of the method that is carried out.
    """

    foreign: ClassVar[frozenset[str]]
    alone: ClassVar[bool]
    needed: ClassVar[tuple[str, ...]]
    loaded: ClassVar[bool]
    scored_along: ClassVar[bool]
    model: nn.Module
    carried: str

    @property
    @abstractmethod
    def calibration(self) -> Calibration:
        """The only data that pruning uses."""

    @property
    def stored(self) -> torch.dtype | None:
        """Dtype of the saved weights; None = their own."""
        return None

    @property
    def figure(self) -> str:
        """Words for the loss in a score."""
        return "test loss, nats"

    @classmethod
    @abstractmethod
    def completed(cls, settings: Settings) -> Settings:
        """Return the settings with the kind's defaults.

        Raises:
            ImpossibleRequestError: one of them has no meaning for the kind, or for its method.
        """

    @classmethod
    def ends_in_order(cls, settings: Settings) -> bool:
        """Return True if a run that is asked to stop ends with its best mask."""
        return True

    @classmethod
    @abstractmethod
    def load(cls, settings: Settings) -> Self:
        """Load model and data.

        Raises:
            QpruneError: one of them is not available, or they do not fit.
        """

    @abstractmethod
    def arguments(
        self, tell: Tell = untold, enough: Callable[[], bool] | None = None
    ) -> dict[str, Any]:
        """Return the arguments of `qprune.prune`, the method among them, except the limits.

        Args:
            tell: of what a method does besides its steps.
            enough: True ends the writing of calibration text.
        """

    @abstractmethod
    def score(self, model: nn.Module, track: Track) -> Score:
        """Return the score on held-out data; the first model is the dense one."""

    @abstractmethod
    def write(self, pruned: Pruned, folder: RunFolder) -> tuple[Report, tuple[str, ...]]:
        """Write weights and mask.

        Returns:
            The report, true of what was written, and the names of further files.
        """

    @classmethod
    @abstractmethod
    def read(
        cls, path: Path, settings: Settings, report: Report
    ) -> tuple[Weights, Mapping[str, Tensor]]:
        """Return a finished run's targets, and its tensors by parameter name.

        Raises:
            QpruneError, OSError, SafetensorError: they cannot be read.
        """

    @classmethod
    @abstractmethod
    def budget(cls, settings: Settings, method: str) -> Budget:
        """Return the parts with exact counts, where there is no mask structure."""

    @abstractmethod
    def pruned(self, path: Path) -> nn.Module:
        """Return the pruned model in a folder.

        Raises:
            QpruneError, RuntimeError, SafetensorError: it does not fit.
        """


def kind_of(settings: Settings) -> type[Kind]:
    """Return the kind of the model that is asked for."""
    checkpoint = settings.method is not None or is_pretrained(settings.model)
    return KINDS["checkpoints" if checkpoint else "images"]


# Settings that are fields of the method.
_NETWORKWISE = (
    *("start", "curvature", "block_size", "num_blocks", "stages", "rounds", "final_rounds"),
    "samples_per_step",
)


@dataclass(frozen=True, eq=False)
class Images(Kind):
    """Networks by name or factory, on labelled data, pruned across all layers.

    Attributes:
        settings: completed.
        model: the network.
        data: labelled samples.
    """

    foreign: ClassVar = frozenset(
        {"method", "stage2_steps", "max_seq_length", "dtype", "device", "offload"}
    )
    alone: ClassVar = False
    needed: ClassVar = FILES
    loaded: ClassVar = False
    scored_along: ClassVar = True
    settings: Settings
    model: nn.Module
    data: DataSet
    carried: str = "networkwise"

    @classmethod
    def completed(cls, settings: Settings) -> Settings:
        defaults = {"start": "fisher", "sampler": "relax", "curvature": "fisher", "loss": "dense"}
        numbers = {"budget": "global", "num_blocks": 1, "num_calibration_samples": 1000}
        found = settings.with_defaults(
            defaults | numbers, cls.foreign, f"{settings.model}, which is no checkpoint"
        )
        _ = found.asked_sparsity
        Ask.to(found.sampler, found.sampler_options)
        return found

    @classmethod
    def load(cls, settings: Settings) -> Images:
        model = load_model(settings.model, settings.weights)
        return cls(settings, model, load_data(settings.data, settings.normalization))

    @property
    def calibration(self) -> Calibration:
        return self.data.calibration(self.settings.num_calibration_samples or 1, self.settings.seed)

    def arguments(
        self, tell: Tell = untold, enough: Callable[[], bool] | None = None
    ) -> dict[str, Any]:
        names = ("start", "curvature", "block_size", "num_blocks", "stages", "rounds")
        fields = {
            n: getattr(self.settings, n) for n in (*names, "final_rounds", "samples_per_step")
        }
        method = Networkwise(**{n: value for n, value in fields.items() if value is not None})
        augment = self.data.augment if self.settings.augment else None
        return self.settings.arguments() | {"method": method, "augment": augment}

    def score(self, model: nn.Module, track: Track) -> Score:
        return self.data.score(model, self.settings.loss or "dense")

    def write(self, pruned: Pruned, folder: RunFolder) -> tuple[Report, tuple[str, ...]]:
        folder.write_weights(pruned.model, pruned.mask)
        return pruned.report, ()

    @classmethod
    def read(
        cls, path: Path, settings: Settings, report: Report
    ) -> tuple[Weights, Mapping[str, Tensor]]:
        return _as_weights(report.layers), load_file(DISK.regular(path / MODEL))

    @classmethod
    def budget(cls, settings: Settings, method: str) -> Budget:
        budgets: dict[str | None, Budget] = {"layer": PerLayer(), "row": PerRow()}
        return budgets.get(settings.budget, Global())

    def pruned(self, path: Path) -> nn.Module:
        model = load_model(self.settings.model, self.settings.weights)
        model.load_state_dict(load_file(DISK.regular(path / MODEL)))
        return model


#: Optimiser steps across the network where nothing is said.
STAGE2_STEPS = 96
#: Share of the calibration sequences on which steps are judged, and never fitted.
ACCEPT_SHARE = 0.125
# Sequences of one expansion for block moves: each costs several passes.
_EXPANDED = 64
_NUM_BLOCKS = 16
# With 0.1 or 3, moves of some thousand weights that promised to end all of the loss doubled it; the
# mean curvature of so many weights is next to nothing.
_DAMPING = 300.0
# Settings that only method qprune uses.
_ACROSS = ("stage2_steps", "rounds", "block_size", "num_blocks", "max_seconds", "executor")


@dataclass(frozen=True, eq=False)
class Language(Kind):
    """Transformers checkpoints: layer by layer, and across the network where that can be.

    Attributes:
        settings: completed.
        model: the checkpoint's.
        subject: the model with its data.
        carried: name of the method that is carried out; where the loss at the network's end
            cannot move the weights, "reconstruct" instead of "qprune".
        across_alone: True where blocks cannot be pruned one after the other.
        qualities: found by `score`, the dense model's first.
    """

    foreign: ClassVar = frozenset(
        {"weights", "start", "curvature", "loss", "stages", "final_rounds", "samples_per_step"}
        | {"max_steps"}
    )
    alone: ClassVar = True
    needed: ClassVar = (*(name for name in FILES if name != MODEL), "config.json", CARD_JSON)
    loaded: ClassVar = True
    scored_along: ClassVar = False
    settings: Settings
    model: nn.Module
    subject: Subject
    carried: str
    across_alone: bool
    qualities: list[Quality] = field(default_factory=list)

    @classmethod
    def completed(cls, settings: Settings) -> Settings:
        model = settings.model
        if not is_pretrained(model) and not Path(model).is_absolute():
            raise ImpossibleRequestError(
                f"--method is of transformers checkpoints, and {model} is none (a folder with "
                "config.json, or hf:ID); leave it out, or give a checkpoint"
            )
        defaults = {"method": "qprune", "num_calibration_samples": 128, "dtype": "float32"}
        places = {"device": "cpu", "offload": "cpu"}
        found = settings.with_defaults(
            defaults | places, cls.foreign, f"{model}, a transformers checkpoint"
        )
        _refuse_idle(found)
        if found.method == "qprune":
            Ask.to(found.sampler or "relax", found.sampler_options)
        _row_method(found, found.method or "")
        return found

    @classmethod
    def ends_in_order(cls, settings: Settings) -> bool:
        # The counts need every block: one pass, layer by layer, could not end before its end.
        return settings.method in (None, "qprune")

    @classmethod
    def load(cls, settings: Settings) -> Language:
        loaded = load_checkpoint(
            settings.model, dtype=settings.dtype or "float32", device=settings.device or "cpu"
        )
        head = head_of(loaded.model)
        for option in head.useless:
            if getattr(settings, option) is not None:
                raise ImpossibleRequestError(
                    f"{settings.model} is {head.task.described}, and --{option.replace('_', '-')} "
                    "says nothing to it; leave it out"
                )
        samples = Samples(
            settings.data,
            settings.num_calibration_samples or 128,
            settings.max_seq_length,
            settings.normalization,
            settings.seed,
            settings.evaluate,
        )
        subject = head.subject(samples, loaded)
        carried = settings.method or "qprune"
        across_alone = carried == "qprune" and not _in_order(settings, subject)
        if carried == "qprune" and not across_alone and not _crosses(settings, subject.model):
            carried = "reconstruct"
        return cls(settings, subject.model, subject, carried, across_alone)

    @property
    def calibration(self) -> Calibration:
        return self.subject.calibration

    @property
    def stored(self) -> torch.dtype | None:
        return stored_dtype(self.settings.model)

    @property
    def figure(self) -> str:
        return self.qualities[-1].named if self.qualities else ""

    def arguments(
        self, tell: Tell = untold, enough: Callable[[], bool] | None = None
    ) -> dict[str, Any]:
        shared = self.settings.arguments() | {"budget": self.budget(self.settings, self.carried)}
        loss = shared["loss"] = self.subject.head.criterion(self.model).loss
        if self.across_alone:
            return shared | self._across()
        if self.carried == "qprune":
            return shared | self._both(loss, tell, enough)
        for name in ("sampler", "sampler_options"):
            shared.pop(name, None)
        rows, offload = _row_method(self.settings, self.carried), self.settings.offload or "cpu"
        method = Layerwise(rows, shares=None, offload=offload)
        return shared | {"method": method, "augment": None}

    def _both(self, loss: Loss, tell: Tell, enough: Callable[[], bool] | None) -> dict[str, Any]:
        """Layer by layer at counts by sensitivity; then block moves, then distillation."""
        asked = self.settings
        steps = STAGE2_STEPS if asked.stage2_steps is None else asked.stage2_steps
        rounds = 0 if steps == 0 else 1 if asked.rounds is None else asked.rounds
        layers = Layerwise(
            shares=Sensitivity(loss=loss),
            offload=asked.offload or "cpu",
            compensate=asked.compensate,
        )
        across = Networkwise(
            start=None,
            stages=1,
            rounds=rounds,
            final_rounds=rounds,
            block_size=asked.block_size,
            num_blocks=asked.num_blocks or _NUM_BLOCKS,
            samples_per_step=_EXPANDED,
            damping=_DAMPING,
            accept_share=ACCEPT_SHARE,
        )
        found: dict[str, Any] = {"method": (layers, across), "augment": None, "compensate": False}
        if asked.compensate and steps:
            moved = partial(tell, "stage 2, moves across the network")
            found["compensate"] = Distillation(steps, final_steps=1, at_end=True, observe=moved)
        # Without distillation there is nothing that more text would be fitted by.
        if asked.augment and asked.compensate and steps:
            written = self.subject.head.own_text(
                self.model, partial(tell, "the model writes text"), enough or (lambda: False)
            )
            found["augment"] = self.subject.augment or written
        return found

    def _across(self) -> dict[str, Any]:
        """The walk across all layers with its own defaults, where stage 1 cannot be."""
        asked = self.settings
        if asked.stage2_steps is not None:
            raise ImpossibleRequestError(
                "--stage2-steps is of networks that are pruned layer by layer first, and a "
                f"{type(self.model).__name__} is not; leave it out"
            )
        method = Networkwise(
            rounds=asked.rounds, block_size=asked.block_size, num_blocks=asked.num_blocks or 1
        )
        augment: Augmentation | str | None = self.subject.augment or "auto"
        return {
            "method": method,
            "targets": [weight.name for weight in _targeted(self.model, asked)],
            "ignore": (),
            "augment": augment if asked.augment else None,
        }

    def score(self, model: nn.Module, track: Track) -> Score:
        def dense() -> nn.Module:
            if not self.qualities:
                return model
            source, dtype = self.settings.model, self.settings.dtype or "float32"
            return load_pretrained(source, dtype=dtype, device=self.settings.device or "cpu")

        if self.qualities:  # The figures are those of the folder.
            _round_to(model, self.stored)
        quality = self.subject.head.quality(self.subject, model, dense, track)
        self.qualities.append(quality)
        return quality.score

    def write(self, pruned: Pruned, folder: RunFolder) -> tuple[Report, tuple[str, ...]]:
        _round_to(pruned.model, self.stored)
        card = Card(
            base_model=self.settings.model,
            method=self.carried,
            asked_sparsity=self.settings.asked_sparsity,
            layers=layer_records(pruned.mask),
            mask_structure=self.settings.mask_structure,
            dense=self.qualities[0] if self.qualities else None,
            pruned=self.qualities[-1] if self.qualities else None,
            settings=self.settings.model_dump(mode="json", exclude=set(self.foreign))
            | {"max_seq_length": self.subject.length},
            architecture=type(pruned.model).__name__,
            unused=self.subject.unused,
        )
        written = save_model(
            folder.path,
            pruned.model,
            pruned.mask,
            tokenizer=self.subject.tokenizer,
            beside=self.subject.beside,
            card=card,
            dtype=self.stored,
        )
        layers = _recounted(pruned.report.layers, pruned.model)
        return replace(pruned.report, layers=layers), written

    @classmethod
    def read(
        cls, path: Path, settings: Settings, report: Report
    ) -> tuple[Weights, Mapping[str, Tensor]]:
        weights = _targeted(load_pretrained(str(path), dtype="auto"), settings)
        return weights, {w.parameter_name: w.parameter.detach() for w in weights}

    @classmethod
    def budget(cls, settings: Settings, method: str) -> Budget:
        if method == "qprune":
            return PerLayer() if settings.budget == "layer" else Global()
        by_row = settings.budget == "row" or (settings.budget is None and method == "wanda")
        return PerRow(alone=True) if by_row else PerLayer(alone=True)

    def pruned(self, path: Path) -> nn.Module:
        dtype, device = self.settings.dtype or "float32", self.settings.device or "cpu"
        return load_pretrained(str(path), dtype=dtype, device=device)


#: All kinds; every one is loaded, pruned, saved and checked by `tests/conformance/test_kinds.py`.
KINDS: Mapping[str, type[Kind]] = {"images": Images, "checkpoints": Language}


def _refuse_idle(settings: Settings) -> None:
    """Refuse settings that the method does not use.

    Raises:
        ImpossibleRequestError: names the option and the methods that use it.
    """
    structure, method, asked = settings.structure, settings.method, settings.asked_sparsity
    if structure is not None and abs(asked - structure.sparsity) > 1e-6:
        raise ImpossibleRequestError(
            f"--mask-structure {settings.mask_structure} means sparsity {structure.sparsity:g} "
            "everywhere; leave --sparsity out"
        )
    if method == "qprune":
        if settings.budget == "row":
            raise ImpossibleRequestError(
                "--budget row is of the layer-by-layer methods; with --method qprune counts "
                "hold over the whole network (global) or by layer"
            )
        return
    for name in _ACROSS:
        if getattr(settings, name) is not None:
            raise ImpossibleRequestError(
                f"--{name.replace('_', '-')} is of --method qprune, which goes on across the "
                f"network; {method} makes one pass, layer by layer"
            )
    if settings.budget == "global":
        raise ImpossibleRequestError(
            f"--budget global is of --method qprune; {method} counts by layer or row"
        )
    if settings.sampler is not None and method != "reconstruct":
        raise ImpossibleRequestError(
            f"--sampler is of --method qprune or reconstruct; {method} asks none"
        )
    if settings.sampler_options and settings.sampler is None:
        raise ImpossibleRequestError("--sampler-option needs a --sampler to go to")


def _row_method(settings: Settings, method: str) -> RowMethod:
    """Return the strategy for one matrix.

    Raises:
        SolverError: no such sampler or option.
    """
    if settings.method == "reconstruct" and settings.sampler not in (None, "rows"):
        return SampledRows(settings.sampler, settings.sampler_options)
    return ROWS["reconstruct" if method == "qprune" else method]


def _targeted(model: nn.Module, settings: Settings) -> Weights:
    """Return the weights to prune, all inside the model's blocks; of images convolutions, too.

    Raises:
        QpruneError: see `qprune.network.transformer.block_weights`.
    """
    convolutions = head_of(model).task is IMAGES
    return block_weights(model, settings.targets, settings.ignore, convolutions=convolutions)


def _in_order(settings: Settings, subject: Subject) -> bool:
    """Return True if an image classifier's blocks can be pruned one by one; others' always can."""
    model = subject.model
    if subject.head.task is not IMAGES:
        return True
    convolutions = any(isinstance(w.module, nn.Conv2d) for w in _targeted(model, settings))
    device = next(model.parameters()).device
    one = mapped(subject.calibration.inputs[:1], lambda tensor: tensor.to(device))
    with stores("cpu") as new_store:
        if not convolutions and reproduces(model, find_blocks(model), one, new_store):
            return True
    logger.warning(
        "the blocks of a %s change the shape of what they pass on, or hold convolutions: "
        "pruning across the network alone, as qprune.prune does",
        type(model).__name__,
    )
    return False


def _crosses(settings: Settings, model: nn.Module) -> bool:
    """Return True if the loss at the network's end can move the weights; log why it cannot."""
    reason = next(_reasons_against(_targeted(model, settings)), None)
    if reason is not None:
        logger.warning(
            "%s; stage 2 is for Linear layers on the CPU that all tokens reach: pruning layer by "
            "layer alone, as --method reconstruct does",
            reason,
        )
    return reason is None


def _reasons_against(weights: Weights) -> Iterator[str]:
    for weight in weights:
        if weight.expert is not None:
            yield f"{weight.name!r} is one of the experts {type(weight.module).__name__}, no Linear"
        if weight.routed:
            yield f"only some tokens reach {weight.name!r}"
        if weight.parameter.device.type != "cpu":
            yield f"{weight.name!r} is on {weight.parameter.device}, not on the CPU"


@torch.no_grad()
def _round_to(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Round floating-point weights in place to the type that they are stored in."""
    for parameter in model.parameters():
        if dtype is not None and parameter.is_floating_point():
            parameter.copy_(parameter.to(dtype))


def _recounted(records: Iterable[LayerRecord], model: nn.Module) -> tuple[LayerRecord, ...]:
    """Return the records with the zeros of the stored weights, in which small ones are zero."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return tuple(
        replace(one, num_zero=int((parameters[one.parameter] == 0).sum())) for one in records
    )


def _as_weights(records: Iterable[LayerRecord]) -> Weights:
    """Return weights of the recorded shapes, without values."""
    items = []
    for record in records:
        tensor = torch.empty(record.shape, device="meta")
        kind = WeightKind(layout=layout_of(record.input_groups))
        items.append(Weight(record.name, record.parameter, tensor, nn.Module(), 0, kind))
    return Weights(indexed(items))


# Of the time there is, for text that the model writes.
_TEXT_SHARE = 0.25


def text_limit(seconds: float | None, should_stop: Callable[[], bool] | None) -> Callable[[], bool]:
    """Return a callback that is True once text has had its share of the time, or a stop is asked.

    Args:
        seconds: time limit of the run; None = none.
        should_stop: asked too.
    """
    end = math.inf if seconds is None else time.perf_counter() + _TEXT_SHARE * seconds
    return lambda: (should_stop is not None and should_stop()) or time.perf_counter() > end
