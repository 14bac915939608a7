"""Held weights stay exactly zero, whatever trains, merges, copies or saves the network."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import qprune
from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.network.mask_file import packed_bytes

OPTIMIZERS = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "sgd, maximize": lambda p: torch.optim.SGD(p, lr=0.01, maximize=True),
}


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[torch.rand_like(layer.weight) < 0.6] = 0
    return model


def train(model, optimizer, steps=5):
    inputs, targets = torch.randn(16, 6), torch.randn(16, 4)
    for _ in range(steps):
        optimizer.zero_grad()
        mse_loss(model(inputs), targets).backward()
        optimizer.step()


def zeros(model):
    return {n: p.detach() == 0 for n, p in model.named_parameters() if p.ndim == 2}


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_leaves_the_zeros_alone(make):
    model = network()
    before, kept = zeros(model), model[0].weight.detach().clone()
    with qprune.hold(model) as held:
        train(model, make(list(model.parameters())))
        assert same(before, zeros(model))
        assert held.num_pruned == sum(int(z.sum()) for z in before.values())
    assert not torch.equal(kept, model[0].weight), "the kept weights must have moved"
    train(model, make(list(model.parameters())))
    assert not same(before, zeros(model)), "nothing is held any more"


def test_momentum_from_before_does_not_move_a_held_weight():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mask = {name: ~zero for name, zero in zeros(model).items()}
    train(model, optimizer)
    qprune.hold(model, mask)
    train(model, optimizer)
    assert same({name: ~kept for name, kept in mask.items()}, zeros(model))


def test_pruned_weights_do_not_count_in_gradient_clipping():
    model = network()
    before = zeros(model)
    qprune.hold(model)
    mse_loss(model(torch.randn(16, 6)), torch.randn(16, 4)).backward()
    assert not model[0].weight.grad[before["0.weight"]].any()
    assert model[0].weight.grad[~before["0.weight"]].any()


def test_an_optimizer_of_another_network_is_none_of_its_business():
    held, other = network(), network()
    qprune.hold(held)
    with torch.no_grad():
        held[0].weight.fill_(1)
    train(other, torch.optim.SGD(other.parameters(), lr=0.1))
    assert bool((held[0].weight == 1).all())


def test_frozen_weights_are_held_when_merged_and_saved():
    model = network().requires_grad_(requires_grad=False)
    before = zeros(model)
    held = qprune.hold(model)
    with torch.no_grad():
        model[0].weight += 0.1
    saved = model.state_dict()
    assert torch.equal(saved["0.weight"] == 0, before["0.weight"])
    with torch.no_grad():
        model[0].weight += 0.1
    held.apply()
    assert same(before, zeros(model))


def test_a_copy_saves_its_own_zeros_and_not_the_originals():
    model = network()
    before = zeros(model)
    qprune.hold(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight += 1
        model[0].weight += 1
    assert torch.equal(twin.state_dict()["0.weight"] == 0, before["0.weight"])
    assert bool((model[0].weight != 0).any(1).all()), "the original has not been touched"


def test_a_mask_names_weights_also_of_a_wrapped_model(tmp_path):
    model = network()
    mask = {name: ~zero for name, zero in zeros(model).items()}
    (tmp_path / "mask.safetensors").write_bytes(packed_bytes(mask))
    with torch.no_grad():
        model[0].weight += 1
    wrapped = nn.DataParallel(model)  # Names as under DDP: "module.0.weight".
    qprune.hold(wrapped, tmp_path)
    assert torch.equal(model[0].weight != 0, mask["0.weight"])
    compiled = torch.compile(network())  # "_orig_mod.0.weight"; nothing is compiled yet.
    held = qprune.hold(compiled, tmp_path / "mask.safetensors")
    assert held.num_pruned == sum(int((~kept).sum()) for kept in mask.values())


def test_lora_keeps_the_mask_through_training_and_merge():
    peft = pytest.importorskip("peft")
    model = network()
    before = zeros(model)
    mask = {name: ~zero for name, zero in before.items()}
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    held = qprune.hold(adapted, mask)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    train(adapted, torch.optim.AdamW(trained, lr=0.1))
    merged = adapted.merge_and_unload()
    assert not same(before, zeros(merged)), "a merge by itself fills the zeros"
    assert same(before, {n: merged.state_dict()[n] == 0 for n in before})
    held.apply()
    assert same(before, zeros(merged))
    fresh = peft.get_peft_model(network(), peft.LoraConfig(r=2, target_modules=["0", "2"]))
    assert qprune.hold(fresh).num_pruned == sum(int(z.sum()) for z in before.values()), (
        "a new LoRA factor is all zero, and must be free to learn"
    )


def test_embeddings_and_fresh_matrices_are_not_held_by_default():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4, padding_idx=0), "fc": nn.Linear(4, 4)})
    with pytest.raises(ImpossibleRequestError, match="no zeros to hold"):
        qprune.hold(model)
    nn.init.zeros_(model["fc"].weight)
    with pytest.raises(ImpossibleRequestError, match="no zeros to hold"):
        qprune.hold(model)


def test_it_does_not_keep_a_network_alive():
    model = network()
    held = qprune.hold(model)
    assert held.num_pruned
    del model
    gc.collect()
    assert held.num_pruned == 0


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ({"9.weight": torch.ones(8, 6, dtype=torch.bool)}, "names '9.weight'"),
        ({"0.weight": torch.ones(6, 8, dtype=torch.bool)}, r"\(6, 8\), the weight is \(8, 6\)"),
        ({"0.weight": torch.ones(8, 6)}, "float32"),
        ({}, "no zeros"),
    ],
)
def test_a_mask_of_another_model_is_refused(mask, reason):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ImpossibleRequestError, match=reason):
        qprune.hold(model, mask)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_mask_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"mask\.safetensors"):
        qprune.hold(network(), tmp_path)


def test_data_parallel_training_over_processes(tmp_path):
    from torch.distributed import destroy_process_group, init_process_group
    from torch.nn.parallel import DistributedDataParallel

    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = network()
        before = zeros(model)
        parallel = DistributedDataParallel(model)
        qprune.hold(parallel)
        train(parallel, torch.optim.AdamW(parallel.parameters(), lr=0.1))
        assert same(before, zeros(model))
    finally:
        destroy_process_group()
