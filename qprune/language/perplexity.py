"""Perplexity of a causal language model on windows of tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qprune.errors import NonFiniteError

# Largest number of logits at once; it limits the windows of a batch.
_LOGITS = 1 << 24


def perplexity(model: nn.Module, windows: Tensor) -> float:
    """Return the exponential of the mean negative log-likelihood of the predicted tokens.

    Each window is run alone, without a begin-of-text token: with windows of ``T`` tokens, ``T - 1``
    of them are predicted.

    Args:
        model: causal language model; its device and mode are unchanged.
        windows: token ids, shape (windows, T).

    Raises:
        NonFiniteError: the model's logits are NaN or Inf.
    """
    total = sum(negative_log_likelihoods(model, windows))
    return math.exp(total / (len(windows) * (windows.shape[1] - 1)))


@torch.no_grad()
def negative_log_likelihoods(
    model: nn.Module, windows: Tensor, last: int | None = None
) -> list[float]:
    """Return sums over each window's predicted tokens, or its ``last`` ones, in nats."""
    device = next(model.parameters()).device
    sums: list[float] = []
    size = 1
    while len(sums) < len(windows):
        batch = windows[len(sums) : len(sums) + size].to(device)
        # float32 or better: half precision loses the tail of a large vocabulary.
        logits = (
            model(batch).logits[:, :-1].to(torch.promote_types(model_dtype(model), torch.float32))
        )
        size = max(1, _LOGITS // logits[0].numel())
        losses = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        if not torch.isfinite(losses).all():
            raise NonFiniteError(
                f"the logits of window {len(sums)} or one of the next {len(batch) - 1} are NaN or "
                f"Inf{_first_broken(model, batch)}; the model is broken, or its dtype too narrow"
            )
        losses = losses.view(len(batch), -1)
        sums += losses[:, -(last or losses.shape[1]) :].double().sum(1).tolist()
    return sums


def _first_broken(model: nn.Module, batch: Tensor) -> str:
    """Return words for the first module with NaN or Inf; empty where there is none."""
    broken: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                broken.append(name)

        return look

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return f" (first the outputs of {broken[0]!r} hold them)" if broken else ""


def model_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's first parameter."""
    return next(model.parameters()).dtype
