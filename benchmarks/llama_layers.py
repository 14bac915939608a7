"""Gram matrices and weights of a small LLaMA's linear layers, in plain torch.

The tokens come from a greedy longest match with the model's own vocabulary (not its merges): close
to the tokenizer's, and enough for realistic inputs without another package.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import embedding, scaled_dot_product_attention, silu


def tokens(folder: Path, text: Path, count: int) -> torch.Tensor:
    """The first ``count`` tokens of a gzipped text."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    longest = max(map(len, vocabulary))
    with gzip.open(text, "rt", encoding="utf-8") as file:
        letters = file.read(longest * count).replace(" ", "Ġ").replace("\n", "Ċ")
    ids: list[int] = []
    at = 0
    while at < len(letters) and len(ids) < count:
        pieces = (letters[at : at + size] for size in range(longest, 0, -1))
        piece = next((p for p in pieces if p in vocabulary), None)
        if piece is not None:
            ids.append(vocabulary[piece])
        at += 1 if piece is None else len(piece)
    return torch.tensor(ids)


@torch.no_grad()
def layers(
    folder: Path, text: Path, sequences: int = 128, length: int = 256
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, X X', W) of every decoder matrix, the dense network's inputs, in float64."""
    config = json.loads((folder / "config.json").read_text())
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    heads, width = config["num_attention_heads"], config["head_dim"]
    frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = (torch.arange(length)[:, None] * frequencies).repeat(1, 2)
    x = embedding(
        tokens(folder, text, sequences * length).view(sequences, length),
        weights["model.embed_tokens.weight"],
    )

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + config["rms_norm_eps"])
        return x * scale * weights[name]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
        return x * angles.cos() + half * angles.sin()

    def gram(x: torch.Tensor) -> np.ndarray:
        return sum(part.double().T @ part.double() for part in x.flatten(0, -2).split(4096)).numpy()

    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."

        def weight(name: str, prefix: str = prefix) -> torch.Tensor:
            return weights[f"{prefix}{name}_proj.weight"]

        h = norm(x, prefix + "input_layernorm.weight")
        seen = gram(h)
        for name in ("q", "k", "v"):
            yield f"{index}.{name}", seen, weight(f"self_attn.{name}").double().numpy()
        q, k, v = (
            (h @ weight(f"self_attn.{name}").T)
            .view(sequences, length, heads, width)
            .transpose(1, 2)
            for name in ("q", "k", "v")
        )
        mixed = scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        mixed = mixed.transpose(1, 2).flatten(2)
        yield f"{index}.o", gram(mixed), weight("self_attn.o").double().numpy()
        x = x + mixed @ weight("self_attn.o").T
        h = norm(x, prefix + "post_attention_layernorm.weight")
        seen = gram(h)
        for name in ("gate", "up"):
            yield f"{index}.{name}", seen, weight(f"mlp.{name}").double().numpy()
        inner = silu(h @ weight("mlp.gate").T) * (h @ weight("mlp.up").T)
        yield f"{index}.down", gram(inner), weight("mlp.down").double().numpy()
        x = x + inner @ weight("mlp.down").T
