"""Calibration and test text: where it comes from, and windows of tokens cut from it.

Sources, as on the command line:

- ``wikitext2:DIR``: train.txt.gz (or train.txt) to calibrate on, test.txt.gz to score on.
- ``text:FILE``: one file, plain or .gz; its last tenth is kept apart to score on.
- ``hf:NAME`` or ``hf:NAME:CONFIG``: a data set on the hub or in a folder, its text column; split
  ``train`` to calibrate on, ``test`` (or ``validation``) to score on.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.language.models import optional

#: Share of a single text file that is kept apart to score on.
TEST_SHARE = 0.1
_SPLITS = {"train": ("train",), "test": ("test", "validation")}


def calibration_windows(
    source: str, tokenizer: Any, *, num_samples: int = 128, max_seq_length: int, seed: int = 0
) -> Tensor:
    """Windows at random places of a source's training text.

    Args:
        source: see the module.
        tokenizer: of the model.
        num_samples: how many windows.
        max_seq_length: tokens in each.
        seed: decides the places.

    Returns:
        Token ids, shape (num_samples, max_seq_length), int64.

    Raises:
        ImpossibleRequestError: no such source.
        CalibrationError: the text is shorter than one window.
    """
    tokens = encode(read_text(source, "train"), tokenizer)
    return random_windows(tokens, num_samples, max_seq_length, seed)


def evaluation_windows(source: str, tokenizer: Any, *, max_seq_length: int) -> Tensor:
    """All consecutive windows of a source's test text, the last partial one dropped.

    Returns:
        Token ids, shape (windows, max_seq_length), int64.

    Raises:
        ImpossibleRequestError: no such source.
        CalibrationError: the text is shorter than one window.
    """
    tokens = encode(read_text(source, "test"), tokenizer)
    count = len(tokens) // max_seq_length
    if not count:
        raise _too_short(len(tokens), max_seq_length)
    return tokens[: count * max_seq_length].view(count, max_seq_length)


def random_windows(tokens: Tensor, num_samples: int, max_seq_length: int, seed: int) -> Tensor:
    """``num_samples`` windows of ``tokens`` (n,) that begin at random places.

    Raises:
        CalibrationError: fewer tokens than one window has.
        ImpossibleRequestError: no window was asked for.
    """
    if num_samples < 1:
        raise ImpossibleRequestError(f"num_samples must be at least 1, not {num_samples}")
    if len(tokens) < max_seq_length:
        raise _too_short(len(tokens), max_seq_length)
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(tokens) - max_seq_length + 1, (num_samples,), generator=generator)
    return tokens[places[:, None] + torch.arange(max_seq_length)]


def read_text(source: str, split: str) -> str:
    """The text of one split, "train" or "test".

    Raises:
        ImpossibleRequestError: no such kind of source, or it cannot be read.
    """
    kind, _, rest = source.partition(":")
    reader = _READERS.get(kind)
    if reader is None or not rest:
        raise ImpossibleRequestError(
            f"text {source!r} is none of wikitext2:DIR, text:FILE, hf:NAME"
        )
    return reader(rest, split)


def encode(text: str, tokenizer: Any) -> Tensor:
    """The tokens of a whole text without special ones, shape (n,), int64."""
    # verbose=False: a text longer than the model's context is what we want here.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _wikitext2(folder: str, split: str) -> str:
    for name in (f"{split}.txt.gz", f"{split}.txt"):
        if (Path(folder) / name).is_file():
            return _read(Path(folder) / name)
    raise ImpossibleRequestError(f"{folder} holds neither {split}.txt.gz nor {split}.txt")


def _text_file(name: str, split: str) -> str:
    text = _read(Path(name))
    cut = len(text) - int(TEST_SHARE * len(text))
    return text[:cut] if split == "train" else text[cut:]


def _hub_data(name: str, split: str) -> str:
    datasets = optional("datasets")
    name, _, config = name.partition(":")
    try:
        splits = datasets.load_dataset(name, config or None)
    except Exception as error:  # whatever the many loaders of that library raise
        reason = " ".join(str(error).split())[:200]
        raise ImpossibleRequestError(
            f"cannot load the data set {name!r} (is there a network?); pass text:FILE instead, or "
            f"hf: and the path of a folder: {reason}"
        ) from error
    chosen = next((s for s in _SPLITS[split] if s in splits), None)
    if chosen is None or "text" not in splits[chosen].column_names:
        raise ImpossibleRequestError(
            f"the data set {name!r} needs a column 'text' and a split "
            f"{' or '.join(map(repr, _SPLITS[split]))}; it has {splits.column_names}"
        )
    return "\n".join(splits[chosen]["text"])


_READERS = {"wikitext2": _wikitext2, "text": _text_file, "hf": _hub_data}


def _read(path: Path) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            return str(file.read())
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ImpossibleRequestError(f"cannot read the text {path}: {error}") from error


def _too_short(tokens: int, length: int) -> CalibrationError:
    return CalibrationError(
        f"the text has {tokens} tokens, less than one window of {length}; pass more text, or a "
        "smaller max_seq_length"
    )
