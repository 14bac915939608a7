"""The table of predictions that came true."""

import argparse

import torch

import qprune
from benchmarks import fidelity


def test_unseen_samples_are_those_that_the_run_did_not_get():
    data = qprune.load_data("digits")
    used = data.calibration(1000, seed=0).inputs
    left = fidelity.unseen(data, used)
    seen = {tuple(sample.tolist()) for sample in used}
    assert 200 < len(left.test_labels) <= len(data.train_labels) - len(seen)
    assert not any(tuple(sample.tolist()) in seen for sample in left.test_inputs)
    # Labels go with their samples.
    at = next(
        number
        for number, sample in enumerate(data.train_inputs)
        if torch.equal(sample, left.test_inputs[-1])
    )
    assert left.test_labels[-1] == data.train_labels[at]


def test_each_cell_is_run_with_the_correction_and_without():
    asked = argparse.Namespace(
        networks=["digits-mlp"],
        sparsity=[0.8],
        seeds=[0],
        data=None,
        compensate=False,
        test=False,
        options=[("stages", 1), ("final_rounds", 2), ("samples_per_step", 400)],
    )
    corrected, plain = (
        dict(zip(fidelity.COLUMNS, row, strict=True)) for row in fidelity.rows(asked)
    )
    assert (corrected["models"], plain["models"]) == ("corrected", "plain")
    assert plain["real / predicted"] == plain["foretold plain"]
    # The correction promises less of the same change.
    came, foretold = (float(corrected[name]) for name in ("real / predicted", "foretold plain"))
    assert came * foretold > 0
    assert abs(came) > abs(foretold)
