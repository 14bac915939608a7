"""The curvature of the loss at a matrix, and the budgets that follow."""

import copy
import math

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import tiny_language
import tiny_models

import qprune
from qprune.errors import ImpossibleRequestError
from qprune.network.transformer import block_weights
from qprune.objective.losses import DenseOutputs
from qprune.walk.sensitivity import Sensitivity, _at_one_price, _curve

LOSS = DenseOutputs(fit_scale=False)


@pytest.fixture(scope="module")
def model():
    return tiny_language.llama()


@pytest.fixture(scope="module")
def windows():
    return torch.randint(1, 28, (24, 16), generator=torch.Generator().manual_seed(0))


def test_curvature_foresees_the_loss_of_a_small_change(model, windows):
    """1/2 tr(G E A E') is the divergence, to second order, for errors of random directions."""
    weights = block_weights(model)
    ratios = []
    for number in (3, 6):
        felt = Sensitivity(num_samples=24, loss=LOSS).felt(model, weights, windows, 0)[number]
        weight = weights[number]
        noise = torch.randn(weight.rows, weight.inputs, generator=torch.Generator().manual_seed(1))
        change = 0.02 * float(weight.read().std()) * noise
        changed = copy.deepcopy(model)
        changed.get_parameter(weight.parameter_name).data += change
        with torch.no_grad():
            real = LOSS.per_sample(changed(windows).logits, model(windows).logits).mean()
        error = change.double()
        foreseen = 0.5 * ((felt.outputs / 24) @ error @ felt.inputs * error).sum()
        ratios.append(float(foreseen / real))
    assert all(0.5 < ratio < 2.0 for ratio in ratios), ratios


def test_large_matrices_are_seen_by_their_diagonals(model, windows):
    weights = block_weights(model)
    whole, diagonal = (
        Sensitivity(num_samples=4, loss=LOSS, largest=largest).felt(model, weights, windows, 0)
        for largest in (2048, 16)
    )
    for full, part in zip(whole, diagonal, strict=True):
        torch.testing.assert_close(part.outputs, full.outputs.diagonal(), rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(part.inputs, full.inputs.diagonal(), rtol=1e-5, atol=1e-12)
        assert part.coupling(0.9) is None
        mixed = full.coupling(0.9)
        assert float(mixed.diagonal().mean()) == pytest.approx(1.0)
        assert float(torch.linalg.eigvalsh(mixed).min()) >= 0.1 - 1e-6


def test_a_weight_is_worth_the_same_everywhere():
    """Of errors exp(a - b d), d the density, at one price between the edges of the band."""
    curves, sizes = [(0.0, 5.0), (1.0, 5.0), (0.0, 6.0), (-9.0, 2.0)], [100, 100, 300, 100]
    found = [1 - share for share in _at_one_price(curves, sizes, 0.5, 0.1, 0.9)]
    assert sum(d * n for d, n in zip(found, sizes, strict=True)) == pytest.approx(0.5 * sum(sizes))
    assert found[3] == pytest.approx(0.1)
    worth = [
        b * math.exp(a - b * d) / n
        for (a, b), n, d in zip(curves[:3], sizes, found, strict=False)
        if 0.1 < d < 0.899
    ]
    assert len(worth) >= 2
    assert max(worth) == pytest.approx(min(worth), rel=1e-3)


def as_felt(dense, samples, weight):
    """G and A of one matrix of the loss' gradient, token by token, by hooks and by formula."""
    model, inputs, outputs = copy.deepcopy(dense), [], []

    def see(_, args, output):
        inputs.append(args[0])
        outputs.append(output)

    model.get_submodule(weight.name).register_forward_hook(see)
    generator, g = torch.Generator().manual_seed(0), 0.0
    for sample in samples.split(1):
        sketch = LOSS.sketched(model(sample).logits, generator)
        (delta,) = torch.autograd.grad(sketch.sum(), outputs[-1])
        g = g + delta.flatten(0, -2).T.double() @ delta.flatten(0, -2).double()
    x = torch.cat([one.detach().flatten(0, -2) for one in inputs]).double()
    return g, x.T @ x / len(x)


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "opt"])
def test_curvature_is_that_of_outputs_and_inputs_however_a_weight_is_stored(name):
    model = tiny_models.make(name)
    samples, weights = tiny_models.samples(model, 3), block_weights(model)
    felt = Sensitivity(num_samples=3, loss=LOSS).felt(model, weights, samples, 0)
    for weight, one in zip(weights, felt, strict=True):
        g, a = as_felt(model, samples, weight)
        assert g.shape == (weight.rows, weight.rows)
        torch.testing.assert_close(one.outputs, g, rtol=1e-4, atol=1e-4 * float(g.abs().max()))
        torch.testing.assert_close(one.inputs, a, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
        assert one.tokens == 3 * (samples.shape[1] if samples.ndim == 2 else 5)


class Again(nn.Module):
    """Another use of a module that stands elsewhere."""

    def __init__(self, module):
        super().__init__()
        self.use = module.forward

    def forward(self, x):
        return self.use(x)


def test_a_matrix_used_twice_in_a_pass_counts_both_uses():
    model = tiny_models.make("llama")
    block = model.model.layers[1]
    block.mlp = nn.Sequential(block.mlp, Again(block.mlp))
    weights = block_weights(model)
    felt = Sensitivity(num_samples=2, loss=LOSS).felt(
        model, weights, tiny_models.samples(model, 2), 0
    )
    tokens = {weight.name: one.tokens for weight, one in zip(weights, felt, strict=True)}
    of_mlp = {name: number for name, number in tokens.items() if "1.mlp" in name}
    assert set(of_mlp.values()) == {2 * tokens["model.layers.0.mlp.up_proj"]}
    assert len(of_mlp) == 3


def test_matrices_of_one_input_may_be_seen_whole_and_by_diagonals():
    """Queries have 32 rows, keys and values 16, of the same input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny_models.llama(head_dim=16, num_key_value_heads=1).eval()
    weights = block_weights(model, "re:.*(q|k|v)_proj")
    budgets = [Sensitivity(num_samples=3, loss=LOSS, largest=n) for n in (2048, 16)]
    every, some = (b.felt(model, weights, tiny_models.samples(model, 3), 0) for b in budgets)
    for weight, whole, one in zip(weights, every, some, strict=True):
        assert one.whole == ("q_proj" not in weight.name)
        for found, full in ((one.outputs, whole.outputs), (one.inputs, whole.inputs)):
            expected = full if one.whole else full.diagonal()
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("moving", [True, False])
def test_experts_of_which_nothing_is_seen_get_the_common_sparsity(moving):
    model = tiny_models.make("mixtral")
    weights = block_weights(model)
    budgets = Sensitivity(num_samples=4, loss=LOSS)
    felt = budgets.felt(model, weights, tiny_models.samples(model), 0)
    shares = budgets.shares(weights, felt, 0.7, 0, moving=moving)
    unseen = {w.name for w, one in zip(weights, felt, strict=True) if not one.tokens}
    assert unseen == {weight.name for weight in weights if weight.routed}
    assert all((shares[weight.name] == 0.7) is (weight.name in unseen) for weight in weights)
    kept = sum((1 - shares[weight.name]) * weight.size for weight in weights)
    assert kept == pytest.approx(0.3 * weights.size, rel=0.01)


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize(
    ("asked", "largest", "band"), [(0.0, 99, 0.0), (0.6, 99, 0.6), (0.6, 16, 0.25)]
)
def test_shares_add_up_and_stay_in_the_band(model, windows, moving, asked, largest, band):
    """By scores, where matrices are seen by diagonals, it is narrower."""
    weights = block_weights(model)
    budgets = Sensitivity(band=asked, num_samples=8, loss=LOSS, largest=largest)
    felt = budgets.felt(model, weights, windows, 0)
    shares = budgets.shares(weights, felt, 0.7, 0, moving=moving)
    kept = sum((1 - shares[weight.name]) * weight.size for weight in weights)
    assert kept == pytest.approx(0.3 * weights.size, rel=0.01)
    assert all(0.3 * (1 - band) - 1e-6 <= 1 - s <= 0.3 * (1 + band) + 1e-6 for s in shares.values())
    assert band == 0.0 or len({round(share, 3) for share in shares.values()}) > 3


def test_budgets_are_those_of_values_as_the_run_leaves_them(model, windows):
    """Between two densities, errors with values moved, or held, as they are when pruned so."""
    weights = block_weights(model)
    felt = Sensitivity(num_samples=8, loss=LOSS).felt(model, weights, windows, 0)
    for number in (1, 5):
        weight, one = weights[number], felt[number]
        errors = {}
        for moving in (True, False):
            level, slope = _curve(weight, one, 0.9, 0.3, moving)
            errors[moving] = [math.exp(level - slope * density) for density in (0.2, 0.4)]
            assert errors[moving][1] < errors[moving][0]
        assert all(moved < held for moved, held in zip(*errors.values(), strict=True))


@pytest.mark.parametrize(("compensate", "share"), [(None, 0.9), (False, 0.95)])
def test_feeling_the_loss_leaves_less_of_it(model, windows, compensate, share):
    """Same counts in every layer, only weights of outputs differ; judged on other sequences."""
    unseen = torch.randint(1, 28, (24, 16), generator=torch.Generator().manual_seed(9))
    lost = {}
    for coupling in (0.0, 0.9):
        pruned = copy.deepcopy(model)
        shares = Sensitivity(band=0.0, num_samples=24, loss=LOSS, coupling=coupling)
        method = qprune.Layerwise(shares=shares, compensate=compensate)
        qprune.prune(pruned, windows, sparsity=0.7, method=method)
        with torch.no_grad():
            dense = model(unseen).logits
            lost[coupling] = float(LOSS.per_sample(pruned(unseen).logits, dense).mean())
    assert lost[0.9] < share * lost[0.0], lost


@pytest.mark.parametrize("rows", ["wanda", "sparsegpt"])
def test_methods_that_go_row_by_row_get_the_budgets_alone(rows):
    model = tiny_models.make("llama")
    method = qprune.Layerwise(rows, shares=Sensitivity(num_samples=4))
    report = qprune.prune(model, tiny_models.samples(model), sparsity=0.5, method=method).report
    assert report.achieved_sparsity == 0.5
    assert len({layer.sparsity for layer in report.layers}) > 2


def test_a_coupling_that_makes_no_sense():
    with pytest.raises(ImpossibleRequestError, match="coupling must lie"):
        Sensitivity(coupling=1.5)


@pytest.mark.parametrize(("rows", "asked"), [("wanda", 0), ("reconstruct", 1)])
def test_nothing_is_felt_where_counts_are_fixed_and_rows_alone(
    model, windows, monkeypatch, rows, asked
):
    calls = []

    def felt(self, *given):
        calls.append(given)
        return measured(self, *given)

    measured = Sensitivity.felt
    monkeypatch.setattr(Sensitivity, "felt", felt)
    method = qprune.Layerwise(rows=rows, shares=Sensitivity(num_samples=2))
    given = {"method": method, "budget": qprune.PerLayer(alone=True), "compensate": False}
    qprune.prune(copy.deepcopy(model), windows, sparsity=0.5, loss=LOSS, **given)
    assert len(calls) == asked
