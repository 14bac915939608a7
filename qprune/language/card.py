"""What was asked and what came out, in a table beside the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.table import Table
from torch import Tensor

from qprune.errors import RunFolderError
from qprune.folder import read_regular
from qprune.language.models import HUB
from qprune.records import read_json
from qprune.steps import LayerRecord, Score

#: The Hugging Face name of a model's page, and the same for programs.
CARD, CARD_JSON = "README.md", "pruning.json"


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with all that it depends on.

    Attributes:
        value: exponential of the mean negative log-likelihood of the predicted tokens.
        data: the text, as `qprune.language.text` names sources; its test split.
        max_seq_length: tokens in a window.
        stride: tokens from the start of a window to that of the next.
        windows: how many windows.
        predicted_tokens: over how many tokens the mean goes.
    """

    value: float
    data: str
    max_seq_length: int
    stride: int
    windows: int
    predicted_tokens: int

    @property
    def score(self) -> Score:
        """As reports have it: its logarithm, nats a token."""
        return Score(None, math.log(self.value))

    @property
    def named(self) -> str:
        """What the figure is."""
        return "test perplexity"

    @property
    def shown(self) -> str:
        """The figure, for a table."""
        return f"{self.value:.3f}"

    @property
    def where(self) -> str:
        """What it was measured on."""
        return f"{self.data}, windows of {self.max_seq_length} tokens, stride {self.stride}"


@dataclass(frozen=True)
class Divergence:
    """How far a model's outputs are from the dense one's, on held-out data.

    Attributes:
        value: mean over the samples of the run's loss; 0 for the dense model itself.
        unit: "nats per token", "nats per sample" or the like.
        data: what it was measured on, its test part.
        samples: how many.
        max_seq_length: tokens in one of them; None for images.
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
        """As reports have it."""
        return Score(self.accuracy, self.value)

    @property
    def named(self) -> str:
        """What the figures are."""
        besides = "" if self.accuracy is None else ", accuracy"
        return f"divergence from the dense model ({self.unit}){besides}"

    @property
    def shown(self) -> str:
        """The figures, for a table."""
        besides = "" if self.accuracy is None else f", {100 * self.accuracy:.2f} %"
        return f"{self.value:.4g}{besides}"

    @property
    def where(self) -> str:
        """What it was measured on."""
        length = f" of {self.max_seq_length} tokens" if self.max_seq_length else ""
        return f"{self.data}, {self.samples} samples{length}"


Quality = Perplexity | Divergence


@dataclass(frozen=True)
class Card:
    """The outcome of pruning a checkpoint.

    Attributes:
        base_model: folder or hub id of the dense model.
        method: how it was pruned.
        asked_sparsity: share of targeted weights that was to be zero.
        layers: targeted tensors and how many of their weights are zero.
        mask_structure: "2:4" and the like, None for none.
        dense: how good the dense model is, if it was measured.
        pruned: the same of the pruned model.
        settings: everything else that was asked, JSON-friendly.
        architecture: the class of both.
        unused: weights that the dense checkpoint held besides, and that are not here.
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
        """A dict that `json.dumps` takes."""
        return asdict(self) | {"achieved_sparsity": self.achieved_sparsity}

    @classmethod
    def read(cls, folder: Path) -> Card:
        """The card that a pruned folder has.

        Raises:
            RunFolderError: there is none, or it cannot be read.
        """
        try:
            record = read_json(read_regular(folder / CARD_JSON))
            del record["achieved_sparsity"]
            return TypeAdapter(cls).validate_python(record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{folder / CARD_JSON} cannot be read: {' '.join(str(error).split())}"
            ) from error

    def to_markdown(self) -> str:
        """A model's page as the Hugging Face hub shows it."""
        structure = f", {self.mask_structure}" if self.mask_structure else ""
        # The hub takes its own ids only; a folder's path means nothing there.
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

    def to_table(self) -> Table:
        """The same for a terminal."""
        table = Table(
            title=f"{100 * self.achieved_sparsity:.2f} % of targeted weights are zero, "
            f"{100 * self.asked_sparsity:.2f} % asked"
        )
        for name in ("weight", "shape"):
            table.add_column(name)
        table.add_column("zero", justify="right")
        for layer in self.layers:
            shape = "x".join(map(str, layer.shape))
            table.add_row(layer.name, shape, f"{100 * layer.sparsity:.2f} %")
        if self.pruned is not None:
            dense = f"{self.dense.shown} dense, " if self.dense else ""
            table.caption = f"{self.pruned.named} {dense}{self.pruned.shown} pruned"
        return table

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
    """One record for each masked tensor, in the mask's order; with ``weights``, of zeros too."""
    zeros = {name: int((weights[name] == 0).sum()) for name in mask} if weights else {}
    return tuple(
        LayerRecord(name, tuple(kept.shape), kept.numel(), int((~kept).sum()), zeros.get(name))
        for name, kept in mask.items()
    )
