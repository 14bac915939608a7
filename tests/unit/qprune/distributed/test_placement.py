"""Models that are not on the CPU: moved for the run and put back, or refused by name."""

import logging

import pytest
import torch
from torch import nn

import qprune
from qprune.distributed import placement
from qprune.distributed.placement import back_home, device_of, on_cpu
from qprune.errors import ImpossibleRequestError, QpruneError

SHORT = qprune.Networkwise(stages=1, rounds=0, final_rounds=1, block_size=16)
QUICK = {"method": SHORT, "compensate": False}


class Elsewhere(nn.Linear):
    """A layer that tells where it was moved to, as if it were on a GPU."""

    def __init__(self):
        super().__init__(8, 4)
        self.moves = []

    def to(self, device):
        self.moves.append(str(device))
        return self


@pytest.fixture
def model(monkeypatch):
    torch.manual_seed(0)
    model = Elsewhere()
    monkeypatch.setattr(placement, "device_of", lambda _: torch.device("cuda:0"))
    # There is none to put the mask on.
    monkeypatch.setattr(torch.Tensor, "to", _to(torch.Tensor.to))
    return model


def _to(plain):
    def to(self, *args, **kwargs):
        return plain(self, *("cpu" if str(a) == "cuda:0" else a for a in args), **kwargs)

    return to


def test_a_model_elsewhere_is_moved_pruned_and_put_back(model, caplog):
    with caplog.at_level(logging.INFO):
        qprune.prune(model, torch.randn(30, 8), sparsity=0.5, **QUICK)
    assert model.moves == ["cpu", "cuda:0"]
    assert "the model is on cuda:0: moved to the CPU, pruned there, and put back" in caplog.text
    assert int((model.weight == 0).sum()) == 16


def test_an_error_puts_it_back_too_with_its_weights(model):
    before = model.weight.detach().clone()

    def fail(_):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        qprune.prune(model, torch.randn(30, 8), sparsity=0.5, observe=fail, **QUICK)
    assert model.moves == ["cpu", "cuda:0"]
    assert torch.equal(model.weight, before)


def test_it_is_scored_where_it_was(model):
    def evaluate(scored):
        assert scored.moves[-1] == "cuda:0"
        return qprune.Score(accuracy=None, loss=1.0)

    qprune.prune(model, torch.randn(30, 8), sparsity=0.5, evaluate=evaluate, **QUICK)
    assert model.moves == ["cpu", *["cuda:0", "cpu"] * 3, "cuda:0"]


def test_what_is_not_loaded_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, device="meta"))
    with pytest.raises(QpruneError, match=r"'1\.weight' is on the meta device"):
        qprune.prune(model, torch.randn(9, 3), sparsity=0.5)


def test_a_model_on_several_devices_is_refused_by_name():
    class Spread(nn.Linear):
        def named_buffers(self, *args, **kwargs):
            yield "far", type("Far", (), {"device": torch.device("cuda:1")})()

    with pytest.raises(ImpossibleRequestError, match="'weight' on cpu, 'far' on cuda:1"):
        device_of(Spread(2, 2))


def test_a_model_that_cannot_be_moved_is_refused(monkeypatch):
    class Fixed(nn.Linear):
        def to(self, device):
            raise ValueError("`.to` is not supported here")

    monkeypatch.setattr(placement, "device_of", lambda _: torch.device("cuda:0"))
    with pytest.raises(ImpossibleRequestError, match="cannot be moved to cpu"), on_cpu(Fixed(2, 2)):
        pass


def test_on_the_cpu_nothing_happens():
    model = nn.Linear(2, 2)
    with on_cpu(model) as home, back_home(model, home):
        assert home == torch.device("cpu") == device_of(nn.ReLU())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_with_data_there():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    twin = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    twin.load_state_dict(model.state_dict())
    model.cuda()
    weight = model[0].weight
    inputs = torch.randn(30, 8)

    def evaluate(scored):
        assert scored(inputs.cuda()).is_cuda
        return qprune.Score(accuracy=None, loss=1.0)

    there = qprune.prune(model, inputs.cuda(), sparsity=0.5, evaluate=evaluate, **QUICK)
    here = qprune.prune(twin, inputs, sparsity=0.5, **QUICK)
    assert model[0].weight is weight
    assert all(p.is_cuda for p in model.parameters())
    for name, kept in there.mask.items():
        assert kept.is_cuda
        assert torch.equal(kept.cpu(), here.mask[name])
        assert torch.equal(model.get_parameter(name).cpu(), twin.get_parameter(name))
