"""What `prune` returns: exact counts, untouched values, budgets kept, one seed one mask."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from small_networks import mlp
from torch import nn
from torch.nn import functional

import qprune
from qprune import Limits
from qprune.errors import LeftDenseWarning, QpruneError
from qprune.network.groups import BUDGETS
from qprune.results import Score
from qprune.steps.start import STARTS

SHORT = qprune.Networkwise(stages=2, rounds=1, block_size=32)
FIRST_PASS = replace(SHORT, stages=1, rounds=0)
QUICK = {"method": SHORT, "sampler": "greedy", "augment": None}


class Convolutions(nn.Module):
    """Strided, grouped and depthwise, batch norms around them, activations in place."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, groups=2, padding="same"),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.BatchNorm2d(8),
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(functional.relu_(self.body(x)).mean((-2, -1)))


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 12)
        self.head = nn.Linear(12, 11)

    def forward(self, ids):
        before = functional.pad(self.embed(ids), (0, 0, 1, 0))[:, :-1]
        return self.head(torch.relu(self.mix(self.embed(ids) + before)))


def inputs_of(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def zeros_of(model, pruned):
    """Zero weights, counted in the model itself; masks agree with them."""
    state = model.state_dict()
    for name, mask in pruned.mask.items():
        assert mask.shape == state[name].shape
        assert (state[name][~mask] == 0).all()
    return sum(int((state[name] == 0).sum()) for name in pruned.mask)


@pytest.fixture(scope="module")
def trained():
    """A classifier of four clouds, trained to tell them apart; (model state, inputs, labels)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (240,), generator=generator)
    centres = 1.3 * torch.randn(4, 10, generator=generator)
    inputs = centres[labels] + torch.randn(240, 10, generator=generator)
    model = mlp()
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.state_dict(), inputs, labels


def copy_of(trained):
    model = mlp()
    model.load_state_dict(trained[0])
    return model


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.333, 0.9, 0.97])
@pytest.mark.parametrize("compensate", [True, False])
def test_achieved_is_asked(sparsity, compensate):
    model = mlp()
    pruned = qprune.prune(
        model, inputs_of(40, 10), sparsity=sparsity, compensate=compensate, **QUICK
    )
    number = round(sparsity * 168)
    assert sum(int((~mask).sum()) for mask in pruned.mask.values()) == number
    assert zeros_of(model, pruned) == number
    assert pruned.report.achieved_sparsity == pytest.approx(number / 168, abs=1e-12)
    assert sum(layer.num_pruned for layer in pruned.report.layers) == number


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("start", STARTS)
def test_budgets_and_starts(budget, start):
    model = mlp()
    options = QUICK | {"method": replace(SHORT, start=start)}
    pruned = qprune.prune(model, inputs_of(40, 10), sparsity=0.5, budget=budget, **options)
    assert zeros_of(model, pruned) == 84
    masks = list(pruned.mask.values())
    if budget != "global":
        assert [int(m.sum()) for m in masks] == [60, 24]
    if budget == "row":
        assert all((m.sum(1) == m.shape[1] // 2).all() for m in masks)


@pytest.mark.parametrize("structure", ["1:2", "2:4", "1:4"])
def test_structures(structure):
    n, m = map(int, structure.split(":"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    pruned = qprune.prune(model, inputs_of(40, 8), mask_structure=structure, **QUICK)
    for mask in pruned.mask.values():
        assert (mask.reshape(-1, m).sum(1) == n).all()
    assert pruned.report.achieved_sparsity == 1 - n / m


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_weights_keep_their_bits(dtype, trained):
    model = copy_of(trained).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = QUICK | {"method": replace(SHORT, rounds=3)}
    pruned = qprune.prune(model, trained[1].to(dtype), sparsity=0.7, compensate=False, **options)
    restored = sum(step.flips for step in pruned.report.steps if step.kind == "blocks")
    assert restored > 0
    for name, tensor in model.state_dict().items():
        kept = pruned.mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor, torch.where(kept, before[name], 0.0)), name


def test_double_precision_compensated(trained):
    model = copy_of(trained).double()
    pruned = qprune.prune(model, trained[1].double(), sparsity=0.7, **QUICK)
    assert zeros_of(model, pruned) == round(0.7 * 168)


def test_weights_stored_channels_last():
    torch.manual_seed(0)
    model = Convolutions().eval()
    inputs = inputs_of(40, 1, 8, 8)
    plain = qprune.prune(model, inputs, sparsity=0.6, compensate=False, **QUICK)
    torch.manual_seed(0)
    model = Convolutions().eval().to(memory_format=torch.channels_last)
    last = qprune.prune(model, inputs, sparsity=0.6, compensate=False, **QUICK)
    assert zeros_of(model, last) == zeros_of(plain.model, plain)
    agreeing = [(last.mask[name] == plain.mask[name]).float().mean() for name in plain.mask]
    assert min(agreeing) > 0.9


@pytest.mark.parametrize("compensate", [True, False])
def test_convolutions_end_to_end(compensate):
    torch.manual_seed(0)
    model = Convolutions()
    norm = model.body[1].running_mean.clone()
    pruned = qprune.prune(
        model, inputs_of(60, 1, 8, 8), sparsity=0.6, compensate=compensate, **QUICK
    )
    assert zeros_of(model, pruned) == round(0.6 * sum(m.numel() for m in pruned.mask.values()))
    assert torch.equal(model.body[1].running_mean, norm)
    assert model.training
    assert {step.kind for step in pruned.report.steps} >= {"start", "blocks"}


@pytest.mark.parametrize("compensate", [True, False])
def test_tokens_end_to_end(compensate):
    torch.manual_seed(0)
    model = Language()
    ids = torch.randint(0, 11, (50, 7), generator=torch.Generator().manual_seed(0))
    embedding = model.embed.weight.detach().clone()
    pruned = qprune.prune(model, ids, sparsity=0.5, compensate=compensate, **QUICK)
    assert set(pruned.mask) == {"mix.weight", "head.weight"}
    assert zeros_of(model, pruned) == 114
    assert torch.equal(model.embed.weight, embedding)


def test_labels_of_tokens():
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (50, 7))
    loss = qprune.Labels()
    pruned = qprune.prune(Language(), (ids, ids.roll(-1, 1)), sparsity=0.5, loss=loss, **QUICK)
    assert pruned.report.achieved_sparsity == 0.5


def same(a, b):
    return all(torch.equal(a.mask[name], b.mask[name]) for name in a.mask)


def test_one_seed_one_mask(trained):
    options = QUICK | {"sparsity": 0.7, "method": replace(SHORT, num_blocks=2)}

    def run(seed, executor=None):
        return qprune.prune(copy_of(trained), trained[1], seed=seed, executor=executor, **options)

    first = run(1)
    assert same(first, run(1))
    assert not same(first, run(2))
    with ThreadPoolExecutor(2) as executor:
        threaded = run(1, executor)
    assert same(first, threaded)
    assert torch.equal(first.model[0].weight, threaded.model[0].weight)


def test_batches_hardly_matter(trained):
    """Sums are rounded differently, no more."""
    losses = []
    for batch_size in (None, 50, 7):
        pruned = qprune.prune(
            copy_of(trained),
            trained[1],
            sparsity=0.7,
            compensate=False,
            batch_size=batch_size,
            **QUICK,
        )
        losses.append(pruned.report.steps[-1].loss)
    assert max(losses) < 1.2 * min(losses) + 0.005


def test_the_first_pass_alone(trained):
    model = copy_of(trained)
    options = QUICK | {"method": replace(FIRST_PASS, start="magnitude")}
    pruned = qprune.prune(model, trained[1], sparsity=0.6, compensate=False, **options)
    weights = torch.cat([trained[0][name].flatten() for name in pruned.mask])
    wanted = weights.abs().argsort(stable=True)[: round(0.6 * 168)]
    mask = torch.cat([mask.flatten() for mask in pruned.mask.values()])
    assert torch.equal(torch.nonzero(~mask)[:, 0], wanted.sort().values)
    assert [step.kind for step in pruned.report.steps] == ["start"]


def test_the_report_has_the_first_pass_beside_the_result(trained):
    _, inputs, labels = trained

    def evaluate(model):
        with torch.no_grad():
            outputs = model(inputs)
        loss = functional.cross_entropy(outputs, labels).item()
        return Score((outputs.argmax(1) == labels).float().mean().item(), loss)

    options = {"sparsity": 0.8, "compensate": False, **QUICK}
    alone = {"method": FIRST_PASS}
    report = qprune.prune(copy_of(trained), inputs, evaluate=evaluate, **options).report
    first = qprune.prune(copy_of(trained), inputs, evaluate=evaluate, **options | alone).report
    assert report.dense == evaluate(copy_of(trained)) == first.dense
    assert report.start == first.start == first.final


def test_the_first_pass_is_beaten(trained):
    """The point of it all, on samples that no run saw at the same sparsity."""
    _, inputs, _ = trained
    loss = qprune.DenseOutputs()
    longer = replace(SHORT, stages=4, rounds=3)
    with torch.no_grad():
        dense = copy_of(trained)(inputs)

    def divergence(**options):
        model = copy_of(trained)
        settings = {**QUICK, "sampler": "relax", "method": longer} | options
        qprune.prune(model, inputs[:160], sparsity=0.8, **settings)
        with torch.no_grad():
            outputs = model(inputs)
        fitted = loss.refit(outputs, dense)
        return fitted.per_sample(outputs, dense)[160:].mean().item()

    first = divergence(method=FIRST_PASS, compensate=False)
    masks = divergence(compensate=False)
    moved = divergence(compensate=True)
    assert masks < 0.8 * first
    assert moved < 0.8 * first


@pytest.mark.parametrize("compensate", [True, False])
@pytest.mark.parametrize("limit", [{"max_seconds": 0}, *({"max_steps": k} for k in (0, 1, 4, 9))])
def test_budgets_of_time_and_steps(limit, compensate, trained):
    model = copy_of(trained)
    options = QUICK | {"method": replace(SHORT, stages=4, rounds=2), "limits": Limits(**limit)}
    pruned = qprune.prune(model, trained[1], sparsity=0.75, compensate=compensate, **options)
    report = pruned.report
    assert zeros_of(model, pruned) == round(0.75 * 168)
    assert report.stopped == next(iter(limit))
    # Reaching the asked sparsity takes one step of its own.
    assert len(report.steps) <= limit.get("max_steps", 0) + 1
    assert report.steps[-1].sparsity == pytest.approx(report.achieved_sparsity)


def test_a_run_that_ends_by_itself_is_done(trained):
    limits = Limits(max_seconds=600, max_steps=10_000)
    report = qprune.prune(copy_of(trained), trained[1], sparsity=0.5, limits=limits, **QUICK).report
    assert report.stopped == "done"
    assert report.num_accepted == sum(step.accepted for step in report.steps)


def test_steps_are_what_they_say(trained):
    seen = []
    model = copy_of(trained)
    pruned = qprune.prune(
        model, trained[1], sparsity=0.75, compensate=False, observe=[seen.append], **QUICK
    )
    report = pruned.report
    assert tuple(seen) == report.steps
    assert [step.index for step in seen] == list(range(len(seen)))
    for step in seen:
        if step.kind == "blocks":
            promised = sum(block.predicted for block in step.blocks)
            assert step.predicted == pytest.approx(promised)
            assert all(b.lower_bound <= b.predicted + 1e-9 for b in step.blocks)
            assert not step.accepted or step.real < 0
            assert all(sum(b.layers.values()) == b.num_variables <= 32 for b in step.blocks)
    report.to_json()


def test_layers_that_the_data_never_reach(trained):
    class WithSpare(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body, self.spare = body, nn.Linear(10, 10)

        def forward(self, x):
            return self.body(x)

    model = WithSpare(copy_of(trained))
    with pytest.warns(LeftDenseWarning, match=r"spare\.weight \(100, not used in the forward pass"):
        pruned = qprune.prune(model, trained[1], sparsity=0.5, **QUICK)
    # What nothing depends on is not worthless: another input may reach it.
    assert "spare.weight" not in pruned.mask
    assert [(t.name, t.size) for t in pruned.report.coverage.unasked] == [("spare.weight", 100)]
    total = sum(kept.numel() for kept in pruned.mask.values())
    assert sum(int((~kept).sum()) for kept in pruned.mask.values()) == round(0.5 * total)


def test_defaults_suit_a_small_model():
    model = nn.Linear(8, 4)
    method = qprune.Networkwise(stages=2)
    pruned = qprune.prune(model, inputs_of(64, 8), sparsity=0.5, method=method, sampler="greedy")
    assert int((model.weight == 0).sum()) == 16
    assert pruned.model is model


def test_errors_are_of_one_tree():
    with pytest.raises(QpruneError):
        qprune.prune(nn.Linear(8, 4), inputs_of(64, 8), sparsity=2.0)
