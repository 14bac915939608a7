"""A transformer pruned from end to end: layer by layer, then across the whole network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from qprune.data.augment import Augmentation
from qprune.errors import ImpossibleRequestError
from qprune.network.matrices import Matrix, find_matrices
from qprune.network.transformer import find_blocks
from qprune.objective.losses import DenseOutputs, Loss
from qprune.prune import Pruned, prune
from qprune.results import Observer
from qprune.steps.distill import Distillation
from qprune.steps.reconstruct import METHODS, Method
from qprune.walk.layerwise import LayerObserver, evaluating
from qprune.walk.layerwise_start import LayerwiseStart
from qprune.walk.sensitivity import Sensitivity

#: Optimiser steps of stage 2 where nothing is said.
STAGE2_STEPS = 96
#: Share of the calibration sequences on which steps are judged, and never fitted.
ACCEPT_SHARE = 0.125
# Sequences of one expansion for block moves: each costs several passes.
_EXPANDED = 64
_NUM_BLOCKS = 16
# With 0.1 or 3, moves of some thousand weights that promised to end all of the loss doubled it; the
# mean curvature of so many weights is next to nothing.
_DAMPING = 300.0
_BUDGETS = Sensitivity()
_LOSS = DenseOutputs(fit_scale=False)


def prune_network(
    model: nn.Module,
    windows: Any,
    *,
    sparsity: float | None = None,
    mask_structure: str | None = None,
    method: Method | str = "qprune",
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    compensate: bool = True,
    steps: int = STAGE2_STEPS,
    rounds: int = 1,
    loss: Loss = _LOSS,
    augment: Augmentation | None = None,
    budgets: Sensitivity | None = _BUDGETS,
    offload: str | Path = "cpu",
    seed: int = 0,
    threads: int | None = None,
    observe: Observer | Sequence[Observer] = (),
    observe_layers: LayerObserver | None = None,
    observe_moves: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Pruned:
    """Prune layer by layer, then improve the outcome on the loss at the network's end.

    The loss is by default KL(dense || pruned) of the output distributions, a language model's of
    its next tokens. First, ``rounds`` times, blocks of weights across all layers are put to the
    sampler, restore or prune under the exact count; then kept weights are distilled with the mask
    held. What does not lower the loss on sequences that were held back is not taken.

    Args:
        model: a transformer whose blocks' matrices are Linear layers, on the CPU.
        windows: calibration sequences, token ids (m, T); or whatever holds them that
            `qprune.prune` takes, a DataLoader for one.
        sparsity: share of the blocks' weights to prune.
        mask_structure: "N:M" instead.
        method: of the first stage (`qprune.steps.reconstruct.METHODS`).
        targets: class names, module names or ``re:`` patterns inside the blocks.
        ignore: the same, taken away again.
        compensate: whether kept values may move. False: masks only, by block moves alone.
        steps: optimiser steps of the distillation.
        rounds: of block moves.
        loss: at the network's end.
        augment: makes more samples to fit on; ``OwnText(model)`` is the usual one where the model
            can write them.
        budgets: shares the count among the layers, where no structure does.
        offload: where activations of the first stage wait: "cpu", or a folder.
        seed: one seed, one mask.
        threads: of both stages; the mask is the same for any number.
        observe: called with every step of the walk.
        observe_layers: called with every matrix that the first stage is done with.
        observe_moves: called with the optimiser steps done and to do in one stretch.
        **options: further ones of `qprune.prune`.

    Returns:
        As `qprune.prune`; the report's layers hold the layer budgets that came out.

    Raises:
        QpruneError, solvers.SolverError: see `qprune.errors`; the model is then as it was.
    """
    names = _linear_names(model, targets, ignore)
    if steps < 0 or rounds < 0:
        raise ImpossibleRequestError(
            f"stage 2 cannot take {min(steps, rounds)} steps or rounds; 0 leaves it out"
        )
    start = LayerwiseStart(
        method=METHODS[method] if isinstance(method, str) else method,
        mask_structure=mask_structure,
        compensate=compensate,
        budgets=budgets and replace(budgets, loss=loss),
        offload=offload,
        threads=threads,
        observe=observe_layers,
    )
    moving = compensate and steps > 0
    settings: dict[str, Any] = {
        "loss": loss,
        "compensate": Distillation(steps, final_steps=1, at_end=True, observe=observe_moves)
        if moving
        else False,
        "augment": augment,
        "rounds": rounds,
        "final_rounds": rounds,
        "num_blocks": _NUM_BLOCKS,
        "damping": _DAMPING,
        "samples_per_step": _EXPANDED,
        "accept_share": ACCEPT_SHARE,
    }
    with evaluating(model):
        return prune(
            model,
            windows,
            sparsity=sparsity,
            mask_structure=mask_structure,
            start=start,
            targets=names,
            seed=seed,
            threads=threads,
            observe=observe,
            **(settings | options),
        )


def reason_against(matrices: Sequence[Matrix]) -> str | None:
    """Why the loss at the network's end cannot move these matrices; None where it can."""
    for matrix in matrices:
        if matrix.expert is not None or not isinstance(matrix.module, nn.Linear):
            kind = "one of the experts" if matrix.expert is not None else "a"
            return f"{matrix.name!r} is {kind} {type(matrix.module).__name__}, no Linear"
        if matrix.routed:
            return f"only some tokens reach {matrix.name!r}"
        if matrix.parameter.device.type != "cpu":
            return f"{matrix.name!r} is on {matrix.parameter.device}, not on the CPU"
    return None


def _linear_names(
    model: nn.Module, targets: Sequence[str] | None, ignore: Sequence[str]
) -> list[str]:
    """The module names of all targeted matrices.

    Raises:
        ImpossibleRequestError: one of them cannot be moved across the network.
    """
    inside = find_matrices(find_blocks(model), targets, ignore)
    matrices = [matrix for block in inside for matrix in block]
    reason = reason_against(matrices)
    if reason is not None:
        raise ImpossibleRequestError(
            f"{reason}; across the network, qprune moves the weights of Linear layers only: use "
            "method 'reconstruct'"
        )
    return [matrix.name for matrix in matrices]
