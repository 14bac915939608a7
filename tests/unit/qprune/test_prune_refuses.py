"""What `prune` refuses, in one line, and that it leaves the model exactly as it was."""

import random
from functools import partial
from typing import ClassVar

import dimod
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import qprune
from qprune import Calibration, Labels, Limits, PerSample
from qprune.errors import (
    CalibrationError,
    ImpossibleRequestError,
    NonFiniteError,
    QpruneError,
    SamplerError,
    UnsupportedLayerError,
)
from solvers import Solution
from solvers.errors import SolverError, UnknownOptionError, UnknownSamplerError

SHORT = {"stages": 2, "rounds": 1, "block_size": 16}
QUICK = {
    "sparsity": 0.5,
    "method": qprune.Networkwise(**SHORT),
    "sampler": "greedy",
    "augment": None,
    "compensate": False,
}


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (2, 3, 3)),
        nn.Conv2d(2, 4, 2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    model[2].running_mean.normal_()
    model.train()
    model[5].eval()
    model[1].bias.requires_grad_(False)
    return model


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 18, generator=generator)
    return Calibration(inputs, torch.randint(0, 5, (40,), generator=generator))


class Untouched:
    """Everything that a failed run may not change."""

    def __init__(self, model):
        self.model, self.before = model, self._now(model)

    @staticmethod
    def _now(model):
        return {
            "tensors": {k: v.clone() for k, v in model.state_dict().items()},
            "modes": [m.training for m in model.modules()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "gradients": [p.grad is None for p in model.parameters()],
            "hooks": [len(m._forward_hooks) for m in model.modules()],
            "random": (
                random.getstate(),
                torch.random.get_rng_state().tolist(),
                [np.array(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
            ),
        }

    def check(self, *, but=()):
        now = self._now(self.model)
        for what, value in self.before.items():
            if what == "tensors":
                for name, tensor in value.items():
                    assert name in but or torch.equal(now[what][name], tensor), name
            else:
                assert now[what] == value, what


def refused(model, data, error, **options):
    """The message of the error that pruning raises; the model is as it was."""
    untouched = Untouched(model)
    with pytest.raises(error) as caught:
        qprune.prune(model, data, **QUICK | {k: made(v) for k, v in options.items()})
    untouched.check()
    message = str(caught.value)
    assert "\n" not in message.strip()
    assert isinstance(caught.value, QpruneError | SolverError | RuntimeError | KeyError)
    return message


def short(**changes):
    """The method with some fields changed; it refuses some by itself, so it is made late."""
    return {"method": partial(qprune.Networkwise, **SHORT | changes)}


def made(value):
    return value() if isinstance(value, partial) else value


REQUESTS = {
    "sparsity of one": ({"sparsity": 1.0}, r"[0, 1)"),
    "negative sparsity": ({"sparsity": -0.1}, r"[0, 1)"),
    "sparsity not a number": ({"sparsity": float("nan")}, r"[0, 1)"),
    "sparsity in words": ({"sparsity": "half"}, r"[0, 1)"),
    "no sparsity": ({"sparsity": None}, "say how sparse"),
    "sparsity and density": ({"density": 0.5}, "density"),
    "nothing left": ({"sparsity": 0.999}, "none of them"),
    "large block": (short(block_size=10_000), "block_size 10000 is more than the model's 112"),
    "small block": (short(block_size=1), "block_size must be a whole number from 2"),
    "layer too small": ({"sparsity": 0.99, "budget": "layer"}, "layer '1'"),
    "row too small": ({"sparsity": 0.95, "budget": "row"}, "row of layer '1'"),
    "structure that does not divide": (
        {"sparsity": None, "mask_structure": "3:5"},
        "layer '1' has 8 inputs per output, not a multiple of 5",
    ),
    "structure misread": ({"mask_structure": "2-4"}, "N:M"),
    "structure of another sparsity": ({"mask_structure": "1:4"}, "0.75"),
    "no targets": ({"targets": ("Conv3d",)}, "matches nothing in the model; the nearest names are"),
    "a misspelt ignore": ({"ignore": "con"}, "ignore='con' matches nothing"),
    "no expression": ({"targets": "re:("}, "no regular expression"),
    "all ignored": ({"ignore": ("Linear", "re:1")}, "no weights to prune"),
    "unknown start": (short(start="best"), "magnitude"),
    "unknown curvature": (short(curvature="flat"), "fisher"),
    "unknown budget": ({"budget": "rows"}, "global"),
    "unknown augmentation": ({"augment": "more"}, "augment must be"),
    "no stages": (short(stages=0), "stages must be a whole number from 1 to 1,000,000, not 0"),
    "half a round": (short(rounds=0.5), "rounds must be a whole number"),
    "no time at all": (
        {"limits": partial(Limits, max_seconds=-1.0)},
        "max_seconds must be at least 0",
    ),
    "negative seed": ({"seed": -1}, "seed must be a whole number from 0"),
    "all to accept on": (short(accept_share=1.0), "accept_share"),
}


@pytest.mark.parametrize(("options", "reason"), REQUESTS.values(), ids=REQUESTS)
def test_requests(model, data, options, reason):
    assert reason in refused(model, data, ImpossibleRequestError, **options)


def test_targets_that_cannot_be_pruned(model, data):
    message = refused(model, data, UnsupportedLayerError, targets=("BatchNorm2d",))
    assert "target 'BatchNorm2d' has no tensor that is pruned" in message


def test_orthogonal_weights(data):
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(18, 4)))
    message = refused(model, data, ImpossibleRequestError, **short(block_size=4))
    assert "leave none" in message


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers(model, data, bad):
    model[5].weight.data[2, 3] = bad
    # NaN differs from itself, so only the rest can be compared.
    untouched = Untouched(model)
    with pytest.raises(NonFiniteError, match="weight of '5' holds NaN or Inf"):
        qprune.prune(model, data, **QUICK)
    untouched.check(but=("5.weight",))


@pytest.mark.parametrize("compensate", [True, False])
def test_activations_that_are_not_numbers(data, compensate):
    model = nn.Sequential(nn.Linear(18, 6), nn.Linear(6, 3))
    model[0].weight.data *= 1e30
    model[1].weight.data *= 1e30
    message = refused(model, data, NonFiniteError, compensate=compensate)
    assert "'1'" in message
    assert "batch 0" in message


def test_activations_that_are_not_numbers_where_steps_are_judged(model):
    class Breaks(nn.Module):
        """Fine on all samples but one."""

        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return self.body(torch.where(x[:, :1] == 7.0, torch.inf, x))

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 18, generator=generator)
    _, accept = Calibration(torch.arange(40.0)[:, None]).split(
        0.2, torch.Generator().manual_seed(0)
    )
    inputs[int(accept.inputs[5, 0]), 0] = 7.0
    message = refused(
        Breaks(model), Calibration(inputs), NonFiniteError, batch_size=4, compensate=False
    )
    assert "layer 'body.1'" in message
    assert "batch 1" in message


def test_losses_that_are_not_numbers(model, data):
    loss = PerSample(lambda outputs, targets: outputs.sum(1) * torch.nan)
    message = refused(model, data, NonFiniteError, loss=loss, **short(curvature="empirical"))
    assert "loss is NaN or Inf in calibration batch 0" in message


def test_a_loss_that_breaks_on_the_way(model, data):
    calls = []

    def function(outputs, targets):
        calls.append(1)
        return outputs.sum(1) ** 2 * (torch.nan if len(calls) > 12 else 1.0)

    loss = PerSample(function)
    method = short(curvature="empirical", rounds=4)
    message = refused(model, data, NonFiniteError, loss=loss, **method)
    assert "loss is NaN or Inf" in message


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (torch.zeros(0, 18), "empty"),
        ([], "calibration must be"),
        ("digits", "calibration must be"),
        (np.full((4, 18), "a"), "no tensor"),
        (torch.randn(1, 18), "cannot be split"),
        ((torch.randn(5, 18), torch.zeros(4)), "5 calibration inputs but 4 labels"),
        ([torch.randn(5, 18), torch.randn(4, 17)], "do not fit together"),
        ([(torch.randn(5, 18), torch.zeros(5)), (torch.randn(5, 18),)], "do not fit together"),
        (torch.full((5, 18), torch.nan), "calibration sample 0 holds NaN or Inf"),
        (torch.randn(9, 17), "does not take calibration inputs of shape"),
    ],
)
def test_data(model, broken, reason):
    untouched = Untouched(model)
    with pytest.raises(CalibrationError, match=reason):
        qprune.prune(model, broken, **QUICK)
    untouched.check()


def test_data_without_labels(model, data):
    message = refused(model, Calibration(data.inputs), CalibrationError, loss=Labels())
    assert "needs labels" in message


def test_labels_past_the_last_class(model, data):
    late = Calibration(data.inputs, data.labels + 3)
    assert "0..4" in refused(model, late, CalibrationError, loss=Labels())


def test_outputs_without_classes(data):
    model = nn.Sequential(nn.Linear(18, 4), nn.Linear(4, 1))
    assert "PerSample" in refused(model, data, CalibrationError)


def test_losses_that_no_run_can_take(model, data):
    floats = Calibration(data.inputs, torch.zeros(len(data), 5))
    message = refused(model, floats, CalibrationError, loss=lambda o, t: (o - t) ** 2)
    assert "one number per sample" in message
    assert "loss='mse'" in message
    message = refused(model, data, ImpossibleRequestError, loss=nn.MarginRankingLoss())
    assert "TypeError on outputs of shape" in message
    message = refused(model, data, ImpossibleRequestError, loss="cross_entropy")
    assert "mean 'cross-entropy'?" in message


def test_unknown_samplers_and_options(model, data):
    message = refused(model, data, UnknownSamplerError, sampler="quantum")
    assert "greedy" in message
    assert "swap-anneal" in message
    message = refused(model, data, UnknownOptionError, sampler_options={"num_raeds": 3})
    assert "num_raeds" in message


class Foreign(dimod.Sampler):
    """A sampler whose answer a test chooses; it cannot count."""

    properties: ClassVar[dict] = {}
    parameters: ClassVar[dict] = {}

    def __init__(self, answer):
        self.answer = answer

    def sample(self, bqm, **_):
        return self.answer(bqm)


class Ours:
    """A sampler of problems whose answer a test chooses."""

    parameters: ClassVar[dict] = {}

    def __init__(self, answer):
        self.answer = answer

    def sample(self, bqm, **_):
        raise AssertionError

    def sample_problem(self, problem, **_):
        return self.answer(problem)


def raising(_):
    raise ValueError("the chip is warm")


def strange(bqm):
    return dimod.SampleSet.from_samples([{"a": 0, "b": 1}], "BINARY", energy=[0.0])


def empty(bqm):
    return dimod.SampleSet.from_samples_bqm([], bqm)


def halves(problem):
    return Solution(np.full((1, problem.num_variables), 0.5), np.zeros(1))


def nans(problem):
    return Solution(np.full((1, problem.num_variables), np.nan), np.zeros(1))


def too_short(problem):
    return Solution(np.zeros((1, problem.num_variables - 1)), np.zeros(1))


def no_rows(problem):
    return Solution(np.zeros((0, problem.num_variables)), np.zeros(0))


SAMPLERS = {
    "foreign raises": (Foreign(raising), "the chip is warm"),
    "foreign returns nothing": (Foreign(lambda _: None), "NoneType"),
    "foreign returns no samples": (Foreign(empty), "returned"),
    "foreign has other variables": (Foreign(strange), "variables"),
    "ours raises": (Ours(raising), "the chip is warm"),
    "ours returns nothing": (Ours(lambda _: None), "returned"),
    "ours returns no rows": (Ours(no_rows), "returned samples of shape (0,"),
    "ours returns halves": (Ours(halves), "values other than 0 and 1"),
    "ours returns NaN": (Ours(nans), "values other than 0 and 1"),
    "ours has too few variables": (Ours(too_short), "variables"),
}


@pytest.mark.parametrize(("sampler", "reason"), SAMPLERS.values(), ids=SAMPLERS)
def test_samplers_that_fail(model, data, sampler, reason):
    assert reason in refused(model, data, SamplerError, sampler=sampler)


def test_a_failed_sampler_hands_over_problem_and_answer(model, data):
    with pytest.raises(SamplerError) as caught:
        qprune.prune(model, data, **QUICK | {"sampler": Ours(halves)})
    problem = caught.value.problem
    assert problem.num_variables <= 16
    assert caught.value.answer.samples.shape == (1, problem.num_variables)


def test_wrong_counts_are_repaired(model, data):
    def everything(problem):
        return Solution(np.ones((1, problem.num_variables), np.int8), np.zeros(1))

    pruned = qprune.prune(model, data, **QUICK | {"sampler": Ours(everything)})
    assert pruned.report.achieved_sparsity == 0.5
    infos = [block.info for step in pruned.report.steps for block in step.blocks]
    assert infos
    assert all(info["repaired"] == 1.0 for info in infos)


def test_an_observer_that_raises(model, data):
    def observe(step):
        if step.index == 3:
            raise RuntimeError("disk full")

    assert refused(model, data, RuntimeError, observe=observe) == "disk full"


def test_an_interrupt(model, data):
    def observe(step):
        if step.index == 2:
            raise KeyboardInterrupt

    untouched = Untouched(model)
    with pytest.raises(KeyboardInterrupt):
        qprune.prune(model, data, **QUICK | {"observe": observe})
    untouched.check()


def test_an_evaluation_that_raises(model, data):
    def evaluate(_):
        raise KeyError("accuracy")

    assert "accuracy" in refused(model, data, KeyError, evaluate=evaluate)


def test_terms_that_raise(model, data):
    assert refused(model, data, RuntimeError, **short(terms=_no_terms)) == "no terms today"


def _no_terms(_):
    raise RuntimeError("no terms today")


def test_a_run_leaves_all_but_the_targeted_weights_alone(model, data):
    untouched = Untouched(model)
    qprune.prune(model, data, **QUICK | {"compensate": True})
    untouched.check(but=("1.weight", "5.weight"))
