"""Curvature of the loss as every matrix feels it: weights of its outputs, and layer budgets.

One backward pass of the Gauss-Newton sketch over some samples gives every matrix' curvature as a
Kronecker product (K-FAC, Martens and Grosse 2015, arXiv 1503.05671): G = E[delta delta'] of the
derivatives by its outputs, A = E[x x'] of its inputs.

- Its outputs' error is weighed by G: 1/2 tr(G E A E') is what the loss rises by, to second order.
- How fast that error falls with the density is measured, at two densities by a few rounds of ADMM,
  with values moved if the run moves them, else held. Between them its logarithm is taken to be
  linear, and each layer gets the density at which one more weight is worth the same everywhere,
  within a band around the common one. (Budgets that differ by layer: OWL, Yin et al. 2023, arXiv
  2310.05175.)

Where a matrix is too large for that, budgets come from one threshold on the scores of all weights,
1/2 w^2 G_oo A_ii, in a narrower band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qprune.data.inputs import AnyInputs
from qprune.errors import ImpossibleRequestError
from qprune.network.weights import Weight, Weights
from qprune.objective.losses import DenseOutputs, Loss
from qprune.objective.trace.functions import LinearCall
from qprune.objective.trace.recorder import Recorder, differentiating, forward
from qprune.steps.reconstruct import product
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem
from solvers.rows.refit import Array
from solvers.rows.search import refit_coupled
from solvers.rows.starts import admm

# Largest number of a layer's weights that are scored.
_SCORED = 1 << 16
_LOSS = DenseOutputs()

# Trade-offs are measured at this share of the common density below and above it, roughly: few
# rounds rank the matrices as well as many.
_AROUND = 0.35
_ROUNDS, _REFITS = 6, 15
# Rows of a matrix that stand for all of them there, evenly spaced.
_ROWS = 128
# Eigenvectors of an n x n matrix take as long as 7 to 15 n^3 multiplications in a product.
_EIGEN = 12
_DAMPING = 0.01
# Scores are no errors: they foresee neither what other weights make up for nor how errors of
# several add up. Further than this from the common density they are not trusted.
_BAND_OF_SCORES = 0.25


@dataclass(frozen=True, eq=False)
class Felt:
    """The curvature of one matrix, a Kronecker product.

    Attributes:
        outputs: G, summed over tokens, shape (rows, rows); its diagonal alone where it is large.
        inputs: A, mean over tokens, shape (inputs, inputs); or its diagonal.
        tokens: that were seen; 0 for what no product shows, as experts that run fused.
    """

    outputs: Tensor
    inputs: Tensor
    tokens: int

    @property
    def whole(self) -> bool:
        """True if neither is a diagonal."""
        return self.outputs.ndim == self.inputs.ndim == 2

    def coupling(self, strength: float) -> Tensor | None:
        """G scaled to a mean diagonal of 1 and mixed with the identity; None where rows are alone.

        Args:
            strength: share of G; the identity's is what the few samples do not show.
        """
        size = self.outputs.diagonal().mean() if self.whole else torch.zeros(())
        if not strength or not float(size):
            return None
        mixed = self.outputs * (strength / size)
        mixed.diagonal().add_(1.0 - strength)
        return mixed


@dataclass(frozen=True)
class Sensitivity:
    """Weights of outputs, and layer budgets, from one backward pass over some samples.

    Args:
        band: a layer's density lies within (1 - band, 1 + band) times the network's, 0.25 at most
            where matrices are seen by diagonals; 0 = the same for all.
        num_samples: number of calibration samples used.
        loss: loss of the run.
        coupling: share of the measured G in the weight of a matrix' output errors, for row methods
            that couple rows; the rest falls on all directions alike. 0 = outputs count alike.
        largest: matrices with more rows or inputs are seen by diagonals, and their rows stay alone.

    Raises:
        ImpossibleRequestError: ``band`` is not in [0, 1), ``coupling`` not in [0, 1], or
            ``num_samples`` is below 1.
    """

    band: float = 0.6
    num_samples: int = 32
    loss: Loss = _LOSS
    coupling: float = 0.9
    largest: int = 2048

    def __post_init__(self) -> None:
        if not 0 <= self.band < 1:
            raise ImpossibleRequestError(f"band must lie in [0, 1), not {self.band!r}")
        if not 0 <= self.coupling <= 1:
            raise ImpossibleRequestError(f"coupling must lie in [0, 1], not {self.coupling!r}")
        if self.num_samples < 1:
            raise ImpossibleRequestError(
                f"num_samples must be at least 1, not {self.num_samples!r}"
            )

    def felt(self, model: nn.Module, layers: Weights, inputs: AnyInputs, seed: int) -> list[Felt]:
        """The curvature of every layer at the present weights."""
        generator = torch.Generator().manual_seed(seed)
        sums = [_Sums(layer, self.largest) for layer in layers]
        for sample in inputs[: self.num_samples].split(1):
            with differentiating(model, layers):
                with Recorder(layers) as recorder:
                    outputs = forward(model, sample)
                sketch = self.loss.sketched(outputs, generator)
                deltas = torch.autograd.grad(sketch.sum(), recorder.outputs(), allow_unused=True)
                trace = recorder.trace(deltas, len(sample))
            seen: dict[tuple[int, ...], Tensor] = {}
            for calls, summed in zip(trace.calls, sums, strict=True):
                for call in calls:
                    assert isinstance(call, LinearCall)  # Blocks' targets are matrices.
                    summed.add(call, seen)
        return [summed.felt() for summed in sums]

    def shares(
        self, layers: Weights, felt: Sequence[Felt], sparsity: float, seed: int, *, moving: bool
    ) -> dict[str, float]:
        """Return the sparsity of every layer by module name; overall close to ``sparsity``.

        A layer of which nothing was seen gets just that.

        Args:
            layers: the layers.
            felt: their curvature.
            sparsity: of all of them.
            seed: decides which weights are scored.
            moving: kept values move, so that they make up for others: errors are then far smaller,
                and other layers the ones that need weights.
        """
        common = {layer.name: sparsity for layer in layers}
        pairs = [(layer, one) for layer, one in zip(layers, felt, strict=True) if one.tokens]
        if not self.band or not pairs:
            return common
        density = 1 - sparsity
        sizes = [layer.size for layer, _ in pairs]
        if all(one.whole for _, one in pairs):
            curves = [_curve(layer, one, self.coupling, density, moving) for layer, one in pairs]
            found = _at_one_price(curves, sizes, density, *_within(self.band, density))
        else:
            generator = torch.Generator().manual_seed(seed)
            scores = [_scores(layer, one, generator) for layer, one in pairs]
            low, high = _within(min(self.band, _BAND_OF_SCORES), density)
            found = _at_one_threshold(scores, sizes, sparsity, 1 - high, 1 - low)
        return common | {layer.name: share for (layer, _), share in zip(pairs, found, strict=True)}

    def trade_offs(self, layers: Sequence[Weight]) -> float:
        """Multiplications that measuring the trade-offs of ``layers`` takes."""
        if not self.band or any(max(m.rows, m.inputs) > self.largest for m in layers):
            return 0.0
        return float(sum(_multiplications(min(m.rows, _ROWS), m.inputs) for m in layers))


def _within(band: float, density: float) -> tuple[float, float]:
    """The least and the largest density of a layer."""
    return (1 - band) * density, min(1.0, (1 + band) * density)


class _Sums:
    """The curvature of one matrix, summed up."""

    def __init__(self, layer: Weight, largest: int) -> None:
        rows, inputs = layer.rows, layer.inputs
        whole = max(rows, inputs) <= largest
        shapes = ((rows, rows), (inputs, inputs)) if whole else ((rows,), (inputs,))
        self._outputs, self._inputs = (torch.zeros(s, dtype=torch.float64) for s in shapes)
        self._tokens = 0

    def add(self, call: LinearCall, seen: dict[tuple[int, ...], Tensor]) -> None:
        """Add one call; ``seen`` holds products of inputs that matrices share."""
        deltas, inputs = call.felt.flatten(0, -2), call.taken.flatten(0, -2)
        key = (self._inputs.ndim, inputs.data_ptr(), *inputs.shape, *inputs.stride())
        if key not in seen:
            seen[key] = self._moments(inputs)
        self._outputs += self._moments(deltas).to(self._outputs)
        self._inputs += seen[key].to(self._inputs)
        self._tokens += len(inputs)

    def felt(self) -> Felt:
        """The result."""
        return Felt(self._outputs, self._inputs / max(1, self._tokens), self._tokens)

    def _moments(self, x: Tensor) -> Tensor:
        if self._inputs.ndim == 2:
            return product(x, x)
        return x.double().square().sum(0)


def _curve(
    layer: Weight, felt: Felt, coupling: float, density: float, moving: bool
) -> tuple[float, float]:
    """(a, b) of the error a layer leaves at a density d, exp(a - b d)."""
    gram, size = felt.inputs.clone(), float(felt.outputs.diagonal().mean())
    gram.diagonal().add_(_DAMPING * gram.diagonal().mean())
    number = min(layer.rows, _ROWS)
    rows = torch.arange(number) * layer.rows // number
    together = felt.coupling(coupling)
    if together is None:
        together = torch.eye(layer.rows, dtype=torch.float64)
    together, weights = together[rows][:, rows], layer.read().cpu()[rows].double()
    places = (1 - _AROUND) * density, min((1 + _AROUND) * density, (1 + density) / 2)
    logarithms: list[float] = []
    for place in places:
        counts = Counts(round(place * weights.numel()))
        problem = RowProblem(gram.numpy(), weights.numpy(), counts, together.numpy())
        error = (
            size * layer.rows / number * float(problem.objectives(_pruned(problem, moving)).sum())
        )
        logarithms.append(math.log(max(error, 1e-300)))
    slope = max(1e-6, (logarithms[0] - logarithms[1]) / (places[1] - places[0]))
    return logarithms[0] + slope * places[0], slope


def _pruned(problem: RowProblem, moving: bool) -> Array:
    """The matrix after a few rounds of what the run does to it."""
    if not moving:
        alone = replace(problem, felt=None)
        return problem.targets * admm(alone, damping=0.0, max_iterations=_ROUNDS).mask
    start = admm(problem, damping=0.0, max_iterations=_ROUNDS)
    return refit_coupled(problem, start.mask, start.values, max_iterations=_REFITS)


def _multiplications(rows: int, inputs: int) -> int:
    """Of `_curve`, at two densities: eigenvectors, then changes of basis, and images, by rounds."""
    rounds = (2 * _ROUNDS + _REFITS) * rows * inputs * (rows + inputs)
    return 2 * (_EIGEN * (rows**3 + inputs**3) + rounds)


def _at_one_price(
    curves: Sequence[tuple[float, float]],
    sizes: Sequence[int],
    density: float,
    low: float,
    high: float,
) -> list[float]:
    """Return every layer's sparsity where one more weight is worth the same; bisection."""

    def densities(price: float) -> list[float]:
        return [
            min(max((a + math.log(b / size) - price) / b, low), high)
            for (a, b), size in zip(curves, sizes, strict=True)
        ]

    prices = [a + math.log(b / size) for (a, b), size in zip(curves, sizes, strict=True)]
    bottom = min(price - b for price, (_, b) in zip(prices, curves, strict=True))
    top = max(prices)
    wanted = density * sum(sizes)
    for _ in range(60):
        middle = 0.5 * (bottom + top)
        kept = sum(share * size for share, size in zip(densities(middle), sizes, strict=True))
        bottom, top = (middle, top) if kept > wanted else (bottom, middle)
    return [1 - share for share in densities(top)]


def _scores(layer: Weight, felt: Felt, generator: torch.Generator) -> Tensor:
    """Return ascending float64 logarithms of the scores of some of a layer's weights."""
    outputs, inputs = (
        part if part.ndim == 1 else part.diagonal() for part in (felt.outputs, felt.inputs)
    )
    worth = (layer.read().cpu().double().square() * outputs[:, None] * inputs).flatten()
    if len(worth) > _SCORED:
        worth = worth[torch.randint(len(worth), (_SCORED,), generator=generator)]
    return worth.clamp(min=1e-300).log().sort().values


def _at_one_threshold(
    scores: Sequence[Tensor], sizes: Sequence[int], sparsity: float, low: float, high: float
) -> list[float]:
    """Return every layer's share below one threshold, clipped to [low, high]; bisection."""

    def below(threshold: float) -> list[float]:
        at = torch.tensor([threshold], dtype=torch.float64)
        return [
            min(max(float(torch.searchsorted(worth, at)) / len(worth), low), high)
            for worth in scores
        ]

    bottom = min(float(worth[0]) for worth in scores)
    top = max(float(worth[-1]) for worth in scores) + 1.0
    wanted = sparsity * sum(sizes)
    for _ in range(60):
        middle = 0.5 * (bottom + top)
        pruned = sum(share * size for share, size in zip(below(middle), sizes, strict=True))
        bottom, top = (middle, top) if pruned < wanted else (bottom, middle)
    return below(top)
