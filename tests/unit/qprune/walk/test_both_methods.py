"""Across the network: stage 1 as a start, distillation, block moves, the model's own text."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import tiny_language

import qprune
from qprune import Layerwise, Networkwise
from qprune.data.augment import OwnText
from qprune.errors import CalibrationError, ImpossibleRequestError, NonFiniteError
from qprune.moving.distill import Distillation
from qprune.network.weights import find_weights
from qprune.objective.losses import DenseOutputs
from qprune.objective.samples import DenseNetwork
from qprune.objective.trace.recorder import Samples, mean_loss, outputs_of
from qprune.walk.sensitivity import Sensitivity

LOSS = DenseOutputs(fit_scale=False)
ACROSS = Networkwise(
    start=None,
    block_size=64,
    num_blocks=2,
    damping=300.0,
    samples_per_step=64,
    accept_share=0.125,
)


@pytest.fixture
def model():
    return tiny_language.llama()


@pytest.fixture
def windows():
    return torch.randint(1, 28, (24, 16), generator=torch.Generator().manual_seed(0))


def prune(model, windows, *, steps=8, rounds=1, compensate=True, augment=False, **options):
    """Layer by layer, then rounds of blocks across the network and a distillation."""
    model = copy.deepcopy(model)
    layerwise = Layerwise(shares=Sensitivity(loss=LOSS), compensate=compensate)
    across = replace(ACROSS, rounds=rounds, final_rounds=rounds)
    return qprune.prune(
        model,
        windows,
        sparsity=None if "mask_structure" in options else 0.7,
        method=(layerwise, across),
        loss=LOSS,
        compensate=Distillation(steps, final_steps=1, at_end=True)
        if steps and compensate
        else False,
        augment=OwnText(model, copies=2, prefix=4) if augment else None,
        **options,
    )


def second_stage(pruned):
    """The steps across the network."""
    return [step for step in pruned.report.steps if step.kind != "block"]


def test_stage_2_never_raises_the_loss_on_held_out_sequences_and_keeps_the_count(model, windows):
    pruned = prune(model, windows, rounds=2, augment=True)
    first, *later = second_stage(pruned)
    assert first.kind == "start"
    assert {step.kind for step in later} == {"compensate", "blocks"}
    loss = first.loss
    for step in later:
        assert step.loss <= loss
        assert (step.real < 0) == step.accepted
        loss = step.loss
    assert loss < 0.97 * first.loss
    zeros = sum(int((pruned.model.get_parameter(n) == 0).sum()) for n in pruned.mask)
    size = sum(kept.numel() for kept in pruned.mask.values())
    assert zeros == round(0.7 * size) == size - sum(int(k.sum()) for k in pruned.mask.values())


def test_one_seed_one_mask_whatever_the_workers(model, windows):
    from concurrent.futures import ThreadPoolExecutor

    one = prune(model, windows, augment=True)
    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(2) as executor:
        again = prune(model, windows, augment=True, executor=executor)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name)), name
    other = prune(model, windows, augment=True, seed=1)
    assert any(not torch.equal(one.mask[name], other.mask[name]) for name in one.mask)


def test_a_structure_holds_in_every_run_of_inputs(model, windows):
    pruned = prune(model, windows, mask_structure="2:4")
    for name in pruned.mask:
        runs = pruned.model.get_parameter(name).unflatten(1, (-1, 4))
        assert ((runs != 0).sum(-1) <= 2).all(), name
    assert pruned.report.achieved_sparsity == 0.5


def test_masks_alone_leave_kept_values_as_they_were(model, windows):
    pruned = prune(model, windows, compensate=False, rounds=3)
    for name, kept in pruned.mask.items():
        assert torch.equal(pruned.model.get_parameter(name), model.get_parameter(name) * kept)
    assert any(step.kind == "blocks" and step.accepted for step in pruned.report.steps)


def test_without_stage_2_it_is_stage_1_at_the_layer_budgets(model, windows):
    pruned = prune(model, windows, steps=0, rounds=0)
    assert [step.kind for step in pruned.report.steps] == ["block", "block", "start"]
    shares = {layer.name: layer.sparsity for layer in pruned.report.layers}
    density = 0.3
    assert len({round(share, 2) for share in shares.values()}) > 1
    assert all(0.39 * density < 1 - share < 1.61 * density for share in shares.values())
    assert pruned.report.achieved_sparsity == pytest.approx(0.7, abs=1e-4)


def test_the_time_limit_ends_it_at_the_asked_sparsity(model, windows):
    pruned = prune(model, windows, limits=qprune.Limits(max_seconds=0.0), steps=10_000)
    assert pruned.report.stopped == "max_seconds"
    assert pruned.report.achieved_sparsity == pytest.approx(0.7, abs=1e-4)


def test_a_method_that_goes_on_has_one_stage_and_something_to_go_on_from(model, windows):
    with pytest.raises(ImpossibleRequestError, match="one stage"):
        Networkwise(start=None, stages=3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ImpossibleRequestError, match="without a start"):
        qprune.prune(model, windows, sparsity=0.55, method=ACROSS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("budget", ["layer", "row"])
def test_counts_of_a_budget_hold_through_both_stages(budget, model, windows):
    pruned = prune(model, windows, budget=budget, rounds=2)
    assert {step.kind for step in pruned.report.steps} == {"block", "start", "blocks", "compensate"}
    for name, kept in pruned.mask.items():
        rows = kept if budget == "row" else kept.reshape(1, -1)
        counts = rows.sum(1).double() / rows.shape[1]
        assert ((counts - 0.3).abs() * rows.shape[1] <= 1).all(), name
        assert torch.equal(pruned.model.get_parameter(name) != 0, kept), name


def test_layers_stored_inputs_first_go_through_both_stages(windows):
    """GPT-2's Conv1D: no matrix is left out, and stage 2 improves what stage 1 made."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=28, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    torch.manual_seed(0)
    gpt2 = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in gpt2.transformer.h.parameters():
            parameter.mul_(10)
    names = {n for n, m in gpt2.named_modules() if type(m).__name__ == "Conv1D"}
    pruned = prune(gpt2, windows, rounds=2, mask_structure="2:4")
    assert set(pruned.mask) == {f"{name}.weight" for name in names}
    assert {name: type(pruned.model.get_submodule(name)).__name__ for name in names} == (
        dict.fromkeys(names, "Conv1D")
    )
    for name, kept in pruned.mask.items():
        assert torch.equal(pruned.model.get_parameter(name) != 0, kept), name
        assert (kept.T.reshape(-1, 4).sum(1) == 2).all(), name
    first, *later = second_stage(pruned)
    assert later[-1].loss < first.loss
    moved = [step for step in later if step.accepted]
    assert {step.kind for step in moved} >= {"compensate"}


def test_own_text_follows_the_model_and_begins_with_the_calibration(model, windows):
    generator = torch.Generator().manual_seed(0)
    written = OwnText(model, copies=3, prefix=4)(windows, generator)
    assert written.shape == (72, 16)
    assert written.dtype == windows.dtype
    pieces = {tuple(piece.tolist()) for piece in windows.unfold(1, 4, 1).flatten(0, 1)}
    assert all(tuple(row[:4].tolist()) in pieces for row in written)
    with torch.no_grad():
        logs = model(written).logits.log_softmax(-1)

    def likelihood(tokens):
        return logs[:, 3:-1].gather(-1, tokens[:, 4:, None]).mean().item()

    entropy = -(logs[:, 3:-1].exp() * logs[:, 3:-1]).sum(-1).mean().item()
    assert likelihood(written) == pytest.approx(-entropy, abs=0.25)
    assert likelihood(written.roll(1, 0)) < likelihood(written) - 0.5


def test_own_text_ends_when_it_is_enough_with_whole_sequences(model, windows):
    left = iter([False] * 15 + [True])
    text = OwnText(model, copies=3, prefix=4, enough=lambda: next(left))
    assert text(windows, torch.Generator().manual_seed(0)).shape == (24, 16)


def test_own_text_needs_tokens_and_a_model_that_writes(model, windows):
    generator = torch.Generator()
    for inputs in (torch.randn(4, 8), windows[:, :1], windows[0]):
        with pytest.raises(CalibrationError, match="goes on from token ids"):
            OwnText(model)(inputs, generator)
    with pytest.raises(CalibrationError, match="Embedding cannot write text"):
        OwnText(nn.Embedding(28, 4))(windows, generator)


def test_dense_outputs_that_are_not_kept_come_from_a_copy_of_the_dense_network(model, windows):
    dense = outputs_of(model, windows, 4)
    few = DenseNetwork(model, dense[0].numel(), 4).answers(windows)
    many = DenseNetwork(model, 1 << 26, 4).answers(windows)
    assert isinstance(few, torch.Tensor)
    assert not isinstance(many, torch.Tensor)
    samples = Samples(windows, many)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert mean_loss(model, samples, DenseOutputs(), 4) > 0.01
    torch.testing.assert_close(samples.take(torch.tensor([3, 5])).targets, dense[[3, 5]])
    for batch, start in zip(samples.batches(10), (0, 10, 20), strict=True):
        torch.testing.assert_close(batch.targets, dense[start : start + 10])


def test_distillation_moves_kept_weights_only_and_lowers_the_loss(model, windows):
    samples = Samples(windows, outputs_of(model, windows, 8))
    layers = find_weights(model, ["re:.*_proj"])
    kept = torch.rand(layers.size, generator=torch.Generator().manual_seed(0)) < 0.5
    pruned = layers.read() * kept
    layers.write(pruned)
    loss = DenseOutputs()
    before = mean_loss(model, samples, loss, 8)
    distillation = Distillation(steps=20, samples_per_step=8, candidates=4)
    objective = qprune.Objective(model, layers, samples, loss, 3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for move in distillation.moves(objective, kept, generator):
        assert not move[~kept].any()
        layers.write(pruned + move)
        losses.append(mean_loss(model, samples, loss, 8))
        layers.write(torch.zeros_like(pruned))  # The next candidate must not depend on it.
    assert len(losses) == 4
    assert losses[-1] < 0.8 * before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: Distillation(steps=0), "steps of Distillation"),
        (lambda m: Distillation(rate=0.0), "rate must be positive"),
        (lambda m: OwnText(m, copies=-1), "copies"),
        (lambda m: OwnText(m, prefix=0), "prefix"),
        (lambda m: Sensitivity(band=1.0), "band"),
        (lambda m: Sensitivity(num_samples=0), "num_samples"),
    ],
)
def test_options_that_make_no_sense(model, make, words):
    with pytest.raises(ImpossibleRequestError, match=words):
        make(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_gain_by_distillation_too(model, windows, dtype):
    pruned = prune(model.to(dtype), windows, steps=24, augment=True)
    assert {p.dtype for p in pruned.model.parameters()} == {dtype}
    first, *_, last = second_stage(pruned)
    assert last.kind == "compensate"
    assert last.accepted
    assert last.loss < 0.98 * first.loss
    for name, kept in pruned.mask.items():
        assert not pruned.model.get_parameter(name)[~kept].any()


def test_activations_that_are_not_numbers_name_the_layer(model, windows):
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = float("inf")
    with pytest.raises(NonFiniteError, match=r"inputs of layer 'model\.layers\.1\.mlp\.gate_proj'"):
        prune(model, windows)


def test_a_data_loader_of_mappings_is_calibration_text(model, windows):
    loader = torch.utils.data.DataLoader([{"input_ids": row, "labels": row} for row in windows], 5)
    names = prune(model, windows, steps=0, rounds=0).mask
    again = prune(model, loader, steps=0, rounds=0).mask
    assert all(torch.equal(names[name], again[name]) for name in names)
