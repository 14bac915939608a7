"""Wanda for any network of linear layers, convolutions and LSTMs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qprune.data.inputs import token_mask
from qprune.objective.curvature import Expansion
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import forward

Note = Callable[[str, Tensor], None]
"""Takes a parameter's name in its module, and the inputs that it multiplies, (..., inputs)."""


@dataclass(frozen=True)
class HookedWanda:
    """|w| times the norm of the input it multiplies (Sun et al., arXiv 2306.11695, eq. 1).

    A start like `qprune.steps.start.Wanda`, which refuses an LSTM: nothing of torch shows what the
    recurrent matrix multiplies. Here hooks on the modules do, without padded tokens.
    """

    def scores(
        self, objective: Objective, expansion: Expansion, values: Tensor, generator: torch.Generator
    ) -> Tensor:
        squares: dict[str, Tensor] = {}
        shown: list[Tensor | None] = []

        def note(module: str, name: str, inputs: Tensor) -> None:
            mask = shown[-1]
            if mask is not None and mask.shape == inputs.shape[:-1]:
                inputs = inputs[mask]
            key, square = f"{module}.{name}", inputs.flatten(0, -2).square().sum(0)
            squares[key] = squares.get(key, torch.zeros_like(square)) + square

        hooks = [
            module.register_forward_hook(partial(_show, partial(note, name)))
            for name, module in objective.model.named_modules()
        ]
        try:
            for batch in objective.samples.batches(objective.batch_size):
                shown.append(token_mask(batch.inputs))
                with torch.no_grad():
                    forward(objective.model, batch.inputs)
        finally:
            for hook in hooks:
                hook.remove()
        parts = objective.weights.split(values.abs())
        return torch.cat(
            [
                (part.view(weight.rows, -1) * squares[weight.parameter_name].sqrt()).flatten()
                for weight, part in zip(objective.weights, parts, strict=True)
            ]
        )


def _show(note: Note, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """Note what the weights of ``module`` have multiplied."""
    if isinstance(module, nn.Linear):
        note("weight", inputs[0])
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        note("weight", _windows(module, inputs[0]))
    elif isinstance(module, nn.LSTM):
        # Of one layer, batch first and from a state of zero, as silero-vad's is.
        note("weight_ih_l0", inputs[0])
        note("weight_hh_l0", functional.pad(output[0], (0, 0, 1, 0))[:, :-1])


def _windows(conv: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """The inputs that a convolution of one group multiplies, (m, places, channels times kernel)."""
    assert not isinstance(conv.padding, str)
    # A Conv1d is a Conv2d of height 1.
    lone = isinstance(conv, nn.Conv1d)
    one, none = ((1,), (0,)) if lone else ((), ())
    unfolded = functional.unfold(
        inputs[:, :, None] if lone else inputs,
        (*one, *conv.kernel_size),
        dilation=(*one, *conv.dilation),
        padding=(*none, *conv.padding),
        stride=(*one, *conv.stride),
    )
    return unfolded.mT
