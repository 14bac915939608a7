"""Pretrained models from a folder or the Hugging Face hub, loaded as the class that was saved."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from qprune.errors import ImpossibleRequestError
from qprune.folder import kind_of
from qprune.language.classes import chosen_class
from qprune.language.folders import (
    is_checkpoint,
    refuse_other_formats,
    refuse_other_weights,
    refuse_quantised,
)

logger = logging.getLogger(__name__)

#: Prefix of a hub id on the command line.
HUB = "hf:"
_DTYPES = ("float32", "bfloat16", "float16", "auto")


def is_pretrained(source: str) -> bool:
    """Return True for a transformers model: a folder with config.json, or ``hf:ID``.

    True also for an adapter's folder or a GGUF file; loading it raises an error that says why.
    """
    return source.startswith(HUB) or is_checkpoint(source)


@dataclass(frozen=True, eq=False)
class Loaded:
    """Loaded model, with the names of unused weights of its checkpoint.

    Attributes:
        model: of the class that the checkpoint names, in evaluation mode.
        unused: names of weights that the class has no place for; they are not saved again.
    """

    model: nn.Module
    unused: tuple[str, ...]


def load_pretrained(source: str, *, dtype: str = "float32", device: str = "cpu") -> nn.Module:
    """Return the model of `load_checkpoint`."""
    return load_checkpoint(source, dtype=dtype, device=device).model


def load_checkpoint(source: str, *, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load a model of the class that its config.json names, every weight from the checkpoint.

    Args:
        source: a folder with config.json and safetensors weights, ``hf:ID`` or a hub id.
        dtype: "float32", "bfloat16", "float16", or "auto" for the stored one.
        device: torch's name of the model's device.

    Raises:
        ImpossibleRequestError: transformers is missing, the source cannot be read, its class is
            not one of those that are pruned (`qprune.language.classes`), its weights are
            quantised, pickled, an adapter's or incomplete, or one of the class is missing.
    """
    if dtype not in _DTYPES:
        raise ImpossibleRequestError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    transformers = optional("transformers")
    refuse_other_formats(source)
    where = _location(source)
    with _explained(source):
        written, _ = transformers.PretrainedConfig.get_config_dict(where)
    refuse_quantised(source, written)
    chosen = chosen_class(source, written, transformers)
    refuse_other_weights(source)
    with _explained(source):
        config = chosen.config_class.from_pretrained(where)
    options = {_dtype_name(transformers): dtype if dtype == "auto" else getattr(torch, dtype)}
    with _explained(source), bars_on_terminals_only(), _own_words(transformers):
        model, found = chosen.from_pretrained(
            where, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    _refuse_missing(source, chosen.__name__, found)
    unused = tuple(sorted(found["unexpected_keys"]))
    if unused:
        logger.warning(
            "a %s has no place for %d weights of %s, which are not saved again: %s",
            *(chosen.__name__, len(unused), source, _listed(unused)),
        )
    return Loaded(model.to(_device(device)).eval(), unused)


def _refuse_missing(source: str, name: str, found: Any) -> None:
    """Refuse a model with missing weights, which would be random.

    Raises:
        ImpossibleRequestError: names them.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        raise ImpossibleRequestError(
            f"{source} lacks {len(missing)} weights of a {name}, which would be random: "
            f"{_listed(missing)}; give the whole checkpoint, or name in its config.json "
            "(architectures) the class whose weights it holds"
        )


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_tokenizer(source: str) -> Any:
    """Load the tokenizer of a model.

    Raises:
        ImpossibleRequestError: transformers is missing, or there is no tokenizer.
    """
    transformers = optional("transformers")
    with _explained(source):
        return transformers.AutoTokenizer.from_pretrained(
            _location(source), trust_remote_code=False
        )


def stored_dtype(source: str) -> torch.dtype:
    """Return the dtype of a checkpoint by its config.json; float32 if not given there.

    Raises:
        ImpossibleRequestError: transformers is missing, or the source cannot be read.
    """
    transformers = optional("transformers")
    with _explained(source):
        config = transformers.AutoConfig.from_pretrained(_location(source), trust_remote_code=False)
    dtype = getattr(config, _dtype_name(transformers), None)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def context_length(model: nn.Module) -> int | None:
    """Return the longest sequence that a model takes, in tokens; None if its config has none."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None)
    if not isinstance(length, int) or length <= 0:
        return None
    return length - _unused_positions(model)


def _unused_positions(model: nn.Module) -> int:
    """Return the number of positions before the first token's (RoBERTa counts from padding)."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def checked_length(model: nn.Module, asked: int | None, default: int = 2048) -> int:
    """Return the sequence length to use: ``asked``, or the model's own up to ``default``.

    Raises:
        ImpossibleRequestError: longer than the model's context, or shorter than two tokens.
    """
    longest = context_length(model)
    length = min(longest or default, default) if asked is None else asked
    if length < 2:
        raise ImpossibleRequestError(f"max_seq_length must be at least 2 tokens, not {length}")
    if longest is not None and length > longest:
        raise ImpossibleRequestError(
            f"max_seq_length {length} is longer than the model's context of {longest} tokens; "
            f"ask for at most {longest}"
        )
    return length


def optional(package: str, extra: str = "hf") -> ModuleType:
    """Import a package of one of qprune's extras.

    Raises:
        ImpossibleRequestError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImpossibleRequestError(
            f"this needs the package {package!r}, which is not installed: "
            f"pip install 'qprune[{extra}]'"
        ) from error


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Switch off transformers' progress bars where standard error is a file."""
    logging = optional("transformers").utils.logging
    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def _own_words(transformers: ModuleType) -> Iterator[None]:
    """Silence transformers' table of keys, whose facts qprune reports or refuses itself."""
    logging_ = transformers.utils.logging
    before = logging_.get_verbosity()
    logging_.set_verbosity_error()
    try:
        yield
    finally:
        logging_.set_verbosity(before)


def _location(source: str) -> str:
    """Return the source as transformers takes it; a path must exist."""
    if source.startswith(HUB):
        return source.removeprefix(HUB)
    path = Path(source)
    if not path.exists() and (path.is_absolute() or source.startswith((".", "~"))):
        raise ImpossibleRequestError(f"there is no folder {source}")
    # Opening a pipe waits for a writer; folders of a hub's cache are full of links to files.
    for inside in sorted(path.iterdir()) if path.is_dir() else ():
        if inside.exists() and not inside.is_dir() and kind_of(inside):
            raise ImpossibleRequestError(
                f"{inside} is {kind_of(inside)}, where a file is expected; move it away"
            )
    if path.is_dir() and not (path / "config.json").is_file():
        raise ImpossibleRequestError(
            f"{source} has no config.json; pass a folder that save_pretrained wrote"
        )
    return source


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ImpossibleRequestError(f"device {name!r} is not one that torch knows") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ImpossibleRequestError("device 'cuda' was asked, but torch finds no GPU; use 'cpu'")
    return device


def _dtype_name(transformers: ModuleType) -> str:
    """Return the name of the dtype option: ``dtype`` since transformers 4.56."""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn errors of transformers while reading ``source`` into one line with a remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if not Path(source).exists():
            raise ImpossibleRequestError(
                f"cannot get {source.removeprefix(HUB)!r} from the Hugging Face hub (is there a "
                "network, and is the id right?); pass the path of a downloaded folder instead: "
                f"{_shortened(reason)}"
            ) from error
        raise ImpossibleRequestError(f"cannot load {source}: {_shortened(reason)}") from error


def _shortened(reason: str, length: int = 200) -> str:
    return reason if len(reason) <= length else reason[: length - 3] + "..."
