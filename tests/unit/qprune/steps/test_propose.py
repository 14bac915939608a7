"""Proposals of one expansion, on a quadratic loss of a dozen weights that is known exactly."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from small_networks import layer
from small_runs import run_of

from qprune.objective.curvature import Expansion, Part
from qprune.steps.propose import Present, Propose
from qprune.steps.select import Boundary
from solvers import Answer, LowRank

SIZE, SAMPLES, DAMPING = 12, 40, 0.3


@dataclass(frozen=True, eq=False)
class Factor:
    """A curvature F'F."""

    factor: torch.Tensor

    def diagonal(self):
        return self.factor.square().sum(0)

    def blocks(self, chosen):
        return [LowRank(self.factor[:, indices].double().numpy()) for indices in chosen]


def expansion(seed=0, noise=0.0, halves=(0, 1)):
    """A loss whose halves' gradients differ by a ``noise``."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(SAMPLES, SIZE, generator=generator) / SAMPLES**0.5
    gradient = torch.randn(SIZE, generator=generator)
    error = noise * torch.randn(SIZE, generator=generator)
    ends = [SAMPLES * (number + 1) // len(halves) for number in range(len(halves))]
    parts = tuple(
        Part(gradient + sign * error, slice(begin, end), half, True)
        for sign, begin, end, half in zip((1, -1), [0, *ends], ends, halves, strict=False)
    )
    curvature = Factor(factor)
    return Expansion(1.0, gradient, curvature.diagonal(), curvature, DAMPING, parts)


def present(moving=False, kept=6):
    run = run_of(layer(), compensate=None)
    mask = torch.arange(SIZE) < kept
    return Present(
        weights=run.weights,
        groups=run.groups,
        mask=mask,
        values=run.dense.values * mask,
        dense=run.dense.values,
        resting=torch.zeros(SIZE, dtype=torch.bool),
        moving=moving,
        random=torch.Generator().manual_seed(0),
    )


def propose(**options):
    given = {"block_size": 6, "num_blocks": 1, "terms": None, "select": Boundary(layer_share=0)}
    return Propose(**given | {"corrected": False, "anticipates": False} | options)


def answered(proposal, sample):
    return replace(proposal, answer=Answer.of_state(proposal.model, np.array(sample, np.int8)))


def flipped(block):
    """The first kept weight goes, the first pruned one comes back."""
    sample = block.pruned.copy()
    sample[sample.argmin()], sample[block.pruned.argmax()] = 1, 0
    return sample


def move_of(proposal, sample):
    """Of all weights."""
    block = proposal.block
    inside = np.where(sample == 0, block.keep_value, 0.0) - block.current
    move = np.zeros(SIZE)
    move[block.indices] = inside
    if proposal.response is not None:
        move[proposal.around.numpy()] = proposal.response @ inside
    return move


def test_restored_values_are_no_larger_than_the_originals():
    now = present(moving=True)
    now = replace(now, values=3.0 * now.values)
    gradient, diagonal = torch.zeros(SIZE), torch.ones(SIZE)
    gradient[6], gradient[7], gradient[8] = 1e6, -1e6, -0.25 * now.dense[8].abs()
    gradient[9], diagonal[9] = 0.0, -0.5  # 0 / 0: nothing is known of it.
    diagonal[10], gradient[10] = -0.5, 1.0  # 1 / 0
    gradient[0] = 1e6
    kept = now.values_if_kept(Expansion(1.0, gradient, diagonal, Factor(torch.eye(SIZE)), 0.5))
    assert torch.equal(kept[now.mask], now.values[now.mask])
    limit = now.dense.abs()
    assert (kept.abs() <= limit)[~now.mask].all()
    assert kept[6] == -limit[6]
    assert kept[7] == limit[7]
    # In between, the minimum of the loss along the weight: -g / (H + damping).
    torch.testing.assert_close(kept[8], 0.25 * limit[8] / 1.5)
    assert kept[9] == 0
    assert kept[10] == -limit[10]
    assert kept[11] == 0


def test_without_compensation_weights_come_back_as_they_were():
    now = present()
    assert torch.equal(now.values_if_kept(expansion()), now.dense)


def test_blocks_by_samples_are_those_of_the_whole_curvature():
    """A sum over samples that is not corrected, and the same loss without its samples."""
    whole = replace(expansion(), parts=())
    (apart,), (together,) = (
        propose().proposals(present(), given) for given in (expansion(), whole)
    )
    assert apart.block.indices.tolist() == together.block.indices.tolist()
    sample = flipped(apart.block)
    assert apart.model.energy(sample) == pytest.approx(together.model.energy(sample), rel=1e-5)


def test_the_prediction_is_the_change_of_the_loss_with_all_that_moves_along():
    given = expansion()
    (found,) = propose(anticipates=True).proposals(present(moving=True), given)
    assert len(found.around) == 6 - int((found.block.pruned == 0).sum())
    sample = flipped(found.block)
    move = move_of(found, sample)
    assert np.abs(move[found.around.numpy()]).min() > 0
    g, F = given.gradient.double().numpy(), given.curvature.factor.double().numpy()
    # The ridge counts for the whole move.
    wanted = g @ move + 0.5 * np.square(F @ move).sum() + 0.5 * DAMPING * move @ move
    assert found.model.energy(sample) == pytest.approx(wanted, rel=1e-6)


def test_what_moves_along_makes_every_change_cheaper():
    """But for what the rest would gain without it: there is none where its gradient is 0."""
    given, now = expansion(), present(moving=True)
    gradient = torch.where(now.mask, 0.0, given.gradient)
    parts = tuple(replace(part, gradient=gradient) for part in given.parts)
    given = replace(given, gradient=gradient, parts=parts)
    (found,) = propose(anticipates=True).proposals(now, given)
    sample = flipped(found.block)
    move = move_of(found, sample)
    move[found.around.numpy()] = 0.0
    F = given.curvature.factor.double().numpy()
    alone = gradient.double().numpy() @ move + 0.5 * np.square(F @ move).sum()
    assert found.model.energy(sample) < alone + 0.5 * DAMPING * move @ move


def test_halves_that_disagree_promise_less_than_the_plain_model():
    (found,) = propose(corrected=True).proposals(present(), expansion(noise=2.0))
    best = min(
        (answered(found, flipped(found.block)), answered(found, 1 - found.block.pruned)),
        key=lambda proposal: proposal.uncorrected,
    )
    assert best.uncorrected < 0
    assert best.uncorrected < best.predicted


@pytest.mark.parametrize("halves", [(0,), (0, 1)])
def test_one_half_alone_corrects_nothing(halves):
    (found,) = propose(corrected=True).proposals(present(), expansion(noise=2.0, halves=halves))
    sample = 1 - found.block.pruned
    predicted = answered(found, sample).predicted
    assert (predicted == pytest.approx(answered(found, sample).uncorrected)) is (len(halves) == 1)
