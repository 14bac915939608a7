"""Atomic saving of a pruned model as a folder that stock `from_pretrained` loads.

Application of a mask to a checkpoint that was fine-tuned or merged after pruning.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.models.card import CARD, CARD_JSON, Card
from qprune.models.pretrained import bars_on_terminals_only, load_pretrained
from qprune.network.hold import hold, read_mask_of
from qprune.network.mask_file import MASK_FILE, packed_bytes
from solvers.host.disk import aside_of, flush_file, flush_folder, strict_json
from solvers.host.secrets import redacted

#: Weights as `save_pretrained` names them, in one file or in shards.
_WEIGHTS = "model*.safetensors*"


def save_model(
    folder: Path,
    model: nn.Module,
    mask: Mapping[str, Tensor],
    *,
    tokenizer: Any = None,
    beside: Iterable[Path] = (),
    card: Card | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[str, ...]:
    """Write a transformers model with exact zeros, its tokenizer, packed mask and card.

    Everything is written aside, flushed to the disk, and only then takes the place of the
    old files: a new folder appears at once, and in an old one each file is replaced by a
    rename, the weights last. A disk that fills leaves the old output as it was.

    Args:
        folder: need not exist; other files in it stay.
        model: a transformers model. Its parameters are rounded to ``dtype`` in place, so that
            memory and file agree.
        mask: bool by parameter name, True = kept.
        tokenizer: saved beside the model.
        beside: files to copy beside the model, where it does not have one of that name.
        card: request and outcome, as README.md and as JSON.
        dtype: stored dtype of floating-point parameters, by default their own; those that
            the architecture keeps in float32 stay in float32.

    Returns:
        The names of the files written.

    Raises:
        ImpossibleRequestError: not a transformers model, or the mask is not the model's.
        RunFolderError: the folder cannot be written.
    """
    if not hasattr(model, "save_pretrained"):
        raise ImpossibleRequestError(
            f"a {type(model).__name__} has no save_pretrained; pass a transformers model"
        )
    _check_zeros(model, mask)
    with written_aside(folder) as aside, _stored_as(model, dtype), bars_on_terminals_only():
        model.save_pretrained(aside)  # pyright: ignore[reportCallIssue]
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        for file in beside:
            if not (aside / file.name).exists():
                shutil.copyfile(file, aside / file.name)
        (aside / MASK_FILE).write_bytes(packed_bytes(mask))
        if card is not None:
            (aside / CARD).write_text(redacted(card.to_markdown()), encoding="utf-8")
            (aside / CARD_JSON).write_text(strict_json(card.to_json(), indent=1), encoding="utf-8")
        return tuple(sorted(path.name for path in aside.iterdir() if path.is_file()))


@contextmanager
def written_aside(folder: Path) -> Generator[Path]:
    """Yield an empty folder beside ``folder`` whose files move there when the block ends.

    Raises:
        RunFolderError: the disk is full, or cannot be written; ``folder`` is unchanged.
    """
    aside = aside_of(folder)
    try:
        aside.mkdir(parents=True)
        yield aside
        for file in aside.iterdir():
            flush_file(file)
        _publish(aside, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunFolderError(
            f"cannot write {folder}: {reason}; what was there is unchanged: make room or choose "
            "another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: Path, folder: Path) -> None:
    if not folder.exists():
        aside.rename(folder)
    else:
        new = sorted(aside.iterdir(), key=lambda file: (file.match(_WEIGHTS), file.name))
        names = {file.name for file in new}
        for file in new:
            file.replace(folder / file.name)
        for old in folder.glob(_WEIGHTS):
            if old.name not in names:
                old.unlink()
        flush_folder(folder)
    flush_folder(folder.absolute().parent)


def _check_zeros(model: nn.Module, mask: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, kept in mask.items():
        if name not in parameters or parameters[name].shape != kept.shape:
            raise ImpossibleRequestError(
                f"the mask's {name!r} {tuple(kept.shape)} is no weight of the model; give the mask "
                "of this model"
            )
        wrong = int((parameters[name].detach()[~kept.to(parameters[name].device)] != 0).sum())
        if wrong:
            raise ImpossibleRequestError(
                f"{wrong} weights of {name!r} that the mask prunes are not zero; "
                "qprune.hold(model, mask) zeroes them"
            )


@contextmanager
def _stored_as(model: nn.Module, dtype: torch.dtype | None) -> Generator[None]:
    """Cast parameters to the stored dtype within the context, then back."""
    wide = _kept_in_float32(model)
    before = {
        name: parameter.dtype
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not any(part in name for part in wide)
    }
    parameters = dict(model.named_parameters())
    try:
        # Parameters one by one: model.to() would round buffers such as rotary frequencies too.
        for name in before if dtype is not None else ():
            parameters[name].data = parameters[name].data.to(dtype)
        yield
    finally:
        for name, own in before.items():
            parameters[name].data = parameters[name].data.to(own)


def _kept_in_float32(model: nn.Module) -> set[str]:
    """Return name parts of parameters that the architecture never has in half precision."""
    names: set[str] = set()
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        names.update(getattr(model, attribute, None) or ())
    return names


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
