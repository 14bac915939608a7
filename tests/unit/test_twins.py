"""Conv1D as Linear for a while: the same outputs, and everything back in its place."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import tiny_models
from qprune.network.twins import linear_twins, turned


def test_twins_compute_the_same_and_hand_back_what_became_of_them():
    model = tiny_models.make("gpt2").train()
    samples = tiny_models.samples(model)
    model.eval()
    before = dict(model.named_modules())
    names = [name for name, module in before.items() if type(module).__name__ == "Conv1D"]
    with torch.no_grad():
        logits = model(samples).logits
        with linear_twins(model) as turned_names:
            assert turned_names == {f"{name}.weight" for name in names}
            assert all(isinstance(model.get_submodule(name), nn.Linear) for name in names)
            torch.testing.assert_close(model(samples).logits, logits)
            weight = model.get_parameter(f"{names[0]}.weight")
            weight[1, 2] = 7.0
    assert {**dict(model.named_modules())} == before
    assert model.get_parameter(f"{names[0]}.weight")[2, 1] == 7.0


def test_after_an_error_the_original_layers_are_back():
    model = tiny_models.make("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="bad"), linear_twins(model):
        raise ValueError("bad")
    assert type(model.transformer.h[0].attn.c_attn).__name__ == "Conv1D"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_masks_are_turned_with_their_weights_and_no_others():
    mask = {"a": torch.eye(2, 3).bool(), "b": torch.eye(2, 3).bool()}
    done = turned(mask, frozenset({"a"}))
    assert torch.equal(done["a"], mask["a"].T)
    assert torch.equal(done["b"], mask["b"])


def test_a_model_without_transposed_layers_stays_itself():
    model = tiny_models.make("llama")
    with linear_twins(model) as names:
        assert not names
