"""What outputs are taken for, row by row of the table, and what is left open is decided."""

import logging

import pytest
import torch
from torch import nn

import qprune
from qprune.data.outputs import Bernoulli, Classes, Real
from qprune.errors import CalibrationError
from qprune.objective.losses import DenseOutputs, Labels
from qprune.objective.recognise import recognise

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return 2 * torch.randn(shape, generator=GENERATOR)


def classes(top, *shape):
    return torch.randint(0, top, shape, generator=GENERATOR)


LOGITS, SIGMOIDS = Bernoulli(logits=True), Bernoulli(logits=False)


@pytest.mark.parametrize(
    ("outputs", "labels", "kind"),
    [
        # Float targets, whatever the outputs.
        (normal(9, 3), normal(9, 3), Real()),
        (normal(9, 1), normal(9), Real()),
        (normal(9), normal(9), Real()),
        (normal(9, 3).sigmoid(), normal(9, 3).double(), Real()),
        (normal(9, 3).softmax(1), normal(9, 3).half(), Real()),
        # In [0, 1] and summing to 1.
        (normal(9, 3).softmax(1), None, Classes(-1, False)),
        (normal(9, 3).softmax(1).half(), classes(3, 9), Classes(-1, False)),
        (normal(9, 500).softmax(1).bfloat16(), None, Classes(-1, False)),
        (normal(9, 50_000).softmax(1), None, Classes(-1, False)),
        (normal(9, 5, 3).softmax(2), None, Classes(-1, False)),
        (normal(9, 5, 3).softmax(1), None, Classes(1, False)),
        (normal(9, 4, 6, 5).softmax(1), None, Classes(1, False)),
        (normal(9, 6, 5, 4).softmax(-1), classes(4, 9, 6, 5), Classes(-1, False)),
        # Tokens of padding are zero.
        (normal(9, 5, 3).softmax(2) * (torch.arange(5) < 3)[:, None], None, Classes(-1, False)),
        # In [0, 1] otherwise.
        (normal(9, 3).sigmoid(), None, SIGMOIDS),
        (normal(9, 3).sigmoid().half(), classes(2, 9, 3), SIGMOIDS),
        (normal(9, 1).sigmoid(), None, SIGMOIDS),
        (normal(9).sigmoid(), classes(2, 9), SIGMOIDS),
        (normal(9, 3, 8, 8).sigmoid(), None, SIGMOIDS),
        # One column with answers.
        (normal(9, 1), classes(2, 9), LOGITS),
        (normal(9), classes(2, 9).bool(), LOGITS),
        (normal(9, 1, 4, 4), classes(2, 9, 4, 4), LOGITS),
        (normal(9, 6, 1), classes(2, 9, 6), LOGITS),
        (normal(9, 1, 6), classes(2, 9, 6), LOGITS),
        # A label for each output.
        (normal(9, 4), classes(2, 9, 4), LOGITS),
        (normal(9, 4), classes(2, 9, 4).bool(), LOGITS),
        (normal(9, 4), torch.eye(4).long()[classes(4, 9)], Classes(-1, True)),
        # Everything else.
        (normal(9, 4), None, Classes(-1, True)),
        (normal(9, 4).log_softmax(1), None, Classes(-1, True)),
        (normal(9, 4), classes(4, 9), Classes(-1, True)),
        (normal(9, 6, 4), None, Classes(-1, True)),
        (normal(9, 6, 4), classes(4, 9, 6), Classes(-1, True)),
        (normal(9, 4, 6), classes(4, 9, 6), Classes(1, True)),
        (normal(9, 4, 6, 5), None, Classes(1, True)),
        (normal(9, 4, 6, 5), classes(4, 9, 6, 5), Classes(1, True)),
        (normal(9, 6, 5, 4), classes(4, 9, 6, 5), Classes(-1, True)),
        # Of a network that says one thing alone nothing can be seen.
        (torch.zeros(9, 4), None, Classes(-1, True)),
    ],
)
def test_the_table(outputs, labels, kind):
    assert recognise(outputs, labels).kind == kind
    assert DenseOutputs().resolved(outputs, labels) == DenseOutputs(kind=kind)
    if labels is not None:
        assert Labels().resolved(outputs, labels) == Labels(kind)


@pytest.mark.parametrize(
    ("outputs", "labels", "reason"),
    [
        (normal(9, 1), None, "one column with no targets"),
        (normal(9), None, "one column with no targets"),
        (normal(9, 1, 8, 8), None, "one column with no targets"),
        (normal(9, 1), classes(7, 9) + 2, "labels other than 0 and 1"),
        (normal(9, 3), classes(7, 9, 3) + 2, "not all 0 and 1"),
    ],
)
def test_what_may_be_anything_is_refused_with_what_to_ask(outputs, labels, reason):
    with pytest.raises(CalibrationError, match=reason) as refusal:
        recognise(outputs, labels)
    for name in ("'mse'", "'bce'", "'cross-entropy'", "PerSample"):
        assert name in str(refusal.value)


def test_near_probabilities_are_none():
    shares = normal(9, 4).softmax(1)
    assert recognise(shares * 0.999, None).kind == SIGMOIDS
    assert recognise(shares - 0.2, None).kind == Classes(-1, True)
    one_off = shares.clone()
    one_off[8, 0] += 0.01
    assert recognise(one_off, None).kind == SIGMOIDS
    assert recognise(torch.cat([normal(9, 3).sigmoid(), torch.full((1, 3), 1.5)]), None).kind == (
        Classes(-1, True)
    )


@pytest.mark.parametrize(
    ("kind", "outputs", "labels", "decided"),
    [
        (Classes(), normal(9, 4, 6), classes(4, 9, 6), Classes(1, True)),
        (Classes(), normal(9, 4, 6).softmax(1), classes(4, 9, 6), Classes(1, False)),
        (Classes(2), normal(9, 4, 6), classes(4, 9, 6), Classes(2, True)),
        (Classes(logits=True), normal(9, 4).softmax(1), None, Classes(-1, True)),
        (Bernoulli(), normal(9, 4), None, LOGITS),
        (Bernoulli(), normal(9, 4).softmax(1), None, SIGMOIDS),
        (LOGITS, normal(9, 4).sigmoid(), None, LOGITS),
        (Real(), normal(9, 4).softmax(1), classes(4, 9), Real()),
    ],
)
def test_what_was_asked_is_kept(kind, outputs, labels, decided):
    assert DenseOutputs(kind=kind).resolved(outputs, labels).kind == decided


def test_the_loss_says_what_gave_the_kind_away():
    said = str(DenseOutputs().resolved(normal(9, 4).softmax(1), None))
    assert "probabilities that sum to 1 over the last dimension (recognised: they lie" in said
    assert "a guess" in str(DenseOutputs().resolved(normal(9, 4), None))
    assert "there are no labels" in str(Labels(Real(), or_dense=True).resolved(normal(9, 1), None))
    assert "(as asked)" in str(Labels(Real()).resolved(normal(9, 1), normal(9)))


def test_a_run_says_in_one_line_what_was_seen(caplog):
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    with caplog.at_level(logging.INFO, logger="qprune"):
        method = qprune.Networkwise(stages=1, rounds=0, final_rounds=0)
        run = qprune.prune(model, normal(40, 4), sparsity=0.5, method=method)
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("loss: ")]
    assert said == [f"loss: {run.report.loss}"]
    assert "recognised" in run.report.loss
    assert run.report.settings["loss"] == (
        "DenseOutputs(scale=1.0, fit_scale=None, kind=Classes(dim=-1, logits=False))"
    )
