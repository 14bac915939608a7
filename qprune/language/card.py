"""What was asked and what came out, in a table beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.table import Table
from torch import Tensor

from qprune.errors import RunFolderError
from qprune.language.models import HUB
from qprune.records import read_json
from qprune.steps import LayerRecord

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


@dataclass(frozen=True)
class Card:
    """The outcome of pruning a language model.

    Attributes:
        base_model: folder or hub id of the dense model.
        method: how it was pruned.
        asked_sparsity: share of targeted weights that was to be zero.
        layers: targeted tensors and how many of their weights are zero.
        mask_structure: "2:4" and the like, None for none.
        dense: perplexity of the dense model, if it was measured.
        pruned: perplexity of the pruned model.
        settings: everything else that was asked, JSON-friendly.
    """

    base_model: str
    method: str
    asked_sparsity: float
    layers: tuple[LayerRecord, ...]
    mask_structure: str | None = None
    dense: Perplexity | None = None
    pruned: Perplexity | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

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
            record = read_json((folder / CARD_JSON).read_bytes())
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
            *self._perplexity_lines(),
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
            dense = f"{self.dense.value:.3f} dense, " if self.dense else ""
            table.caption = f"test perplexity {dense}{self.pruned.value:.3f} pruned"
        return table

    def _perplexity_lines(self) -> list[str]:
        if self.pruned is None:
            return []
        at = self.pruned
        dense = [f"| dense | {self.dense.value:.3f} |"] if self.dense else []
        return [
            f"| {at.data}, windows of {at.max_seq_length} tokens, stride {at.stride} "
            "| test perplexity |",
            "|---|---|",
            *dense,
            f"| pruned | {at.value:.3f} |",
            "",
        ]


def layer_records(mask: Mapping[str, Tensor]) -> tuple[LayerRecord, ...]:
    """One record for each masked tensor, in the mask's order."""
    return tuple(
        LayerRecord(name, tuple(kept.shape), kept.numel(), int((~kept).sum()))
        for name, kept in mask.items()
    )
