"""Models and data by name."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qprune.distributed.workers import limited_threads
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.models.datasets import NORMALIZATIONS, DataSet, load_data
from qprune.models.evaluate import score
from qprune.models.zoo import MLP, ResNet20, load_model

SHARED = Path(__file__).parents[5] / "shared" / "data"
needs_shared = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout"),
]


@pytest.fixture
def make_module(monkeypatch):
    def make(**names):
        module = types.ModuleType("a_users_module")
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, "a_users_module", module)

    return make


def test_digits_split_shares_no_image_and_reaches_every_class():
    data = load_data("digits")
    assert (len(data.train_inputs), len(data.test_inputs)) == (1297, 500)
    assert sorted(data.test_labels.unique().tolist()) == list(range(10))
    everything = torch.cat([data.train_inputs, data.test_inputs])
    assert len(everything) == 1797
    assert len(everything.unique(dim=0)) == 1797
    assert float(data.train_inputs.mean()) == pytest.approx(0, abs=0.01)


def test_digits_mlp_is_trained_the_same_every_time_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = load_model("digits-mlp")
    assert torch.equal(torch.get_rng_state(), before)
    again = load_model("digits-mlp")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    data = load_data("digits")
    assert score(model, data.test_inputs, data.test_labels).accuracy == pytest.approx(0.974)


def test_threads_are_limited_inside_and_given_back():
    before = torch.get_num_threads()
    with limited_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with limited_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_calibration_draws_from_the_training_part_by_seed():
    data = load_data("digits")
    first, same, other = (data.calibration(50, seed) for seed in (3, 3, 4))
    assert torch.equal(first.inputs, same.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    known = {row.numpy().tobytes() for row in data.train_inputs}
    assert all(row.numpy().tobytes() in known for row in first.inputs)
    assert len(first.inputs.unique(dim=0)) == 50
    with pytest.raises(ImpossibleRequestError, match="ask for 1 to 1297"):
        data.calibration(1298, 0)


def test_score_counts_right_labels_and_puts_the_mode_back():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Dropout(0.9)).train()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    inputs = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    found = score(model, inputs, torch.tensor([0, 1, 1]), batch_size=2)
    assert found.accuracy == pytest.approx(2 / 3)
    nats = np.log1p(np.exp([-2.0, -2.0, 3.0])).mean()
    assert found.loss == pytest.approx(nats)
    assert model.training


def test_scores_are_of_the_kind_of_the_outputs():
    inputs = torch.tensor([[2.0, -1.0], [-1.0, 2.0], [3.0, 1.0]])
    numbers = score(nn.Identity(), inputs, torch.zeros(3, 2), batch_size=2)
    assert (numbers.accuracy, numbers.loss) == (None, pytest.approx(20 / 6))
    answers = score(nn.Sigmoid(), inputs, torch.tensor([[1, 0], [1, 1], [0, 0]]))
    assert answers.accuracy == pytest.approx(3 / 6)
    classes = torch.tensor([0, -100, 1])
    found = score(nn.Softmax(1), inputs, classes)
    wanted = score(nn.Identity(), inputs[::2], classes[::2])
    assert found.accuracy == wanted.accuracy
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)


def test_score_refuses_labels_that_do_not_match():
    with pytest.raises(CalibrationError, match="3 inputs with 2 labels"):
        score(nn.Identity(), torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("load", "spec", "message"),
    [
        (load_model, "lenet", "there are: digits-mlp, mlpnet, resnet20"),
        (load_model, "mlpnet", "give --weights"),
        (load_model, "resnet20", "give --weights"),
        (load_model, "no.such:factory", "cannot import 'factory' from 'no.such'"),
        (load_model, "math:pi", "math:pi raised TypeError"),
        (load_model, "time:time", "returned a float"),
        (load_data, "imagenet", "there are: digits, mnist:PATH.npz"),
        (load_data, "mnist", "--data mnist:PATH.npz"),
        (load_data, "mnist:", "--data mnist:PATH.npz"),
        (load_data, "cifar10:/no/such.npz", "no file '/no/such.npz'"),
        (load_data, "time:time", "returned a float"),
    ],
)
def test_an_unknown_name_says_what_there_is(load, spec, message):
    with pytest.raises(ImpossibleRequestError) as refusal:
        load(spec)
    assert message in str(refusal.value)


def test_a_normalization_must_exist_and_apply():
    with pytest.raises(ImpossibleRequestError, match="there are: none, half"):
        load_data("digits", "imagenet")
    with pytest.raises(ImpossibleRequestError, match="--normalization does not apply"):
        load_data("a.b:c", "half")
    half = load_data("digits", "half")
    assert float(half.train_inputs.min()) == -1
    assert float(half.train_inputs.max()) == 1


def test_normalization_works_channel_by_channel():
    pixels = np.full((2, 1, 1, 3), 255, np.uint8)
    got = NORMALIZATIONS["cifar10"](pixels)
    expected = (1 - np.array([0.4914, 0.4822, 0.4465])) / np.array([0.2023, 0.1994, 0.2010])
    np.testing.assert_allclose(got.numpy()[0, 0, 0], expected, rtol=1e-6)


def test_factories_of_the_users_own(make_module):
    zeros, ones = torch.zeros(4, 3), torch.ones(4, dtype=torch.long)
    make_module(net=lambda: MLP((3, 2), bias=True), data=lambda: DataSet(zeros, ones, zeros, ones))
    assert isinstance(load_model("a_users_module:net"), MLP)
    assert torch.equal(load_data("a_users_module:data").train_inputs, zeros)


def test_data_without_one_label_each_are_refused(make_module):
    make_module(
        data=lambda: DataSet(torch.zeros(4, 3), torch.zeros(3), torch.zeros(4, 3), torch.zeros(4))
    )
    with pytest.raises(ImpossibleRequestError, match="train part has 4 inputs and 3 labels"):
        load_data("a_users_module:data")


def test_an_npz_of_other_images_is_refused(tmp_path):
    path = tmp_path / "images.npz"
    images, labels = np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.uint8)
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(CalibrationError, match=r"x_train holds images of \(8, 8\)"):
        load_data(f"mnist:{path}")
    np.savez(path, x_train=images)
    with pytest.raises(CalibrationError, match="not an npz file with x_train"):
        load_data(f"mnist:{path}")
    path.write_text("no npz")
    with pytest.raises(CalibrationError, match="not an npz file"):
        load_data(f"mnist:{path}")


def test_a_path_may_be_text(tmp_path):
    path, made = tmp_path / "weights.safetensors", MLP((784, 40, 20, 10), bias=False)
    save_file(made.state_dict(), path)
    loaded = load_model("mlpnet", str(path))
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), made.parameters(), strict=True)
    )


def test_weights_must_be_the_models(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = MLP((784, 40, 20, 10), bias=False).state_dict()
    save_file(state, path)
    model = load_model("mlpnet", path)
    assert torch.equal(model.state_dict()["fc2.weight"], state["fc2.weight"])
    save_file({"fc1.weight": state["fc1.weight"]}, path)
    with pytest.raises(ImpossibleRequestError, match=r"lacks 'fc2\.weight'"):
        load_model("mlpnet", path)
    save_file(state | {"fc2.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(ImpossibleRequestError, match=r"fc2\.weight is \(3, 3\)"):
        load_model("mlpnet", path)
    path.write_text("no safetensors")
    with pytest.raises(ImpossibleRequestError, match="takes a safetensors file"):
        load_model("mlpnet", path)


def test_torchvision_by_name(monkeypatch, tmp_path):
    asked = []

    def get_model(name, weights):
        asked.append((name, weights))
        if name != "resnet18":
            raise ValueError(name)
        return MLP((3, 2), bias=True)

    fake = types.ModuleType("torchvision")
    fake.models = types.SimpleNamespace(get_model=get_model)
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    assert isinstance(load_model("torchvision:resnet18"), MLP)
    path = tmp_path / "weights.safetensors"
    save_file(MLP((3, 2), bias=True).state_dict(), path)
    load_model("torchvision:resnet18", path)
    assert asked == [("resnet18", "DEFAULT"), ("resnet18", None)]
    with pytest.raises(ImpossibleRequestError, match="no model named 'resnet3'"):
        load_model("torchvision:resnet3")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImpossibleRequestError, match="pip install torchvision"):
        load_model("torchvision:resnet18")


def test_resnet20_has_the_checkpoints_tensors():
    state = ResNet20().state_dict()
    assert len(state) == 128
    assert sum(p.numel() for p in ResNet20().parameters()) == 272_474
    assert state["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)


def _shared(*values, marks=()):
    return pytest.param(*values, marks=[*needs_shared, *marks])


@pytest.mark.parametrize(
    ("model", "weights", "data", "normalization", "accuracy"),
    [
        _shared("mlpnet", "mlpnet_mnist", "mnist:mnist.npz", None, 0.9397),
        _shared("resnet20", "resnet20_cifar10_bn", "cifar10:cifar10_subset.npz", None, 0.909),
        _shared(
            "resnet20",
            "resnet20_cifar10",
            "cifar10:cifar10_subset.npz",
            "half",
            0.907,
            marks=[pytest.mark.slow],
        ),
    ],
)
def test_published_checkpoints_are_as_right_as_published(
    model, weights, data, normalization, accuracy
):
    kind, _, file = data.partition(":")
    loaded = load_data(f"{kind}:{SHARED / file}", normalization)
    network = load_model(model, SHARED / f"{weights}.safetensors")
    found = score(network, loaded.test_inputs, loaded.test_labels)
    assert found.accuracy == pytest.approx(accuracy, abs=1e-4)
