"""Application of a mask to a checkpoint that was fine-tuned or merged after pruning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.hold import hold, read_mask_of
from qprune.language.card import CARD_JSON
from qprune.language.models import load_pretrained
from qprune.language.save import save_model
from qprune.packed import MASK_FILE

#: Files copied with a checkpoint: tokenizers, image processors, templates.
_COMPANIONS = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Reapplied:
    """Outcome of `reapply_mask`.

    Attributes:
        num_weights: number of weights that the mask covers.
        num_pruned: number of them that it prunes.
        num_filled: number of those that were no longer zero.
    """

    num_weights: int
    num_pruned: int
    num_filled: int


def reapply_mask(folder: Path, mask: Path, output: Path, *, overwrite: bool = False) -> Reapplied:
    """Write ``folder``'s checkpoint to ``output`` with the mask's zeros, in its own dtype.

    Args:
        folder: a complete transformers checkpoint, fine-tuned or merged.
        mask: the packed mask, or the pruned folder that has it.
        output: a new folder, written completely or not at all.
        overwrite: allow an ``output`` that is not empty.

    Raises:
        ImpossibleRequestError: the checkpoint cannot be read, or the mask is of another model.
        RunFolderError: the mask cannot be read, or ``output`` not written.
    """
    if not overwrite and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(f"{output} is there already; choose another, or say --overwrite")
    if (folder / "adapter_config.json").is_file():
        raise ImpossibleRequestError(
            f"{folder} holds a LoRA adapter, not a model; merge it into its base (peft: "
            "merge_and_unload, then save_pretrained) and give that folder"
        )
    kept = read_mask_of(mask)
    model = load_pretrained(str(folder), dtype="auto")
    before = _num_nonzero(model, kept)
    hold(model, kept).remove()
    save_model(output, model, kept, beside=_companions(folder))
    pruned = sum(int((~part).sum()) for part in kept.values())
    size = sum(part.numel() for part in kept.values())
    return Reapplied(size, pruned, before - _num_nonzero(model, kept))


def _num_nonzero(model: nn.Module, names: Iterable[str]) -> int:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return sum(int(parameters[n].count_nonzero()) for n in names if n in parameters)


def _companions(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        stale = file.name in (CARD_JSON, MASK_FILE) or file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _COMPANIONS and not stale:
            yield file
