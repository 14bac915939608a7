"""Per-sample gradients by autograd alone, and as a run finds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qprune.data.inputs import AnyInputs, mapped
from qprune.network.weights import Weights
from qprune.objective.trace.autograd import trace_of
from qprune.objective.trace.preflight import examined, reached
from qprune.objective.trace.recorder import Recorder, Trace, differentiating, forward


def per_sample_gradients(
    model: nn.Module,
    parameters: list[Tensor],
    inputs: AnyInputs,
    loss: Callable[[Tensor, Tensor], Tensor],
    answers: Tensor,
) -> Tensor:
    """Gradients of each sample's loss, shape (m, numbers in ``parameters``); flags put back.

    Every sample passes by itself: no hook and no vmap. Every parameter of the model is asked for
    its gradient, and `backward` is used rather than `grad`: reentrant checkpoints know no other.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()]
    rows = []
    try:
        for p, _ in flags:
            p.requires_grad_(p.is_floating_point())
        for i in range(len(inputs)):
            outputs = forward(model, mapped(inputs[i : i + 1], torch.clone))
            for p, _ in flags:
                p.grad = None
            loss(outputs, answers[i : i + 1]).sum().backward()
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            rows.append(torch.cat([part.to_dense().reshape(-1) for part in parts]))
    finally:
        for p, flag in flags:
            p.grad = None
            p.requires_grad_(flag)
    return torch.stack(rows)


def traced(
    model: nn.Module,
    layers: Weights,
    inputs: AnyInputs,
    loss: Callable[[Tensor, Tensor], Tensor],
    answers: Tensor,
) -> tuple[Weights, Trace]:
    """(the tensors that gradients reach, with their paths, and one batch's trace)."""
    layers = examined(model, layers, mapped(inputs, torch.clone))
    layers = reached(model, layers, mapped(inputs, torch.clone), len(inputs))
    with differentiating(model, layers):
        own = mapped(inputs, torch.clone)
        with Recorder(layers) as recorder:
            outputs = forward(model, own)
        losses = loss(outputs, answers)
        return layers, trace_of(model, layers, own, outputs, recorder, losses)
