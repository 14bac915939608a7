"""Kinds of weights: where outputs and inputs lie, what is targeted, what is said of the rest."""

import logging

import pytest
import torch
from torch import nn

import qprune
from qprune import Objective
from qprune.errors import ImpossibleRequestError, LeftDenseWarning
from qprune.models.evaluate import score
from qprune.moving.compensate import Compensation, DoubleBackward, ForwardMode, gauss_newton
from qprune.moving.distill import Distillation
from qprune.network.groups import NofM, PerRow
from qprune.network.layouts import InputsFirst, OutputsFirst, layout_of
from qprune.network.weights import find_weights
from qprune.objective.losses import DenseOutputs
from qprune.objective.trace.derivable import derivable
from qprune.objective.trace.recorder import Samples

METHOD = qprune.Networkwise(stages=1, rounds=1, final_rounds=1, block_size=8)
SHORT = {"method": METHOD, "augment": None}


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(OutputsFirst(), (4, 3, 2)), (InputsFirst(), (4, 3, 2)), (InputsFirst(2), (4, 3, 2))],
)
def test_back_is_the_inverse_of_matrix(layout, shape):
    tensor = torch.randn(shape)
    assert torch.equal(layout.back(layout.matrix(tensor), tensor.shape), tensor)
    assert layout_of(layout.input_groups) == layout


@pytest.mark.parametrize("groups", [1, 2])
def test_a_row_of_a_transposed_convolution_makes_one_channel(groups):
    """Zeroing row r changes channel r of the outputs, and no other."""
    conv = nn.ConvTranspose2d(4, 6, 2, groups=groups, bias=False)
    (layer,) = find_weights(conv)
    assert (layer.rows, layer.inputs) == (6, 4 // groups * 4)
    inputs = torch.randn(2, 4, 3, 3)
    before, ids = conv(inputs).detach(), layer.row_ids()
    for row in range(6):
        values = layer.parameter.detach().reshape(-1).clone()
        changed = nn.ConvTranspose2d(4, 6, 2, groups=groups, bias=False)
        changed.weight.data = values.masked_fill(ids == row, 0).view_as(conv.weight)
        moved = (changed(inputs) - before).abs().amax((0, 2, 3))
        assert torch.nonzero(moved > 1e-6)[:, 0].tolist() == [row]


def test_counts_by_row_and_runs_follow_the_layout():
    conv = nn.ConvTranspose1d(4, 3, 2, bias=False)
    layers = find_weights(conv)
    groups = PerRow().groups(layers, 0.5)
    assert groups.sizes.tolist() == [8, 8, 8]
    assert torch.equal(groups.ids.view(conv.weight.shape)[:, 1], torch.full((4, 2), 1))
    runs = NofM(2, 4).groups(layers, 0.5)
    assert runs.ids.bincount().tolist() == [4] * 6
    # A run holds consecutive inputs of one output.
    assert runs.ids.view(conv.weight.shape)[:2, 0].unique().tolist() == [0]


def test_n_of_m_means_nothing_to_an_embedding():
    layers = find_weights(nn.Embedding(8, 4), nn.Embedding)
    with pytest.raises(ImpossibleRequestError, match="no product sums over the inputs"):
        NofM(2, 4).groups(layers, 0.5)


def test_the_line_says_what_stays_dense(caplog):
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 3))
    ids = torch.randint(9, (40, 3), generator=torch.Generator().manual_seed(0))
    with (
        caplog.at_level(logging.INFO, logger="qprune"),
        pytest.warns(LeftDenseWarning, match=r"0\.weight \(36, an embedding\)") as told,
    ):
        report = qprune.prune(model, ids, sparsity=0.5, ignore="3", **SHORT).report
    assert "3.weight" not in str(told[0].message)
    line = "targets 60 of 119 parameters (50.4 %); left dense: 0.weight (36, an embedding), "
    assert line + "3.weight (15, in ignore), biases and other vectors (8)" in caplog.text
    assert [tensor.name for tensor in report.coverage.unasked] == ["0.weight"]
    assert report.achieved_sparsity == 0.5


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_where_all_is_asked_for():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5))
    ids = torch.randint(9, (40, 3), generator=torch.Generator().manual_seed(0))
    qprune.prune(model, ids, sparsity=0.5, targets=[nn.Embedding, "Linear"], **SHORT)
    assert int((model[0].weight == 0).sum() + (model[2].weight == 0).sum()) == 48


def test_zeros_that_were_there_are_told(caplog):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].weight.data[:6] = 0
    pruned = qprune.prune(model, torch.randn(40, 8), sparsity=0.25, compensate=False, **SHORT)
    assert "48 of 96 targeted weights (50 %) are zero already; that is more" in caplog.text
    assert pruned.report.zeros_before == 48
    zero = sum(int((m.weight == 0).sum()) for m in (model[0], model[2]))
    assert sum(layer.num_zero for layer in pruned.report.layers) == zero >= 48
    assert sum(layer.num_pruned for layer in pruned.report.layers) == 24


@pytest.mark.parametrize("score", [0.93, {"accuracy": 0.9}, (0.9, 0.1)])
def test_a_score_that_is_none_is_refused_before_the_run(score):
    model, steps = nn.Linear(8, 4), []
    with pytest.raises(ImpossibleRequestError, match=r"must return a qprune\.Score"):
        qprune.prune(
            model,
            torch.randn(40, 8),
            sparsity=0.5,
            evaluate=lambda m: score,
            observe=steps.append,
            **SHORT,
        )
    assert not steps
    assert not bool((model.weight == 0).any())


def test_double_backward_gives_the_products_of_forward_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    layers = find_weights(model)
    inputs = torch.randn(7, 6, dtype=torch.double)
    samples = Samples(inputs, model(inputs).detach() + 0.1)
    objective = Objective(model, layers, samples, DenseOutputs(), 4)
    vector = torch.randn(layers.size, dtype=torch.double)
    found = [
        gauss_newton(objective, derivatives)(vector)
        for derivatives in (ForwardMode(), DoubleBackward())
    ]
    torch.testing.assert_close(found[0], found[1])
    assert float(vector @ found[0]) > 0


class _Once(torch.autograd.Function):
    """Doubles; has a first derivative and no other."""

    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, delta):
        return 2 * delta


class _Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function

    def forward(self, x):
        return self.last(self.function(self.first(x)).tanh())


class _Twice(torch.autograd.Function):
    """Doubles; can be differentiated backwards as often as one likes."""

    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, delta):
        return 2 * delta


def test_what_a_network_lacks_decides_how_weights_move(caplog):
    inputs = torch.randn(5, 6)

    def suited(model):
        return Compensation().suited(model, find_weights(model), inputs)

    assert suited(_Wrapped(torch.relu)).derivatives == ForwardMode()
    assert suited(_Wrapped(_Twice.apply)).derivatives == DoubleBackward()
    assert suited(_Wrapped(_Once.apply)) is None
    with caplog.at_level(logging.INFO, logger="qprune"):
        model = _Wrapped(_Once.apply)
        steps = qprune.prune(model, torch.randn(40, 6), sparsity=0.5, **SHORT).report.steps
    assert "moving them by Distillation()" in caplog.text
    assert any(step.kind == "compensate" for step in steps)
    found = Distillation().suited(model, find_weights(model), inputs)
    assert found == Distillation(by_batch=False)


def test_switches_of_torch_are_put_back():
    from torch.utils import checkpoint

    fused, kind = torch.backends.mha.get_fastpath_enabled(), checkpoint.CheckpointFunction
    with derivable():
        assert not torch.backends.mha.get_fastpath_enabled()
        assert checkpoint.CheckpointFunction is not kind
    with pytest.raises(KeyError), derivable():
        raise KeyError
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert checkpoint.CheckpointFunction is kind


@pytest.mark.parametrize(
    "use",
    [
        find_weights,
        lambda model: score(model, torch.randn(4, 5), torch.tensor([0, 1, 2, 0])),
    ],
    ids=["found", "scored"],
)
def test_a_look_at_a_network_in_training_changes_nothing(use):
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6))
    model = nn.Sequential(normed, nn.Dropout(), nn.Linear(6, 3)).train()
    model[1].eval()  # Frozen by its owner.
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    use(model)
    assert [part.training for part in model.modules()][-2:] == [False, True]
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
