"""Cost of pruning layer by layer: one block's statistics, activations, the way back.

Counted for the host. Where blocks run on a device of their own, what is there alone is left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qprune.cost import Needs, Pass, Phase, gauged
from qprune.data.calibration import plain
from qprune.data.inputs import AnyInputs, mapped, tensors_of
from qprune.network.transformer import Named
from qprune.network.weights import Weight
from qprune.objective.samples import Prepared
from qprune.objective.trace.recorder import forward
from qprune.objective.trace.taps import tapped
from qprune.results import Part
from qprune.steps.reconstruct import RowMethod
from qprune.walk.sensitivity import Sensitivity
from qprune.walk.streams import batch_of
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem

logger = logging.getLogger(__name__)

_FEWER_TOKENS = "fewer or shorter samples (--num-calibration-samples, --max-seq-length)"
_OFFLOAD = "activations in files (--offload FOLDER), or " + _FEWER_TOKENS
_FEWER_TARGETS = "fewer layers at a time (--targets, --ignore)"

# A small problem that the method is timed on.
_ROWS, _INPUTS = 64, 128


def layerwise_needs(
    by_block: Sequence[Sequence[Sequence[Weight]]],
    inputs: AnyInputs,
    method: RowMethod,
    forwards: Pass,
    *,
    offload: str | Path = "cpu",
    on_host: bool = True,
    seconds_per_product: float = 0.0,
    solve: float = 0.0,
    shares: Sensitivity | None = None,
) -> Phase:
    """Memory and time.

    Args:
        by_block: the matrices of every block, in groups of those with the same input.
        inputs: all calibration samples, token ids (m, T).
        method: how a matrix is pruned.
        forwards: a pass through the whole model.
        offload: where activations wait.
        on_host: whether blocks run and are solved on the host.
        seconds_per_product: of one multiplication in a matrix product.
        solve: seconds of the method on a small problem, `gauge_method`.
        shares: what is measured of the loss before.
    """
    coupled = method.couples and shares is not None and bool(shares.coupling)
    every = [m for block in by_block for group in block for m in group]
    batch = batch_of(inputs)
    blocks = [block for block in by_block if any(block)]
    return Phase(
        "layer by layer",
        (
            Part("original weights and masks, for the way back", _undo(blocks), _FEWER_TARGETS),
            *(_activations(blocks, inputs, method) if _in_memory(offload, on_host) else ()),
            *(_arrays(blocks, method, coupled) if on_host else ()),
            *(_felt(every, shares) if shares else ()),
            Part("a batch's activations", forwards.num_bytes(batch) if on_host else 0.0),
        ),
        (
            # To see the order, to see inputs of every group (on average half a block), and on.
            Part("passes through blocks", _num_passes(blocks, method) * _all(forwards, inputs)),
            Part(
                "statistics of inputs",
                seconds_per_product * _products(blocks, _num_tokens(inputs), method),
            ),
            Part("solving matrices", solve * sum(_cost(m, coupled) for m in every)),
            *(_feeling(inputs, forwards, every, seconds_per_product, shares) if shares else ()),
        ),
    )


def _felt(matrices: Sequence[Weight], shares: Sensitivity) -> tuple[Part, ...]:
    def numbers(matrix: Weight) -> int:
        power = 2 if max(matrix.rows, matrix.inputs) <= shares.largest else 1
        return matrix.rows**power + matrix.inputs**power

    # The sums, and G again as it is used.
    return (Part("what the loss feels", 8.0 * 2 * sum(map(numbers, matrices)), _FEWER_TARGETS),)


def _feeling(
    inputs: AnyInputs,
    forwards: Pass,
    matrices: Sequence[Weight],
    seconds_per_product: float,
    shares: Sensitivity,
) -> tuple[Part, ...]:
    samples = min(len(inputs), shares.num_samples)
    measuring = seconds_per_product * shares.trade_offs(matrices)
    return (
        # A backward pass is two forward ones.
        Part("what the loss feels", 3.0 * forwards.seconds(samples, 1)),
        *((Part("trade-offs of layers", measuring),) if measuring else ()),
    )


def _num_tokens(inputs: AnyInputs) -> int:
    return tensors_of(inputs)[0].numel()


def _on(inputs: AnyInputs, device: torch.device) -> AnyInputs:
    return mapped(inputs, lambda tensor: tensor.to(device))


def _in_memory(offload: str | Path, on_host: bool) -> bool:
    """True if activations wait in the host's memory."""
    return str(offload) == "cpu" or (str(offload) == "device" and on_host)


def _undo(blocks: Sequence[Sequence[Sequence[Weight]]]) -> float:
    matrices = [matrix for block in blocks for group in block for matrix in group]
    return float(sum(m.size * (m.parameter.element_size() + 1) for m in matrices))


def _activations(
    blocks: Sequence[Sequence[Sequence[Weight]]], inputs: AnyInputs, method: RowMethod
) -> tuple[Part, ...]:
    first = blocks[0][0][0]
    each = _num_tokens(inputs) * first.parameter.element_size()
    # What went in and what came out; with dense targets, of the dense network too, and what goes
    # into every group of a block.
    widths = 2 * first.inputs
    if method.dense_targets:
        inside = max(sum(g[0].inputs for g in block if not g[0].routed) for block in blocks)
        widths = 4 * first.inputs + inside
    return (Part("activations of all samples", float(each * widths), _OFFLOAD),)


def _arrays(
    blocks: Sequence[Sequence[Sequence[Weight]]], method: RowMethod, coupled: bool
) -> tuple[Part, ...]:
    def moments(groups: Sequence[Sequence[Weight]]) -> float:
        return 8.0 * (2 if method.dense_targets else 1) * sum(g[0].inputs ** 2 for g in groups)

    together = [[g] for block in blocks for g in block] if method.by_group else blocks
    matrices = [matrix for block in blocks for group in block for matrix in group]
    # Of coupled rows also G, its scaled copy, eigenvectors, and what finding them takes.
    pairs = 8.0 * 4 if coupled else 0.0
    work = max(work_of(method, m.rows, m.inputs) + pairs * m.rows**2 for m in matrices)
    return (
        Part("statistics of a block's inputs", max(moments(groups) for groups in together)),
        Part("solving the largest matrix", work, _FEWER_TARGETS),
    )


def work_of(method: RowMethod, rows: int, inputs: int) -> float:
    """Bytes of host memory that ``method`` takes for a matrix, its quadratic included."""
    pair, weight = method.work
    return 8.0 * (pair * inputs**2 + weight * rows * inputs)


def _num_passes(blocks: Sequence[Sequence[Sequence[Weight]]], method: RowMethod) -> float:
    groups = max(len(block) for block in blocks)
    return 2.0 + (0.5 * groups if method.by_group else 1.0)


def _all(forwards: Pass, inputs: AnyInputs) -> float:
    return forwards.seconds(len(inputs), batch_of(inputs))


def _products(
    blocks: Sequence[Sequence[Sequence[Weight]]], tokens: int, method: RowMethod
) -> float:
    groups = [group[0] for block in blocks for group in block]
    return (2.0 if method.dense_targets else 1.0) * tokens * sum(m.inputs**2 for m in groups)


def _cost(matrix: Weight, coupled: bool) -> float:
    """Cost of a matrix, in small problems: rows times inputs squared; coupled, G too."""
    rows, inputs = matrix.rows, matrix.inputs
    if coupled:
        return rows * inputs * (rows + inputs) / (_ROWS * _INPUTS * (_ROWS + _INPUTS))
    return rows / _ROWS * (inputs / _INPUTS) ** 2


def groups_of(
    model: nn.Module, inputs: AnyInputs, by_block: Sequence[Sequence[Weight]]
) -> list[list[list[Weight]]]:
    """Every block's matrices in groups of those with the same input, seen on one sample.

    Matrices that the sample does not reach, as of an expert, are groups of their own.
    """
    found: list[list[list[Weight]]] = [[] for _ in by_block]
    place = {m.name: index for index, inside in enumerate(by_block) for m in inside}
    seen: set[str] = set()
    last: list[Tensor] = []

    def see(matrix: Weight, x: Tensor) -> None:
        if matrix.name in seen:
            return
        seen.add(matrix.name)
        groups = found[place[matrix.name]]
        if groups and last and last[0] is x and not matrix.routed:
            groups[-1].append(matrix)
        else:
            groups.append([matrix])
        last[:] = [x]

    device = next(model.parameters()).device
    with torch.no_grad(), tapped([m for inside in by_block for m in inside], see):
        forward(model, _on(inputs[:1], device))
    for index, inside in enumerate(by_block):
        found[index] += [[m] for m in inside if m.name not in seen]
    return found


def gauge_forward(model: nn.Module, inputs: AnyInputs) -> Pass:
    """A pass through the model, seen on some thousand tokens."""
    device = next(model.parameters()).device
    large = min(len(inputs), max(2, batch_of(inputs) // 4))

    def run(size: int) -> object:
        with torch.no_grad():
            return forward(model, _on(inputs[:size], device))

    return gauged(run, (max(1, large // 2), large))


def gauge_method(method: RowMethod, *, coupled: bool = False) -> float:
    """Seconds of the method on a small problem."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_INPUTS, 2 * _INPUTS))
    targets = rng.standard_normal((_ROWS, _INPUTS))
    felt = targets @ targets.T / _INPUTS if coupled else None
    problem = RowProblem(x @ x.T, targets, Counts(_ROWS * _INPUTS // 2), felt)
    seconds: list[float] = []
    for _ in range(2):  # The first one loads kernels.
        began = time.perf_counter()
        method.solve(problem, compensate=True, seed=0)
        seconds.append(time.perf_counter() - began)
    return seconds[-1]


def gauge_products() -> float:
    """Seconds of one multiplication in a product of matrices."""
    size = 256
    matrix = torch.ones(size, size)
    torch.mm(matrix, matrix)
    began = time.perf_counter()
    torch.mm(matrix, matrix)
    return (time.perf_counter() - began) / size**3


def layer_cost(
    rows: RowMethod,
    prepared: Prepared,
    blocks: Sequence[Named],
    offload: str | Path,
    shares: Sensitivity | None = None,
) -> Needs:
    """Memory and time of a run layer by layer, with what takes measuring measured.

    Args:
        rows: how a matrix is pruned.
        prepared: the model, its targeted weights, the samples.
        blocks: of the model.
        offload: where activations wait.
        shares: what is measured of the loss before.

    Raises:
        QpruneError: the model and the samples are not fit for each other.
    """
    model, inputs = prepared.model, plain(prepared.fit.inputs)
    by_block = [
        [w for w in prepared.weights if w.parameter_name.startswith(f"{name}.")]
        for name, _ in blocks
    ]
    phase = layerwise_needs(
        groups_of(model, inputs, by_block),
        inputs,
        rows,
        gauge_forward(model, inputs),
        offload=offload,
        on_host=next(model.parameters()).device.type == "cpu",
        seconds_per_product=gauge_products(),
        solve=gauge_method(rows, coupled=rows.couples and shares is not None),
        shares=shares,
    )
    return Needs(phases=(phase,))
