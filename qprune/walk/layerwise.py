"""Report of a layer-by-layer run.

Prune a model block by block, its activations streamed from one block to the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qprune.data.calibration import as_calibration, plain
from qprune.data.inputs import AnyInputs, tensors_of
from qprune.distributed.ranks import ALONE, Ranks
from qprune.distributed.workers import checked_threads, limited_threads
from qprune.errors import ImpossibleRequestError
from qprune.network.groups import KeepNofM, budget_of, checked_sparsity, sparsity_by_layer
from qprune.network.matrices import Matrix, find_matrices, log_left_dense, refuse_tied
from qprune.network.transformer import Named, Store, enter, find_blocks, stacks_of, stores
from qprune.steps.reconstruct import METHODS, Magnitude, Method, Moments, Reconstruct, quadratic
from qprune.walk.streams import Order, Passage
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem
from solvers.rows.refit import Array


@dataclass(frozen=True)
class LayerOutcome:
    """Record of one pruned matrix.

    Attributes:
        name: as in `Matrix`.
        shape: (rows, inputs).
        num_weights: rows x inputs.
        num_pruned: number of them that are zero.
        error: output error as a share of the target outputs' energy.
        tokens: number of tokens in the statistics.
        seconds: wall time of the solve.
        cpu_seconds: process CPU time of the solve.
    """

    name: str
    shape: tuple[int, int]
    num_weights: int
    num_pruned: int
    error: float
    tokens: int
    seconds: float
    cpu_seconds: float

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return self.num_pruned / self.num_weights


@dataclass(frozen=True, eq=False)
class Layerwise:
    """Result of a layer-by-layer run.

    Attributes:
        mask: True = kept, by parameter name, in each parameter's own shape.
        layers: every matrix, in order of use.
        asked_sparsity: requested sparsity.
        seconds: wall time.
        cpu_seconds: process CPU time.
    """

    mask: dict[str, Tensor]
    layers: tuple[LayerOutcome, ...]
    asked_sparsity: float
    seconds: float
    cpu_seconds: float

    @property
    def achieved_sparsity(self) -> float:
        """Share of the targeted weights that are zero."""
        return sum(o.num_pruned for o in self.layers) / sum(o.num_weights for o in self.layers)


#: Progress callback: (finished matrix, number done, total).
LayerObserver = Callable[[LayerOutcome, int, int], None]


logger = logging.getLogger(__name__)

# Tokens run through a block together.
_BATCH_TOKENS = 4096

# Values that stay can make up for only some of what pruning the layers before did: masks chosen
# as if they made up for all of it, or for none, lose up to a quarter more at the network's end.
_DENSE_SHARE_HELD = 0.5


@dataclass(eq=False)
class _Run:
    """A run's fixed surroundings, and what it has made so far."""

    method: Method
    budgets: Mapping[str, Counts]
    compensate: bool
    device: torch.device
    seed: int
    observe: LayerObserver | None
    new_store: Callable[[], Store]
    total: int
    ranks: Ranks
    mask: dict[str, Tensor] = field(default_factory=dict)
    outcomes: list[LayerOutcome] = field(default_factory=list)
    undo: list[tuple[Matrix, Tensor]] = field(default_factory=list)


def prune_layerwise(
    model: nn.Module,
    windows: Any,
    *,
    method: Method | str = "reconstruct",
    sparsity: float | None = None,
    mask_structure: str | None = None,
    layer_sparsity: Mapping[str, float] | None = None,
    compensate: bool = True,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    offload: str | Path = "cpu",
    seed: int = 0,
    observe: LayerObserver | None = None,
    ranks: Ranks = ALONE,
    threads: int | None = None,
) -> Layerwise:
    """Prune every block's matrices in place so that their outputs change least.

    Blocks are taken in order, one on the device at a time. The calibration samples flow through
    the dense block and through the pruned one side by side; both outputs wait off the device for
    the next block.

    Args:
        model: a transformer: any with its blocks in a ModuleList. Weights may be float32,
            bfloat16 or float16.
        windows: calibration samples as the model takes them, shape (m, ...): token ids (m, T), or
            images. Or anything that `qprune.Calibration` can be made of.
        method: a strategy (`qprune.steps.reconstruct`), or a name in `METHODS`.
        sparsity: share of each matrix to prune.
        mask_structure: "N:M" instead, at most N non-zero in every M consecutive inputs.
        layer_sparsity: other sparsities for some matrices, by name.
        compensate: whether kept values may move; False gives a mask only.
        targets: class names, module names or ``re:`` patterns; None for all of the blocks.
        ignore: the same: what stays dense.
        batch_size: samples in one pass; default by their length.
        device: where blocks run and are solved; default where the model is.
        offload: where activations wait: "cpu"; "device", the faster the farther that is from the
            host, but most of its memory; or a folder for temporary files.
        seed: one seed, one mask.
        observe: called with every matrix that is done.
        ranks: processes that share the samples (`qprune.distributed.ranks`), each of which calls
            this with the same arguments and holds the model; rank 0 solves. The bytes are those of
            one.
        threads: that "reconstruct" improves rows with, on the CPU; everything else takes one, and
            the bytes are those of one. None: `qprune.distributed.workers.DEFAULT_THREADS`.

    Returns:
        Masks and what was reached. Statistics, and the original weights until the run ends, are
        held in the host's memory; an error, or an interrupt, puts the weights back.

    Raises:
        QpruneError: see `qprune.errors`; the model is then as it was.
    """
    began = time.perf_counter(), time.process_time()
    strategy = _with_threads(_method(method), checked_threads(threads))
    structure = KeepNofM.parse(mask_structure) if mask_structure else None
    asked = checked_sparsity(sparsity, structure)
    samples = plain(as_calibration(windows, model).inputs)
    blocks = find_blocks(model)
    by_block = find_matrices(blocks, targets, ignore)
    matrices = [matrix for inside in by_block for matrix in inside]
    refuse_tied(model, matrices)
    shares = sparsity_by_layer(matrices, asked, layer_sparsity)
    if structure and (layer_sparsity or abs(asked - structure.sparsity) > 1e-6):
        raise ImpossibleRequestError(
            f"mask_structure {mask_structure} means sparsity {structure.sparsity:g} everywhere; "
            "leave sparsity and layer_sparsity out"
        )
    budgets = {m.name: budget_of(m, shares[m.name], structure, strategy.scope) for m in matrices}
    log_left_dense(model, matrices)
    home = next(model.parameters()).device
    with (
        ranks.watched(),
        limited_threads(1),
        stores(offload) as new_store,
        evaluating(model),
    ):
        run = _Run(
            method=strategy,
            budgets=budgets,
            compensate=compensate,
            device=torch.device(device or home),
            seed=seed,
            observe=observe,
            new_store=new_store,
            total=len(matrices),
            ranks=ranks,
        )
        with _undone_on_error(run):
            batches = _own(samples.split(batch_size or batch_of(samples)), matrices, ranks)
            _walk(run, model, blocks, by_block, batches)
    return Layerwise(
        mask=run.mask,
        layers=tuple(run.outcomes),
        asked_sparsity=sum(round(shares[m.name] * m.size) for m in matrices)
        / sum(m.size for m in matrices),
        seconds=time.perf_counter() - began[0],
        cpu_seconds=time.process_time() - began[1],
    )


@torch.no_grad()
def _walk(
    run: _Run,
    model: nn.Module,
    blocks: Sequence[Named],
    by_block: Sequence[Sequence[Matrix]],
    batches: Sequence[AnyInputs],
) -> None:
    # A decoder's blocks are entered behind the encoder as it is by then: pruned.
    for stack in stacks_of(blocks):
        inside = [by_block[index] for index in stack]
        if any(inside):
            _walk_stack(run, model, [blocks[index] for index in stack], inside, batches)


def _walk_stack(
    run: _Run,
    model: nn.Module,
    blocks: Sequence[Named],
    by_block: Sequence[Sequence[Matrix]],
    batches: Sequence[AnyInputs],
) -> None:
    entry = enter(model, blocks, batches, run.new_store)
    dense = current = entry.hidden
    last = max(index for index, inside in enumerate(by_block) if inside)
    for index in range(last + 1):
        block, inside = blocks[index][1], by_block[index]
        home = next(block.parameters()).device
        block.to(run.device)
        passage = Passage(block, entry.calls[index], inside, run.device, run.new_store, run.ranks)
        order = passage.order(dense, run.method.dense_targets)
        _prune_block(run, passage, order, current)
        if index < last:
            current = passage.forward(current)
            dense = order.outputs or current
        block.to(home)


def _prune_block(run: _Run, passage: Passage, order: Order, hidden: Store) -> None:
    together = [matrix for group in order.groups for matrix in group]
    for group in order.groups if run.method.by_group else [together]:
        moments = passage.moments(hidden, group, order.inputs)
        for matrix in group:
            order.inputs.pop(matrix.name, None)  # Their place is needed.
        for matrix in group:
            _prune(run, matrix, moments[matrix.name])
    for matrix in passage.inside:
        if matrix not in together:
            _prune(run, matrix, Moments(matrix.name, matrix.inputs, run.device, False))


def _prune(run: _Run, matrix: Matrix, moments: Moments) -> None:
    began = time.perf_counter(), time.process_time()
    if not moments.tokens:
        logger.warning("no token reached %s: pruned by the size of its weights", matrix.name)
    weights = matrix.read()
    run.undo.append((matrix, weights.to("cpu")))
    share = 1.0 if run.compensate else _DENSE_SHARE_HELD
    goal = quadratic(moments, weights, run.method.damping, share)
    problem = RowProblem(_array(goal.gram), _array(goal.targets), run.budgets[matrix.name])
    seed = run.seed + len(run.outcomes)
    method = run.method if moments.tokens else Magnitude()
    solved = run.ranks.once(lambda: method.solve(problem, compensate=run.compensate, seed=seed))
    mask = torch.as_tensor(solved.mask, device=weights.device)
    values = torch.as_tensor(solved.values, device=weights.device) if run.compensate else weights
    matrix.write(torch.where(mask, values.to(weights), 0.0))
    kept = run.mask.setdefault(
        matrix.parameter_name, torch.ones(matrix.parameter.shape, dtype=torch.bool)
    )
    matrix.view(kept).copy_(mask)
    error = problem.objectives(_array(matrix.read().to(goal.gram)))
    energy = float(problem.objectives(0.0 * problem.targets).sum())
    outcome = LayerOutcome(
        name=matrix.name,
        shape=(matrix.rows, matrix.inputs),
        num_weights=matrix.size,
        num_pruned=matrix.size - int(mask.sum()),
        error=float(error.sum()) / energy if energy else 0.0,
        tokens=moments.tokens,
        seconds=time.perf_counter() - began[0],
        cpu_seconds=time.process_time() - began[1],
    )
    run.outcomes.append(outcome)
    if run.observe is not None:
        run.observe(outcome, len(run.outcomes), run.total)


def _array(tensor: Tensor) -> Array:
    """For the row solvers: numpy on the host, the tensor itself on a device."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _with_threads(method: Method, threads: int) -> Method:
    return replace(method, num_threads=threads) if isinstance(method, Reconstruct) else method


def _method(method: Method | str) -> Method:
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise ImpossibleRequestError(f"no method {method!r}; there are: {', '.join(METHODS)}")
    return METHODS[method]


def _own(
    batches: Sequence[AnyInputs], matrices: Sequence[Matrix], ranks: Ranks
) -> Sequence[AnyInputs]:
    """This rank's batches.

    Raises:
        ImpossibleRequestError: the ranks would not all do the same at the same time.
    """
    if len(batches) % ranks.size:
        raise ImpossibleRequestError(
            f"{len(batches)} batches of samples cannot be shared evenly among {ranks.size} ranks; "
            "pass another batch_size, or other samples"
        )
    routed = next((matrix.name for matrix in matrices if matrix.routed), None)
    if ranks.size > 1 and routed:
        raise ImpossibleRequestError(
            f"tokens are routed to {routed!r}, other ones on every rank; prune a mixture of "
            "experts by one process, or leave its experts out"
        )
    return batches[ranks.rank :: ranks.size]


def batch_of(samples: AnyInputs) -> int:
    """Samples in one pass: some thousand tokens, or some images."""
    first = tensors_of(samples)[0]
    length = first.shape[1] if first.ndim == 2 else 256
    return max(1, _BATCH_TOKENS // length)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no cache of keys and values, and afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    caching = getattr(config, "use_cache", False)
    model.eval()
    if caching:
        config.use_cache = False
    try:
        yield
    finally:
        if caching:
            config.use_cache = True
        for module in training:
            module.training = True


@contextmanager
def _undone_on_error(run: _Run) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for matrix, weights in reversed(run.undo):
            matrix.write(weights)
        raise
