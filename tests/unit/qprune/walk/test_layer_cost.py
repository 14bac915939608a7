"""What pruning layer by layer is said to need: what a method holds, and what a block does."""

import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import tiny_models

import qprune
from qprune.cost import Pass
from qprune.errors import ImpossibleRequestError
from qprune.network.transformer import block_weights, find_blocks
from qprune.steps.reconstruct import ROWS
from qprune.walk.layer_cost import groups_of, layerwise_needs, work_of
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem


@pytest.mark.parametrize("rows", [64, 384])
@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "reconstruct"])
def test_a_method_holds_what_is_counted_for_it(name, rows):
    inputs, rng = 192, np.random.default_rng(0)
    x, targets = rng.standard_normal((inputs, 2 * inputs)), rng.standard_normal((rows, inputs))
    gram = x @ x.T
    method = ROWS[name]
    small = RowProblem(np.eye(4), rng.standard_normal((3, 4)), Counts(6))
    method.solve(small, compensate=True, seed=0)  # Kernels are loaded here, not below.
    tracemalloc.start()  # numpy reports its arrays; what LAPACK takes for itself is not seen.
    try:
        problem = RowProblem(gram, targets, Counts(rows * inputs // 2))
        method.solve(problem, compensate=True, seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Gram and targets are there before, and counted too.
    peak += gram.nbytes + targets.nbytes
    said = work_of(method, rows, inputs)
    assert peak < 1.1 * said
    assert said < 5 * peak


def by_block(model):
    weights = block_weights(model)
    return [
        [weight for weight in weights if weight.parameter_name.startswith(f"{name}.")]
        for name, _ in find_blocks(model)
    ]


def test_groups_are_those_of_the_same_input():
    model = tiny_models.make("llama")
    samples = tiny_models.samples(model)
    groups = groups_of(model, samples, by_block(model))
    names = [[matrix.name.rsplit(".", 1)[-1] for matrix in group] for group in groups[0]]
    assert names == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_every_architecture_is_foreseen(name):
    model = tiny_models.make(name)
    said = []
    report = qprune.prune(
        model,
        tiny_models.samples(model),
        sparsity=0.5,
        method=qprune.Layerwise(shares=None),
        limits=qprune.Limits(expect=said.append),
    ).report
    (needs,) = said
    assert report.estimate == needs
    assert needs.more > 0
    assert needs.seconds > 0


def test_activations_in_files_and_fewer_statistics_need_less():
    model = tiny_models.make("llama")
    samples = tiny_models.samples(model)
    groups = groups_of(model, samples, by_block(model))

    def amounts(method, **others):
        phase = layerwise_needs(groups, samples, ROWS[method], Pass(0, 100), **others)
        return {part.what: part.amount for part in phase.memory}

    usual, filed = amounts("reconstruct"), amounts("reconstruct", offload="/somewhere")
    width = model.config.hidden_size
    inside = 3 * width + model.config.intermediate_size
    assert usual["activations of all samples"] == 4 * samples.numel() * (4 * width + inside)
    assert "activations of all samples" not in filed
    plain = amounts("wanda")
    assert plain["activations of all samples"] == 4 * samples.numel() * 2 * width
    largest = max(width, model.config.intermediate_size)
    assert usual["statistics of a block's inputs"] == 2 * 8 * largest**2
    assert not any("matrix" in what for what in amounts("wanda", on_host=False))


def test_trade_offs_are_counted_on_the_rows_that_stand_for_all():
    """Eigenvectors grow with the cube of the inputs, rounds with their square."""

    def counted(rows, inputs, **options):
        matrix = SimpleNamespace(rows=rows, inputs=inputs)
        return qprune.Sensitivity(**options).trade_offs([matrix, matrix])

    assert counted(128, 512) == counted(2048, 512) > counted(64, 512)
    assert 4 < counted(256, 2048) / counted(256, 1024) < 8
    assert counted(256, 512, band=0) == counted(4096, 512) == counted(512, 256, largest=500) == 0


def test_what_does_not_fit_is_refused():
    model = tiny_models.make("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    limits = qprune.Limits(max_memory=1e6)
    with pytest.raises(ImpossibleRequestError, match=r"max_memory"):
        qprune.prune(
            model,
            tiny_models.samples(model),
            sparsity=0.5,
            method=qprune.Layerwise("wanda"),
            limits=limits,
        )
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)


def test_both_stages_are_in_one_estimate():
    model, said = tiny_models.make("llama"), []
    samples = tiny_models.samples(model)
    pruned = qprune.prune(
        model,
        samples,
        sparsity=0.5,
        method=(qprune.Layerwise(), qprune.Networkwise(start=None, rounds=1, accept_share=0.4)),
        compensate=qprune.Distillation(2, final_steps=1, at_end=True),
        augment=None,
        limits=qprune.Limits(expect=said.append, max_memory=math.inf),
    )
    time = {part.what for part in said[0].time}
    assert {"solving matrices", "moving kept weights", "expanding the loss"} <= time
    assert pruned.report.estimate == said[0]
