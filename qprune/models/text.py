"""Calibration and test text: its sources, and windows of tokens cut from it.

Sources, as on the command line:

- ``wikitext2:DIR``: train.txt.gz (or train.txt) to calibrate on, test.txt.gz to score on.
- ``text:FILE``: one file, plain or .gz; its last tenth is held out to score on. In JSON lines
  the "text" column is read.
- ``hf:NAME`` or ``hf:NAME:CONFIG``: a data set on the hub or in a folder, its text column; split
  ``train`` to calibrate on, ``test`` (or ``validation``) to score on.

Rows of JSON lines and of data sets may have a "label", too.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.models.pretrained import optional
from solvers.host.disk import read_json

logger = logging.getLogger(__name__)

#: Share of a single text file that is held out to score on.
TEST_SHARE = 0.1
_SPLITS = {"train": ("train",), "test": ("test", "validation")}
_LABELS = ("label", "labels")


@dataclass(frozen=True)
class Corpus:
    """Texts of one split of a source, with labels if any.

    Attributes:
        texts: in order; running text is a single one.
        labels: one for each text, as stored; None without.
    """

    texts: Sequence[str]
    labels: Sequence[Any] | None = None

    @property
    def text(self) -> str:
        """All texts, joined by line breaks."""
        return "\n".join(self.texts)

    def take(self, indices: Sequence[int]) -> Corpus:
        """Return the texts at ``indices``."""
        labels = self.labels and [self.labels[index] for index in indices]
        return Corpus([self.texts[index] for index in indices], labels)


def calibration_windows(
    source: str, tokenizer: Any, *, num_samples: int = 128, max_seq_length: int, seed: int = 0
) -> Tensor:
    """Return windows at random places of a source's training text.

    Args:
        source: see the module.
        tokenizer: of the model.
        num_samples: number of windows.
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
    """Return all consecutive windows of a source's test text, the last partial one dropped.

    Returns:
        Token ids, shape (windows, max_seq_length), int64.

    Raises:
        ImpossibleRequestError: no such source.
        CalibrationError: the text is shorter than one window.
    """
    return consecutive_windows(encode(read_text(source, "test"), tokenizer), max_seq_length)


def consecutive_windows(tokens: Tensor, max_seq_length: int) -> Tensor:
    """Return consecutive windows of ``tokens`` (n,), the last partial one dropped.

    Raises:
        CalibrationError: fewer tokens than one window has.
    """
    count = len(tokens) // max_seq_length
    if not count:
        raise _too_short(len(tokens), max_seq_length)
    return tokens[: count * max_seq_length].view(count, max_seq_length)


def random_windows(tokens: Tensor, num_samples: int, max_seq_length: int, seed: int) -> Tensor:
    """Return ``num_samples`` windows of ``tokens`` (n,) at random places.

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
    """Return the text of one split, see `read_corpus`."""
    return read_corpus(source, split).text


def is_text(source: str) -> bool:
    """Return True if ``source`` names a text, existing or not."""
    return source.partition(":")[0] in _READERS


def read_corpus(source: str, split: str) -> Corpus:
    """Read the texts of one split, "train" or "test".

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
    """Return the tokens of a whole text without special ones, shape (n,), int64."""
    # verbose=False: the text may be longer than the model's context.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def refuse_unknown_ids(tokens: Tensor, model: nn.Module) -> None:
    """Refuse tokens that a model has no embedding for.

    Raises:
        ImpossibleRequestError: the tokenizer belongs to another model, or was extended.
    """
    table: Any = getattr(model, "get_input_embeddings", lambda: None)()
    known = getattr(table, "num_embeddings", None)
    if isinstance(known, int) and tokens.numel() and int(tokens.max()) >= known:
        raise ImpossibleRequestError(
            f"the tokenizer makes token {int(tokens.max())} of the text, and the model has "
            f"embeddings for {known} tokens, 0 to {known - 1}; give the folder the tokenizer that "
            "the model was trained with, or resize_token_embeddings and train the new ones"
        )


def _wikitext2(folder: str, split: str) -> Corpus:
    for name in (f"{split}.txt.gz", f"{split}.txt"):
        if (Path(folder) / name).is_file():
            return Corpus((_read(Path(folder) / name),))
    raise ImpossibleRequestError(f"{folder} holds neither {split}.txt.gz nor {split}.txt")


def _text_file(name: str, split: str) -> Corpus:
    text = _read(Path(name))
    rows = _json_rows(name, text)
    if rows is None:
        return Corpus((_part(text, split),))
    if split == "train":
        logger.info('%s holds JSON lines: the "text" of each is read', name)
    chosen = _part(rows, split)
    key = next((key for key in _LABELS if all(key in row for row in rows)), None)
    return Corpus([row["text"] for row in chosen], key and [row[key] for row in chosen])


def _part(whole: Any, split: str) -> Any:
    """Return all but the last tenth ("train"), or the last tenth."""
    cut = len(whole) - int(TEST_SHARE * len(whole))
    return whole[:cut] if split == "train" else whole[cut:]


def _json_rows(name: str, text: str) -> list[Mapping[str, Any]] | None:
    """Return the objects of JSON lines; None for plain text.

    Raises:
        ImpossibleRequestError: it is JSON without a text in every line.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    named_so = Path(name.removesuffix(".gz")).suffix in (".json", ".jsonl", ".ndjson")
    if not named_so and not (lines and _is_object(_parsed(lines[0]))):
        whole = _parsed(text)
        if not _is_object(whole[0] if isinstance(whole, list) and whole else whole):
            return None
    rows = [_parsed(line) for line in lines]
    wrong = next((n for n, row in enumerate(rows, 1) if not _has_text(row)), None)
    if wrong is not None:
        raise ImpossibleRequestError(
            f'{name} is JSON, and its line {wrong} is no object with a "text"; pass the text '
            'alone, or JSON lines such as {"text": "..."}'
        )
    return rows


def _parsed(text: str) -> Any:
    """Parse JSON into an object or a list; None for anything else."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return read_json(text)
    except ValueError:
        return None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _has_text(row: Any) -> bool:
    return _is_object(row) and isinstance(row.get("text"), str)


def _hub_data(name: str, split: str) -> Corpus:
    datasets = optional("datasets")
    name, _, config = name.partition(":")
    try:
        splits = datasets.load_dataset(name, config or None)
    except Exception as error:  # its loaders raise errors of many types
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
    rows = splits[chosen]
    key = next((key for key in _LABELS if key in rows.column_names), None)
    return Corpus(list(rows["text"]), key and list(rows[key]))


_READERS: Mapping[str, Callable[[str, str], Corpus]] = {
    "wikitext2": _wikitext2,
    "text": _text_file,
    "hf": _hub_data,
}


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
