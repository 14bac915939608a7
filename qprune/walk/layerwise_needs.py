"""What pruning layer by layer will need: one block's statistics, activations, the way back.

Counted for the host. Where blocks run on a device of their own, what is there alone is left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from qprune.cost import Estimate, Part, Pass, Phase, estimate, gauged, require_fit
from qprune.data.calibration import as_calibration, plain
from qprune.data.inputs import AnyInputs, mapped, tensors_of
from qprune.errors import QpruneError
from qprune.network.matrices import Matrix, find_matrices
from qprune.network.transformer import find_blocks
from qprune.objective.trace.recorder import forward, out_of_memory
from qprune.objective.trace.taps import tapped
from qprune.steps.reconstruct import Magnitude, Method, SparseGPT, Wanda
from qprune.walk.layerwise import batch_of, evaluating
from solvers.host.machine import available_memory, peak_memory
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem

logger = logging.getLogger(__name__)

_FEWER_TOKENS = "fewer or shorter samples (--num-calibration-samples, --max-seq-length)"
_OFFLOAD = "activations in files (--offload FOLDER), or " + _FEWER_TOKENS
_FEWER_TARGETS = "fewer layers at a time (--targets, --ignore)"

# Numbers that a method holds at its worst: per pair of inputs, and per weight of the matrix.
# Counted in the code, and held against measured peaks by the tests.
_WORK: dict[type, tuple[float, float]] = {
    Magnitude: (4.0, 4.0),
    Wanda: (4.0, 5.0),
    SparseGPT: (6.0, 5.0),
}
_SEARCH = (6.0, 15.0)
# A small problem that the method is timed on.
_ROWS, _INPUTS = 64, 128


def layerwise_needs(
    by_block: Sequence[Sequence[Sequence[Matrix]]],
    inputs: AnyInputs,
    method: Method,
    forwards: Pass,
    *,
    offload: str | Path = "cpu",
    on_host: bool = True,
    seconds_per_product: float = 0.0,
    solve: float = 0.0,
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
    """
    batch = batch_of(inputs)
    blocks = [block for block in by_block if any(block)]
    return Phase(
        "layer by layer",
        (
            Part("original weights and masks, for the way back", _undo(blocks), _FEWER_TARGETS),
            *(_activations(blocks, inputs, method) if _in_memory(offload, on_host) else ()),
            *(_arrays(blocks, method) if on_host else ()),
            Part("a batch's activations", forwards.num_bytes(batch) if on_host else 0.0),
        ),
        (
            # To see the order, to see inputs of every group (on average half a block), and on.
            Part("passes through blocks", _num_passes(blocks, method) * _all(forwards, inputs)),
            Part(
                "statistics of inputs",
                seconds_per_product * _products(blocks, _num_tokens(inputs), method),
            ),
            Part("solving matrices", solve * sum(_cost(m) for b in blocks for g in b for m in g)),
        ),
    )


def _num_tokens(inputs: AnyInputs) -> int:
    return tensors_of(inputs)[0].numel()


def _on(inputs: AnyInputs, device: torch.device) -> AnyInputs:
    return mapped(inputs, lambda tensor: tensor.to(device))


def _in_memory(offload: str | Path, on_host: bool) -> bool:
    """Whether activations wait in the host's memory."""
    return str(offload) == "cpu" or (str(offload) == "device" and on_host)


def _undo(blocks: Sequence[Sequence[Sequence[Matrix]]]) -> float:
    matrices = [matrix for block in blocks for group in block for matrix in group]
    return float(sum(m.size * (m.parameter.element_size() + 1) for m in matrices))


def _activations(
    blocks: Sequence[Sequence[Sequence[Matrix]]], inputs: AnyInputs, method: Method
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


def _arrays(blocks: Sequence[Sequence[Sequence[Matrix]]], method: Method) -> tuple[Part, ...]:
    def moments(groups: Sequence[Sequence[Matrix]]) -> float:
        return 8.0 * (2 if method.dense_targets else 1) * sum(g[0].inputs ** 2 for g in groups)

    together = [[g] for block in blocks for g in block] if method.by_group else blocks
    matrices = [matrix for block in blocks for group in block for matrix in group]
    work = max(work_of(method, m.rows, m.inputs) for m in matrices)
    return (
        Part("statistics of a block's inputs", max(moments(groups) for groups in together)),
        Part("solving the largest matrix", work, _FEWER_TARGETS),
    )


def work_of(method: Method, rows: int, inputs: int) -> float:
    """Bytes of host memory that ``method`` takes for a matrix, its quadratic included."""
    pair, weight = _WORK.get(type(method), _SEARCH)
    return 8.0 * (pair * inputs**2 + weight * rows * inputs)


def _num_passes(blocks: Sequence[Sequence[Sequence[Matrix]]], method: Method) -> float:
    groups = max(len(block) for block in blocks)
    return 2.0 + (0.5 * groups if method.by_group else 1.0)


def _all(forwards: Pass, inputs: AnyInputs) -> float:
    return forwards.seconds(len(inputs), batch_of(inputs))


def _products(blocks: Sequence[Sequence[Sequence[Matrix]]], tokens: int, method: Method) -> float:
    groups = [group[0] for block in blocks for group in block]
    return (2.0 if method.dense_targets else 1.0) * tokens * sum(m.inputs**2 for m in groups)


def _cost(matrix: Matrix) -> float:
    """How much more a matrix takes than the small problem: rows times inputs squared."""
    return matrix.rows / _ROWS * (matrix.inputs / _INPUTS) ** 2


def groups_of(model: nn.Module, inputs: AnyInputs, by_block: Sequence[Sequence[Matrix]]) -> list:
    """Every block's matrices in groups of those with the same input, seen on one sample.

    Matrices that the sample does not reach, as of an expert, are groups of their own.
    """
    found: list[list[list[Matrix]]] = [[] for _ in by_block]
    place = {m.name: index for index, inside in enumerate(by_block) for m in inside}
    seen: set[str] = set()
    last: list[Tensor] = []

    def see(matrix: Matrix, x: Tensor) -> None:
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


def gauge_method(method: Method) -> float:
    """Seconds of the method on a small problem."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_INPUTS, 2 * _INPUTS))
    targets = rng.standard_normal((_ROWS, _INPUTS))
    problem = RowProblem(x @ x.T, targets, Counts(_ROWS * _INPUTS // 2))
    seconds = []
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


def gauged_phase(
    model: nn.Module,
    inputs: AnyInputs,
    method: Method,
    by_block: Sequence[Sequence[Matrix]],
    *,
    offload: str | Path = "cpu",
    forwards: Pass | None = None,
) -> Phase:
    """`layerwise_needs` of these matrices, with what takes measuring measured."""
    on_host = next(model.parameters()).device.type == "cpu"
    with evaluating(model):
        return layerwise_needs(
            groups_of(model, inputs, by_block),
            inputs,
            method,
            forwards or gauge_forward(model, inputs),
            offload=offload,
            on_host=on_host,
            seconds_per_product=gauge_products(),
            solve=gauge_method(method),
        )


def state_layerwise(
    model: nn.Module,
    windows: Any,
    method: Method,
    *,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    offload: str | Path = "cpu",
    max_memory: float | None = None,
) -> Estimate | None:
    """What `prune_layerwise` needs for this, logged; None where the model cannot be tried out.

    Args:
        model: see there.
        windows: see there.
        method: see there.
        targets: see there.
        ignore: see there.
        offload: see there.
        max_memory: bytes that the process may hold; default what is in use and available.

    Raises:
        ImpossibleRequestError: it does not fit.
    """
    try:
        inputs = plain(as_calibration(windows, model).inputs)
        by_block = find_matrices(find_blocks(model), targets, ignore)
        phase = gauged_phase(model, inputs, method, by_block, offload=offload)
    except (QpruneError, RuntimeError, MemoryError) as error:
        if not isinstance(error, QpruneError) and not out_of_memory(error):
            raise
        # The run meets the same trouble, and has more to say about it.
        logger.debug("what the run needs is not known: %s", error)
        return None
    present = float(psutil.Process().memory_info().rss)
    needs = estimate(present, peak_memory(), (), [phase])
    logger.info("%s", needs)
    require_fit(needs, available_memory(), max_memory)
    return needs
