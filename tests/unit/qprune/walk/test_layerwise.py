"""Layer by layer: every architecture, exact counts, and the optimum that is promised."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import tiny_models

import qprune
from qprune import Layerwise, PerLayer, PerRow
from qprune.errors import (
    CalibrationError,
    ImpossibleRequestError,
    NonFiniteError,
    UnsupportedLayerError,
)
from qprune.steps.reconstruct import ROWS, Moments, OneShot, Reconstruct, quadratic

EVERY = pytest.mark.parametrize("name", tiny_models.MODELS)


def prune(model, **options):
    """Every layer at its own share, rounded by itself, if nothing else is asked."""
    rows, offload = options.pop("rows", "reconstruct"), options.pop("offload", "cpu")
    options = {"sparsity": 0.5, "batch_size": 4} | options
    if "mask_structure" not in options:
        options.setdefault("budget", PerLayer(alone=True))
    method = Layerwise(rows, shares=None, offload=offload)
    return qprune.prune(model, tiny_models.samples(model), method=method, **options)


def layers_of(pruned):
    """The record of every matrix, those of experts too."""
    return [layer for step in pruned.report.steps for layer in step.layers]


def inputs_of(model, samples, module):
    """What goes into one module, as (tokens, inputs) in float64."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(samples)
    handle.remove()
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).double()


@EVERY
def test_every_architecture_is_pruned_to_the_weight_and_nothing_else_changes(name):
    model = tiny_models.make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = prune(model)
    after = model.state_dict()
    assert pruned.report.achieved_sparsity == 0.5
    for key, value in after.items():
        if key in pruned.mask:
            assert torch.equal(value != 0, pruned.mask[key])
        else:
            assert torch.equal(value, before[key]), f"{key} is not a target"
    assert not any("embed" in key or "head" in key for key in pruned.mask)
    for layer in (*layers_of(pruned), *pruned.report.layers):
        assert layer.name
        assert layer.num_pruned * 2 == layer.num_weights


@EVERY
def test_outputs_suffer_less_than_by_magnitude(name):
    dense = tiny_models.make(name)
    samples = tiny_models.samples(dense)
    damage = {}
    for rows in ("magnitude", "reconstruct"):
        model = copy.deepcopy(dense)
        prune(model, rows=rows, sparsity=0.7)
        with torch.no_grad():
            damage[rows] = float((model(samples).logits - dense(samples).logits).norm())
    assert damage["reconstruct"] < 0.75 * damage["magnitude"]


#: Where the residual stream is read that a matrix adds to, by the ends of their names: the first
#: that fits.
STREAMS = {
    "llama": {"self_attn.o_proj": "", "mlp.down_proj": "post_attention_layernorm"},
    "gpt2": {"attn.c_proj": "", "mlp.c_proj": "ln_2"},
    "vit": {
        "attention.o_proj": "",
        "mlp.fc2": "layernorm_after",
        "attention.output.dense": "",  # before transformers 5
        "output.dense": "layernorm_after",
    },
    "gemma3": {},  # What it adds is normalized first.
}


@pytest.mark.parametrize("name", STREAMS)
def test_kept_values_are_the_optimum_against_the_dense_outputs(name):
    """On the support the gradient of |W X - W0 X0 - R|^2 + ridge |W - W0|^2 vanishes.

    X are the inputs of the finished network, X0 the dense one's, R what the residual stream lacks:
    so the streams, the grouping and the targets are all what they should be.
    """
    dense = tiny_models.make(name)
    model = copy.deepcopy(dense)
    samples = tiny_models.samples(model)
    pruned = prune(model)
    lacking = []
    for outcome in layers_of(pruned):
        module, original = (m.get_submodule(outcome.name) for m in (model, dense))
        x, x0 = inputs_of(model, samples, module), inputs_of(dense, samples, original)
        w, w0 = (m.weight.detach().double() for m in (module, original))
        if type(module).__name__ == "Conv1D":
            w, w0 = w.T, w0.T
        wanted = w0 @ x0.T
        for end, reader in STREAMS[name].items():
            if outcome.name.endswith(end):
                at = f"{outcome.name.removesuffix(end)}{reader}".removesuffix(".")
                now, then = (inputs_of(m, samples, m.get_submodule(at)) for m in (model, dense))
                wanted = wanted + (then - now).T
                lacking.append(outcome.name)
                break
        ridge = 0.01 * x.square().sum(0).mean()
        gradient = (w @ x.T - wanted) @ x + ridge * (w - w0)
        at_zero = -w0 @ x0.T @ x - ridge * w0
        assert gradient[w != 0].norm() < 1e-4 * at_zero.norm(), outcome.name
    assert len(lacking) == (4 if STREAMS[name] else 0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_targets_go_from_the_original_values_to_those_for_the_dense_inputs(share):
    rng = np.random.default_rng(0)
    dense, current = torch.as_tensor(rng.normal(size=(2, 90, 6)))
    weights = torch.as_tensor(rng.normal(size=(4, 6)))
    moments = Moments("layer", 6, torch.device("cpu"), with_dense=True)
    moments.add(current, dense)
    moments.close()
    targets = quadratic(moments, weights, 0.0, share).targets
    # Outputs of the targets on the current inputs are fitted to this blend of outputs.
    wanted = (share * dense + (1 - share) * current) @ weights.T
    best = torch.linalg.lstsq(current, wanted).solution.T
    torch.testing.assert_close(targets, best)


@pytest.mark.parametrize("compensate", [True, False])
def test_values_that_stay_follow_the_dense_outputs_half_way(compensate, monkeypatch):
    asked = []

    def seen(*arguments):
        asked.append(arguments[3])
        return quadratic(*arguments)

    monkeypatch.setattr("qprune.walk.layerwise.quadratic", seen)
    prune(tiny_models.make("llama"), compensate=compensate)
    assert set(asked) == {1.0 if compensate else 0.5}


@pytest.mark.parametrize(
    ("options", "run"),
    [
        ({"budget": PerLayer(alone=True)}, 16),
        ({"budget": PerRow(alone=True)}, 16),
        ({"sparsity": None, "mask_structure": "2:4"}, 4),
    ],
)
def test_no_swap_in_any_row_improves(options, run):
    """Brute force over all exchanges of a kept for a pruned weight, values refitted."""
    dense = tiny_models.make("llama")
    model = copy.deepcopy(dense)
    samples = tiny_models.samples(model)
    prune(
        model,
        targets=["re:.*[01]\\.self_attn.o_proj"],
        rows=Reconstruct(dense_targets=False),
        **options,
    )
    name = "model.layers.0.self_attn.o_proj"
    module, original = model.get_submodule(name), dense.get_submodule(name)
    x = inputs_of(model, samples, module).numpy()
    gram = x.T @ x
    gram += 0.01 * gram.diagonal().mean() * np.eye(len(gram))
    w0 = original.weight.detach().double().numpy()
    mask = module.weight.detach().numpy() != 0
    assert mask.shape[1] == 16

    def least(row, kept):
        pull = gram[kept] @ w0[row]
        return w0[row] @ gram @ w0[row] - pull @ np.linalg.solve(gram[np.ix_(kept, kept)], pull)

    for row in range(len(w0)):
        kept, out = np.flatnonzero(mask[row]), np.flatnonzero(~mask[row])
        here = least(row, kept)
        swaps = [(i, j) for i in kept for j in out if i // run == j // run]
        best = min(least(row, np.append(kept[kept != i], j)) for i, j in swaps)
        assert best >= here * (1 - 1e-6) - 1e-12


@pytest.mark.parametrize(("structure", "n"), [("2:4", 2), ("1:4", 1), ("4:8", 4)])
@pytest.mark.parametrize("rows", ["wanda", "sparsegpt", "reconstruct"])
@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_structures_count_along_the_inputs(name, rows, structure, n):
    model = tiny_models.make(name)
    pruned = prune(model, rows=rows, sparsity=None, mask_structure=structure)
    m = int(structure[-1])
    for key, mask in pruned.mask.items():
        along = mask.T if name == "gpt2" else mask
        runs = along.reshape(-1, m).sum(1)
        assert (runs == n).all(), key


def test_wanda_is_its_formula():
    dense = tiny_models.make("llama")
    model = copy.deepcopy(dense)
    samples = tiny_models.samples(model)
    pruned = prune(model, rows="wanda", budget=PerRow(alone=True))
    name = "model.layers.0.mlp.gate_proj"
    module = dense.get_submodule(name)
    scores = module.weight.detach().abs().double() * inputs_of(dense, samples, module).norm(dim=0)
    kept = scores.argsort(descending=True)[:, :8].sort().values
    found = pruned.mask[f"{name}.weight"].nonzero()[:, 1].view(-1, 8)
    assert torch.equal(found, kept)
    assert torch.equal(model.get_submodule(name).weight[0, found[0]], module.weight[0, found[0]])


@pytest.mark.parametrize("rows", ROWS)
def test_mask_only_leaves_kept_values(rows):
    dense = tiny_models.make("llama")
    model = copy.deepcopy(dense)
    pruned = prune(model, rows=rows, compensate=False)
    for key, mask in pruned.mask.items():
        assert torch.equal(model.get_parameter(key), dense.get_parameter(key) * mask)


def test_one_seed_one_mask_wherever_activations_wait(tmp_path):
    masks = [
        prune(tiny_models.make("gemma3"), offload=where).mask
        for where in ("cpu", tmp_path, "device")
    ]
    for key in masks[0]:
        assert torch.equal(masks[0][key], masks[1][key])
        assert torch.equal(masks[0][key], masks[2][key])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_dtype_and_lose_little_by_it(dtype):
    exact, rounded = tiny_models.make("llama"), tiny_models.make("llama").to(dtype)
    errors = [[o.error for o in layers_of(prune(m))] for m in (exact, rounded)]
    assert rounded.lm_head.weight.dtype == rounded.model.layers[0].mlp.up_proj.weight.dtype == dtype
    # One swap more or less is a tenth of so small a layer; all of them together are not.
    assert np.allclose(errors[0], errors[1], rtol=0.3)
    assert np.isclose(sum(errors[0]), sum(errors[1]), rtol=0.05)


def test_layers_may_have_sparsities_of_their_own():
    special = "model.layers.1.mlp.up_proj"
    pruned = prune(tiny_models.make("llama"), budget=PerLayer(sparsities={special: 0.25}))
    shares = {o.name: o.sparsity for o in pruned.report.layers}
    assert shares.pop(special) == 0.25
    assert set(shares.values()) == {0.5}
    assert pruned.report.asked_sparsity == pytest.approx(pruned.report.achieved_sparsity)


def test_an_expert_that_sees_no_token_goes_by_magnitude(caplog):
    model = tiny_models.make("mixtral-top-1")
    with torch.no_grad():  # The sign of one direction decides between experts 0 and 1.
        block = model.model.layers[0]
        gate = getattr(block, "mlp", None) or block.block_sparse_moe  # before transformers 5
        gate = gate.gate.weight
        gate.copy_(gate[:1] * torch.tensor([[1.0], [-1.0], [0.1], [0.2]]))
    original = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING, "qprune"):
        pruned = prune(model)
    unseen = [o for o in layers_of(pruned) if not o.tokens]
    assert len(unseen) >= 4
    assert all(outcome.name in caplog.text for outcome in unseen)
    by_size = copy.deepcopy(original)
    prune(by_size, rows=OneShot("magnitude"))
    for outcome in unseen:
        parameter, expert = outcome.name.rsplit(".", 1)
        where = (parameter, int(expert)) if expert.isdigit() else (f"{outcome.name}.weight", ...)
        found = pruned.mask[where[0]][where[1]]
        assert torch.equal(found, by_size.get_parameter(where[0])[where[1]] != 0)


def test_tied_weights_and_what_stays_dense_are_logged(caplog):
    with caplog.at_level(logging.INFO, "qprune"):
        prune(tiny_models.make("gpt2"))
    assert "lm_head.weight is tied to transformer.wte.weight" in caplog.text
    assert (
        "left dense: transformer.wte.weight (1,024, not a target inside the blocks), transf"
        in caplog.text
    )


def test_the_model_comes_back_as_it_went_in():
    model = tiny_models.make("llama").train()
    prune(model)
    assert model.training
    assert model.config.use_cache
    assert all("forward" not in vars(block) for block in model.model.layers)
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_activations_that_are_not_numbers_name_the_layer_and_undo_everything():
    model = tiny_models.make("llama")
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = float("inf")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"inputs of layer 'model\.layers\.1\.mlp\.gate_proj'"):
        prune(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": "sparse-gpt"}, ImpossibleRequestError, "no row method named .*; there are: m"),
        ({"sparsity": 1.0}, ImpossibleRequestError, r"must lie in \[0, 1\)"),
        ({"sparsity": 0.999}, ImpossibleRequestError, "would leave none of them"),
        ({"sparsity": None, "mask_structure": "2:5"}, ImpossibleRequestError, "multiple of 5"),
        ({"mask_structure": "1:4"}, ImpossibleRequestError, "means sparsity 0.75"),
        (
            {"budget": PerLayer(sparsities={"x": 0.1})},
            ImpossibleRequestError,
            "'x', which is not pruned",
        ),
        ({"targets": ["LlamaMLP"]}, UnsupportedLayerError, "is a LlamaMLP; layer by layer"),
        ({"targets": ["lm_head"]}, ImpossibleRequestError, "no weights to prune"),
        ({"ignore": ["Linear"]}, ImpossibleRequestError, "no weights to prune"),
        ({"offload": "/nowhere"}, ImpossibleRequestError, "there is no folder /nowhere"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(options, error, message):
    model = tiny_models.make("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        prune(model, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_models_that_cannot_be_pruned_are_refused():
    with pytest.raises(UnsupportedLayerError, match="has no repeated blocks"):
        qprune.prune(
            nn.Sequential(nn.Linear(3, 3)), torch.ones(2, 3), sparsity=0.5, method=Layerwise()
        )
    tied = tiny_models.make("llama")
    tied.model.layers[1].mlp.up_proj.weight = tied.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ImpossibleRequestError, match="are one tied tensor"):
        prune(tied)
    nan = tiny_models.make("llama")
    with torch.no_grad():
        nan.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj"):
        prune(nan)


def test_samples_that_the_model_does_not_take_are_named():
    model = tiny_models.make("gpt2")
    method = Layerwise(shares=None)
    with pytest.raises(CalibrationError, match=r"calibration batch 0 of shape \(1, 40\)"):
        qprune.prune(model, torch.zeros(2, 40).long(), sparsity=0.5, method=method)
