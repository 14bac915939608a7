"""Every method of pruning: exact counts, one seed one mask, resumed anywhere, undone on errors."""

import pytest
import torch
from tiny_models import LENGTH, VOCABULARY, make

import qprune
from qprune.errors import ImpossibleRequestError
from qprune.network.groups import PerLayer

WINDOWS = torch.randint(VOCABULARY, (12, LENGTH), generator=torch.Generator().manual_seed(0))
ACROSS = qprune.Networkwise(
    stages=2, rounds=1, final_rounds=1, block_size=64, samples_per_step=6, accept_share=0.25
)
AFTER = qprune.Networkwise(
    start=None, rounds=1, final_rounds=1, block_size=64, samples_per_step=6, accept_share=0.25
)
METHODS = {
    "across the network": ACROSS,
    "layer by layer": qprune.Layerwise(),
    "one shot": qprune.Layerwise("wanda", shares=None),
    "sampled rows": qprune.Layerwise(
        qprune.SampledRows("swap-anneal", {"num_reads": 1, "num_sweeps": 2})
    ),
    "both": (qprune.Layerwise(), AFTER),
}
TARGETS = [r"re:.*_proj"]


def pruned(name, model=None, **options):
    model = model or make("llama")
    options = {"sparsity": 0.5, "targets": TARGETS, "seed": 3, "augment": None} | options
    options |= {"compensate": qprune.Distillation(4, final_steps=1)}
    return qprune.prune(model, WINDOWS, method=METHODS[name], **options)


def test_every_method_is_tried():
    public = [getattr(qprune, name) for name in qprune.__all__]
    found = {one for one in public if isinstance(one, type) and hasattr(one, "passing")}
    tried = {type(one) for one in METHODS.values() if not isinstance(one, tuple)}
    assert found - {qprune.Method} == tried


def digest(result):
    return {name: tensor.clone() for name, tensor in result.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "budget", [{}, {"budget": PerLayer()}, {"sparsity": None, "mask_structure": "2:4"}]
)
def test_counts_are_exact_and_pruned_weights_are_zero(name, budget):
    result = pruned(name, **budget)
    total = sum(kept.numel() for kept in result.mask.values())
    assert sum(int((~kept).sum()) for kept in result.mask.values()) == total // 2
    state = result.model.state_dict()
    assert all((state[n][~kept] == 0).all() for n, kept in result.mask.items())
    if "mask_structure" in budget:
        runs = torch.cat([kept.reshape(-1, 4) for kept in result.mask.values()])
        assert (runs.sum(1) == 2).all()
    if "budget" in budget:
        assert all(int((~kept).sum()) * 2 == kept.numel() for kept in result.mask.values())


@pytest.mark.parametrize("name", METHODS)
def test_one_seed_gives_one_mask(name):
    assert same(digest(pruned(name)), digest(pruned(name)))


@pytest.mark.parametrize("name", METHODS)
def test_a_run_resumed_anywhere_ends_in_the_same_bytes(name, tmp_path):
    whole = pruned(name)
    number = len(whole.report.steps)
    assert number > 1
    for stop in range(1, number + 1):
        folder, seen = tmp_path / str(stop), []
        limits = qprune.Limits(should_stop=lambda seen=seen, stop=stop: len(seen) >= stop)
        pruned(name, output_dir=folder, limits=limits, observe=seen.append)
        resumed = pruned(name, resume_from=folder)
        assert same(digest(whole), digest(resumed)), stop
        assert [step.kind for step in resumed.report.steps] == [
            step.kind for step in whole.report.steps
        ]


@pytest.mark.parametrize("name", METHODS)
def test_an_error_leaves_the_model_as_it_was(name):
    model = make("llama")
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}

    def fail(step):
        if step.index == 1:
            raise RuntimeError("from outside")

    model.train()
    with pytest.raises(RuntimeError, match="from outside"):
        pruned(name, model, observe=fail)
    assert same(before, model.state_dict())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", METHODS)
def test_layers_have_a_record_and_the_coverage_is_told(name):
    report = pruned(name).report
    assert len(report.layers) == 14
    assert report.coverage is not None
    assert report.coverage.targeted == sum(layer.num_weights for layer in report.layers)
    assert report.achieved_sparsity == 0.5


@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_is_refused_before_anything_is_touched(name):
    model = make("llama")
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    with pytest.raises(ImpossibleRequestError, match="sparsity"):
        pruned(name, model, sparsity=1.0)
    assert same(before, model.state_dict())
