"""Sentences of wikitext-2: each of its splits for one purpose."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.real.case import MissingError

#: The use of each split of the text.
FILES = {"calibration": "train.txt.gz", "validation": "valid.txt.gz", "test": "test.txt.gz"}


def sentences(folder: Path, purpose: str, number: int) -> list[str]:
    """``number`` sentences of 8 to 18 words, at even distances over the split.

    Args:
        folder: with train.txt.gz, valid.txt.gz and test.txt.gz, a paragraph a line.
        purpose: "calibration", "validation" or "test".
        number: how many.

    Raises:
        MissingError: the file is not there, or has fewer.
    """
    file = folder / FILES[purpose]
    if not file.is_file():
        raise MissingError(f"{folder} has no {file.name}; --data is a folder with wikitext-2")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        found = list(dict.fromkeys(s for line in lines for s in _of_paragraph(line)))
    if len(found) < number:
        raise MissingError(f"{file} has {len(found)} sentences, not {number}")
    return [found[at * len(found) // number] for at in range(number)]


def _of_paragraph(line: str) -> Iterator[str]:
    """The sentences of a line that lack no word, as they were before they were tokenised."""
    if line.lstrip().startswith("="):
        return
    for sentence in re.split(r"(?<= [.?!]) ", line.strip()):
        if "<unk>" not in sentence and 8 <= len(sentence.split()) <= 18:
            yield plain(sentence)


def plain(tokens: str) -> str:
    """Text without the tokeniser's marks.

    Example:
        >>> plain("It weighs 2 @.@ 2 kg ( 5 lb ) , or 1 @,@ 000 grams .")
        'It weighs 2.2 kg (5 lb), or 1,000 grams.'
    """
    text = re.sub(r" @(.)@ ", r"\1", tokens)
    text = re.sub(r"\( ", "(", text)
    return re.sub(r" ([.,;:?!)]|'\w+|n't)", r"\1", text)
