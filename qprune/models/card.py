"""Model card: request and outcome, in a table beside the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from qprune.errors import DISK, RunFolderError
from qprune.models.pretrained import HUB
from qprune.results import LayerRecord, Score
from solvers.host.disk import read_json

#: File names of a model's page on Hugging Face, and of its JSON form.
CARD, CARD_JSON = "README.md", "pruning.json"


@dataclass(frozen=True)
class Perplexity:
    """Perplexity with its text and windows.

    Attributes:
        value: exponential of the mean negative log-likelihood of the predicted tokens.
        data: the text, as `qprune.models.text` names sources; its test split.
        max_seq_length: tokens in a window.
        stride: tokens from the start of a window to that of the next.
        windows: number of windows.
        predicted_tokens: number of tokens in the mean.
    """

    value: float
    data: str
    max_seq_length: int
    stride: int
    windows: int
    predicted_tokens: int

    @property
    def score(self) -> Score:
        """Score for reports: the logarithm of the perplexity, nats per token."""
        return Score(None, math.log(self.value), self.value)

    @property
    def named(self) -> str:
        """Name of the figure."""
        return "test perplexity"

    @property
    def shown(self) -> str:
        """Figure as text for a table."""
        return f"{self.value:.3f}"

    @property
    def where(self) -> str:
        """Data of the measurement."""
        return f"{self.data}, windows of {self.max_seq_length} tokens, stride {self.stride}"


@dataclass(frozen=True)
class Divergence:
    """Divergence of a model's outputs from the dense one's, on held-out data.

    Attributes:
        value: mean over the samples of the run's loss; 0 for the dense model itself.
        unit: "nats per token", "nats per sample" or the like.
        data: name of the data, whose test part is used.
        samples: number of samples.
        max_seq_length: tokens per sample; None for images.
        accuracy: share of the labels of the data that the model finds; None without labels.
    """

    value: float
    unit: str
    data: str
    samples: int
    max_seq_length: int | None
    accuracy: float | None = None

    @property
    def score(self) -> Score:
        """Score for reports."""
        return Score(self.accuracy, self.value)

    @property
    def named(self) -> str:
        """Names of the figures."""
        besides = "" if self.accuracy is None else ", accuracy"
        return f"divergence from the dense model ({self.unit}){besides}"

    @property
    def shown(self) -> str:
        """Figures as text for a table."""
        besides = "" if self.accuracy is None else f", {100 * self.accuracy:.2f} %"
        return f"{self.value:.4g}{besides}"

    @property
    def where(self) -> str:
        """Data of the measurement."""
        length = f" of {self.max_seq_length} tokens" if self.max_seq_length else ""
        return f"{self.data}, {self.samples} samples{length}"


Quality = Perplexity | Divergence


@dataclass(frozen=True)
class Card:
    """The outcome of pruning a checkpoint.

    Attributes:
        base_model: folder or hub id of the dense model.
        method: name of the pruning method.
        asked_sparsity: requested share of zeros among the targeted weights.
        layers: targeted tensors and their numbers of zeros.
        mask_structure: "2:4" and the like, None for none.
        dense: quality of the dense model, if it was measured.
        pruned: quality of the pruned model.
        settings: all other settings, JSON-friendly.
        architecture: the class of both.
        unused: weights of the dense checkpoint that the class does not use; not saved.
    """

    base_model: str
    method: str
    asked_sparsity: float
    layers: tuple[LayerRecord, ...]
    mask_structure: str | None = None
    dense: Quality | None = None
    pruned: Quality | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = ""
    unused: tuple[str, ...] = ()

    @property
    def achieved_sparsity(self) -> float:
        """Share of targeted weights that the mask prunes."""
        return sum(layer.num_pruned for layer in self.layers) / max(
            sum(layer.num_weights for layer in self.layers), 1
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes."""
        return asdict(self) | {"achieved_sparsity": self.achieved_sparsity}

    @classmethod
    def read(cls, folder: Path) -> Card:
        """Read the card of a pruned folder.

        Raises:
            RunFolderError: there is none, or it cannot be read.
        """
        try:
            record = read_json(DISK.read_regular(folder / CARD_JSON))
            del record["achieved_sparsity"]
            return TypeAdapter(cls).validate_python(record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{folder / CARD_JSON} cannot be read: {' '.join(str(error).split())}"
            ) from error

    def to_markdown(self) -> str:
        """Return the model's page for the Hugging Face hub."""
        structure = f", {self.mask_structure}" if self.mask_structure else ""
        # The hub accepts its own ids only, no paths.
        hub_id = self.base_model.removeprefix(HUB) if self.base_model.startswith(HUB) else None
        lines = [
            "---",
            *([f"base_model: {hub_id}"] if hub_id else []),
            "tags: [pruned, qprune]",
            "---",
            f"# {hub_id or self.base_model}, pruned",
            "",
            f"{100 * self.achieved_sparsity:.2f} % of the targeted weights are exactly zero "
            f"({100 * self.asked_sparsity:.2f} % asked{structure}), by `qprune` with method "
            f"`{self.method}`. `mask.safetensors` has the mask at one bit a weight.",
            "",
            *self._unused_lines(),
            *self._quality_lines(),
            "| weight | shape | zero |",
            "|---|---|---|",
            *(
                f"| {layer.name} | {'x'.join(map(str, layer.shape))} | "
                f"{100 * layer.sparsity:.2f} % |"
                for layer in self.layers
            ),
        ]
        return "\n".join(lines) + "\n"

    def _unused_lines(self) -> list[str]:
        if not self.unused:
            return []
        names = ", ".join(f"`{name}`" for name in self.unused)
        return [
            f"The dense checkpoint also holds {len(self.unused)} weights that a "
            f"{self.architecture} has no place for; they are not here: {names}.",
            "",
        ]

    def _quality_lines(self) -> list[str]:
        if self.pruned is None:
            return []
        dense = [f"| dense | {self.dense.shown} |"] if self.dense else []
        return [
            f"| {self.pruned.where} | {self.pruned.named} |",
            "|---|---|",
            *dense,
            f"| pruned | {self.pruned.shown} |",
            "",
        ]


def layer_records(
    mask: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
) -> tuple[LayerRecord, ...]:
    """Return one record per masked tensor, in the mask's order; zeros from ``weights`` if given."""
    zeros = {name: int((weights[name] == 0).sum()) for name in mask} if weights else {}
    return tuple(
        LayerRecord(name, tuple(kept.shape), kept.numel(), int((~kept).sum()), zeros.get(name))
        for name, kept in mask.items()
    )
