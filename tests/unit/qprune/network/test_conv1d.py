"""GPT-2's Conv1D, whose weights are stored inputs first: pruned as it stands, as a Linear is."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import tiny_models

import qprune
from qprune import Distillation, Layerwise, Networkwise, PerRow
from qprune.network.weights import find_weights

BLOCKS = r"re:transformer\.h\..*\.(c_attn|c_proj|c_fc)"
ACROSS = Networkwise(start=None, rounds=2, num_blocks=2, block_size=32, accept_share=0.25)


def conv1ds(model):
    return {n: m for n, m in model.named_modules() if type(m).__name__ == "Conv1D"}


def with_linears(model):
    """A copy in which each Conv1D is the Linear that computes the same."""
    model = copy.deepcopy(model)
    for name, conv in conv1ds(model).items():
        inputs, outputs = conv.weight.shape
        linear = nn.Linear(inputs, outputs)
        linear.weight.data.copy_(conv.weight.data.T)
        linear.bias.data.copy_(conv.bias.data)
        model.set_submodule(name, linear)
    return model.eval()


def test_it_is_read_and_written_outputs_first():
    model = tiny_models.make("gpt2")
    samples = tiny_models.samples(model)
    twin = with_linears(model)
    with torch.no_grad():
        torch.testing.assert_close(twin(samples).logits, model(samples).logits)
    for weight in find_weights(model, BLOCKS):
        linear = twin.get_submodule(weight.name)
        assert (weight.rows, weight.inputs) == tuple(linear.weight.shape)
        assert torch.equal(weight.read(), linear.weight)
        matrix = weight.read()
        matrix[1, 2] = 7.0
        weight.write(matrix)
        assert model.get_parameter(weight.parameter_name)[2, 1] == 7.0


@pytest.mark.parametrize("options", [{"budget": PerRow(alone=True)}, {"mask_structure": "2:4"}])
@pytest.mark.parametrize(
    "method",
    [Layerwise("wanda", shares=None), Layerwise(shares=None), Networkwise("wanda", stages=1)],
    ids=["wanda", "reconstruct", "across"],
)
def test_its_mask_is_that_of_a_linear(method, options):
    model = tiny_models.make("gpt2")
    samples = tiny_models.samples(model, 12)
    if isinstance(method, Networkwise):
        method = Networkwise("wanda", stages=1, rounds=0)  # Blocks are drawn by the flat index.
        options = options | {"compensate": False, "targets": BLOCKS}
        options = {k: "row" if k == "budget" else v for k, v in options.items()}
    if "budget" in options:
        options = options | {"sparsity": 0.5}
    twin = qprune.prune(with_linears(model), samples, method=method, augment=None, **options)
    pruned = qprune.prune(model, samples, method=method, augment=None, **options)
    assert pruned.mask.keys() == twin.mask.keys()
    for name, kept in pruned.mask.items():
        agreeing = (twin.mask[name] == kept.T).double().mean()
        assert agreeing > 0.99, name  # Equal but for ties in the last digits.
        assert torch.equal(model.get_parameter(name) != 0, kept), name


def test_it_stays_what_it_is_through_both_stages_and_all_is_put_back_on_an_error():
    model = tiny_models.make("gpt2").train()
    samples = tiny_models.samples(model, 12)
    modules = dict(model.named_modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def run(observe=()):
        return qprune.prune(
            model,
            samples,
            sparsity=0.5,
            method=(Layerwise(), ACROSS),
            compensate=Distillation(4, final_steps=1, at_end=True),
            augment=None,
            observe=observe,
        )

    def fail(step):
        if step.kind == "blocks":
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        run(fail)
    assert dict(model.named_modules()) == modules
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    pruned = run()
    assert dict(model.named_modules()) == modules
    assert set(pruned.mask) == {f"{name}.weight" for name in conv1ds(model)}
    for name, kept in pruned.mask.items():
        assert torch.equal(model.get_parameter(name) != 0, kept), name
    assert pruned.report.achieved_sparsity == 0.5
