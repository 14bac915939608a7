"""A saved model loads as it was, with exact zeros; a save that fails changes nothing."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import tiny_language as tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.models.card import Card, Perplexity, layer_records
from qprune.models.pretrained import load_pretrained, load_tokenizer
from qprune.models.save import save_model
from qprune.network.mask_file import MASK_FILE, read_mask

transformers = pytest.importorskip("transformers")


@pytest.fixture
def pruned():
    model = tiny.llama()
    return model, tiny.magnitude_mask(model)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_it_loads_as_it_was_with_exact_zeros(pruned, tmp_path):
    model, mask = pruned
    save_model(tmp_path / "out", model, mask, tokenizer=tiny.tokenizer())
    again = load_pretrained(str(tmp_path / "out"))
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert load_tokenizer(str(tmp_path / "out"))("a b.")["input_ids"] == [1, 27, 2, 28]
    read = read_mask(tmp_path / "out" / MASK_FILE)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert set(read) == set(mask)
    for name, kept in mask.items():
        assert torch.equal(read[name], kept)
        assert torch.equal(weights[name] != 0, kept)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_stored_dtype_is_kept_and_memory_agrees_with_it(pruned, tmp_path, dtype):
    model, mask = pruned
    frequencies = model.model.rotary_emb.inv_freq.clone()
    save_model(tmp_path, model, mask, dtype=dtype)
    weights = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == str(dtype)[6:]  # renamed in 4.56
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    again = load_pretrained(str(tmp_path), dtype="float32")
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_tied_weights_stay_tied(tmp_path):
    model = tiny.llama(tied=True)
    mask = tiny.magnitude_mask(model)
    save_model(tmp_path, model, mask, dtype=torch.bfloat16)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    again = load_pretrained(str(tmp_path))
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_card_says_what_was_asked_and_what_came_out(pruned, tmp_path):
    model, mask = pruned
    at = {"data": "text:a", "max_seq_length": 16, "stride": 16, "windows": 3}
    card = Card(
        base_model="hf:someone/tiny",
        method="magnitude",
        asked_sparsity=0.5,
        layers=layer_records(mask),
        dense=Perplexity(20.5, **at, predicted_tokens=45),
        pruned=Perplexity(25.25, **at, predicted_tokens=45),
    )
    save_model(tmp_path, model, mask, card=card)
    page = (tmp_path / "README.md").read_text()
    assert "base_model: someone/tiny" in page
    assert "50.00 % of the targeted weights are exactly zero (50.00 % asked)" in page
    assert "| model.layers.0.mlp.down_proj.weight | 32x64 | 50.00 % |" in page
    assert "| dense | 20.500 |\n| pruned | 25.250 |" in page
    record = json.loads((tmp_path / "pruning.json").read_text())
    assert record["achieved_sparsity"] == 0.5
    assert len(record["layers"]) == 14
    assert record["pruned"]["value"] == 25.25


def test_a_newer_save_takes_the_place_of_an_older_one(pruned, tmp_path):
    model, mask = pruned
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"a shard of before")
    (tmp_path / "model.safetensors.index.json").write_bytes(b"{}")
    (tmp_path / "steps.jsonl").write_bytes(b"a journal\n")
    save_model(tmp_path, model, mask)
    names = {path.name for path in tmp_path.iterdir()}
    assert "steps.jsonl" in names
    assert "model.safetensors" in names
    assert not any("-of-" in name or "index" in name for name in names)
    load_pretrained(str(tmp_path))


def _full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where",
    ["safetensors.torch.save_file", "pathlib.Path.write_text", "os.fsync", "json.dumps"],
)
def test_a_disk_that_fills_leaves_the_old_output_whole(pruned, tmp_path, monkeypatch, where):
    model, mask = pruned
    folder = tmp_path / "out"
    save_model(folder, model, mask)
    before = contents(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    card = Card("base", "magnitude", 0.5, layer_records(mask))
    with monkeypatch.context() as patched:
        if where == "safetensors.torch.save_file":
            patched.setattr("transformers.modeling_utils.safe_save_file", _full)
        else:
            patched.setattr(where, _full)
        with pytest.raises(RunFolderError, match="No space left on device; what was there is unch"):
            save_model(folder, model, mask, card=card, dtype=torch.float16)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_file_system_that_is_really_full(pruned, tmp_path):
    model, mask = pruned
    size = sum(p.numel() * 4 for p in model.parameters())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(1.5 * size)}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system of its own takes root")
    try:
        save_model(disk / "out", model, mask)
        before = contents(disk / "out")
        with pytest.raises(RunFolderError, match="No space left on device"):
            save_model(disk / "out", model, mask)
        assert contents(disk / "out") == before
        assert [path.name for path in disk.iterdir()] == ["out"]
        load_pretrained(str(disk / "out"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_interrupted_save_leaves_nothing_behind(pruned, tmp_path, monkeypatch):
    model, mask = pruned

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "out", model, mask)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_refused_before_a_file_is_written(pruned, tmp_path):
    model, mask = pruned
    name = "model.layers.0.mlp.down_proj.weight"
    with pytest.raises(ImpossibleRequestError, match="no save_pretrained"):
        save_model(tmp_path / "out", torch.nn.Linear(2, 2), {})
    with pytest.raises(ImpossibleRequestError, match=r"'other\.weight'"):
        save_model(tmp_path / "out", model, {"other.weight": torch.ones(2, 2).bool()})
    mask[name][tuple(mask[name].nonzero()[0])] = False
    with pytest.raises(ImpossibleRequestError, match=f"1 weights of '{name}'"):
        save_model(tmp_path / "out", model, mask)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(pruned, tmp_path):
    model, mask = pruned
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(RunFolderError, match=f"cannot write {tmp_path / 'out'}"):
        save_model(tmp_path / "out", model, mask)
    assert (tmp_path / "out").read_text() == "not a folder"
