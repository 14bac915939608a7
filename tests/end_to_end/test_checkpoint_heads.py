"""Checkpoints that are no causal language models: pruned as what they are, or refused."""

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

from qprune.cli import main as cli

transformers = pytest.importorskip("transformers")
tiny = pytest.importorskip("tiny_heads")

IMAGES = """
import torch
from qprune.models.datasets import DataSet

def images():
    pixels = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 3
    return DataSet(pixels[:24], labels[:24], pixels[24:], labels[24:])
"""
QUICK = ("--sparsity", "0.5", "--num-calibration-samples", "8", "--stage2-steps", "4")


@pytest.fixture
def qprune(tmp_path, monkeypatch, capsys):
    """`qprune` in this process: exit code, standard output, standard error."""
    (tmp_path / "text.txt").write_text(tiny.words(600))
    (tmp_path / "image_data.py").write_text(IMAGES)

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["qprune", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "image_data", raising=False)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        done = capsys.readouterr()
        return stopped.value.code or 0, done.out, done.err

    return call


def name_of(model):
    return type(model).__name__


@pytest.mark.parametrize(
    ("name", "figure", "labelled"),
    [
        ("bert-sequence", "nats per sample", False),
        ("bert-labels", "nats per label", False),
        ("bert-tokens", "nats per token", False),
        ("bert-masked", "nats per token", True),
        ("llama-reward", "squared distance per output", False),
        ("llama-tokens", "nats per token", False),
        ("t5", "nats per token", False),
        ("bart", "nats per token", False),
        ("vit", "nats per sample", True),
    ],
)
def test_the_class_that_was_saved_is_pruned_and_saved(tmp_path, qprune, name, figure, labelled):
    dense = tiny.save(name, tmp_path / "dense")
    data = ["--data", "image_data:images" if name == "vit" else "text:text.txt"]
    length = [] if name == "vit" else ["--max-seq-length", "16"]
    code, out, err = qprune(
        *("prune", "--model", "dense", *data, *QUICK, *length, "--output", "out", "--json")
    )
    assert code == 0, err
    outcome = json.loads(out.splitlines()[-1])
    assert outcome["architecture"] == name_of(dense)
    assert outcome["figure"].startswith(f"divergence from the dense model ({figure})")
    assert (outcome["final"]["accuracy"] is not None) == labelled
    assert outcome["dense"]["loss"] == 0 < outcome["final"]["loss"]
    assert "left dense: " in err

    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("dense", "out")]
    assert configs[0] == configs[1]
    assert configs[1]["architectures"] == [name_of(dense)]
    again, found = type(dense).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    files = [load_file(tmp_path / part / "model.safetensors") for part in ("dense", "out")]
    assert files[0].keys() == files[1].keys()
    before, after = dense.state_dict(), again.state_dict()
    matrices = {
        name
        for name, parameter in dense.named_parameters()
        if parameter.ndim == 2 and re.search(r"(layer|layers|block)\.\d", name)
        if "relative_attention_bias" not in name
    }
    sizes = sum(after[name].numel() for name in matrices)
    assert sum(int((after[name] == 0).sum()) for name in matrices) == round(0.5 * sizes)
    assert any(name.endswith("weight") for name in before.keys() - matrices)
    for key in before.keys() - matrices:
        assert torch.equal(before[key], after[key]), key
    assert qprune("check", "out")[0] == 0
    code, out, err = qprune("verify", "out", *(data if name == "vit" else ()))
    assert (code, err) == (0, "")
    code, out, err = qprune("evaluate", "out", "--data", "text:text.txt")
    assert code == 2
    assert "is for causal language models, and out is a" in err
    code, out, err = qprune("hold", "dense", "--mask", "out", "--output", "held")
    assert code == 0, err
    held = type(dense).from_pretrained(tmp_path / "held")
    assert held.config.architectures == [name_of(dense)]


def test_rows_with_labels_are_calibrated_on_and_give_an_accuracy(tmp_path, qprune):
    dense = tiny.save("bert-sequence", tmp_path / "dense")
    rows = [{"text": tiny.words(3 + n % 9, seed=n), "label": n % 3} for n in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("prune", "--model", "dense", "--data", "text:rows.jsonl", *QUICK, "--json")
    code, out, err = qprune(*arguments, "--stage2-steps", "0", "--output", "out")
    assert code == 0, err
    assert 'holds JSON lines: the "text" of each is read' in " ".join(err.split())
    outcome = json.loads(out.splitlines()[-1])
    tokenizer = tiny.tokenizer()
    model = type(dense).from_pretrained(tmp_path / "out")
    for name, one in (("dense", dense), ("final", model)):
        right = 0
        for row in rows[90:]:
            with torch.no_grad():
                logits = one(torch.tensor([tokenizer(row["text"])["input_ids"]])).logits
            right += int(logits.argmax()) == row["label"]
        assert outcome[name]["accuracy"] == right / 10
    card = (tmp_path / "out" / "README.md").read_text()
    assert "divergence from the dense model (nats per sample), accuracy |" in card


def test_a_convolutional_network_is_pruned_across_alone_and_that_is_said(tmp_path, qprune):
    dense = tiny.save("resnet", tmp_path / "dense")
    (tmp_path / "dense" / "preprocessor_config.json").write_text('{"size": 8}')
    arguments = ("prune", "--model", "dense", "--data", "image_data:images", *QUICK[:4])
    code, out, err = qprune(
        *(*arguments, "--rounds", "0", "--mask-only", "--no-augment", "--output", "out", "--json")
    )
    assert code == 0, err
    assert "pruning across the network alone" in " ".join(err.split())
    again = type(dense).from_pretrained(tmp_path / "out")
    inside = {
        name: parameter
        for name, parameter in again.named_parameters()
        if parameter.ndim == 4 and "stages" in name
    }
    sizes = sum(parameter.numel() for parameter in inside.values())
    assert sum(int((p == 0).sum()) for p in inside.values()) == round(0.5 * sizes)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["layers"]) == len(inside) == 5
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"size": 8}'
    assert qprune("check", "out")[0] == 0
    assert qprune("verify", "out", "--data", "image_data:images")[0] == 0
    code, _, err = qprune(*arguments, "--stage2-steps", "3", "--output", "no")
    assert code == 2
    assert "--stage2-steps is of networks that are pruned layer by layer" in " ".join(err.split())


def test_the_factory_of_a_file_is_not_imported_unasked(tmp_path, qprune):
    tiny.save("vit", tmp_path / "dense")
    (tmp_path / "run.yaml").write_text("model: dense\ndata: image_data:images\nsparsity: 0.5\n")
    code, out, err = qprune("prune", "--config", "run.yaml")
    assert (code, out) == (2, "")
    assert "which runs code" in err
    assert "image_data" not in sys.modules


def test_layer_by_layer_methods_take_other_heads(tmp_path, qprune):
    tiny.save("t5", tmp_path / "dense")
    code, out, err = qprune(
        *("prune", "--model", "dense", "--data", "text:text.txt", "--max-seq-length", "16"),
        *("--sparsity", "0.5", "--num-calibration-samples", "8", "--method", "wanda", "--json"),
        *("--output", "out"),
    )
    assert code == 0, err
    outcome = json.loads(out.splitlines()[-1])
    assert outcome["method"] == "wanda"
    layers = json.loads((tmp_path / "out" / "report.json").read_text())["layers"]
    assert {layer["name"].split(".")[0] for layer in layers} == {"encoder", "decoder"}
    assert {layer["num_pruned"] / layer["num_weights"] for layer in layers} == {0.5}


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("vit", ("--data", "text:text.txt"), "an image classifier, and --data is text"),
        ("vit", ("--data", "image_data:images", "--max-seq-length", "8"), "--max-seq-length says"),
        ("bert-tokens", ("--data", "text:text.txt", "--normalization", "half"), "--normalization"),
        ("bert-tokens", ("--data", "text:text.txt", "--max-seq-length", "64"), "context of 40"),
        ("bert-tokens", ("--data", "text:text.txt", "--max-seq-length", "2"), "no room"),
        ("roberta-masked", ("--data", "text:text.txt", "--max-seq-length", "40"), "context of 38"),
        ("t5", ("--data", "image_data:images"), "none of wikitext2:DIR"),
    ],
)
def test_data_of_another_kind_are_refused_in_one_line(tmp_path, qprune, name, arguments, reason):
    tiny.save(name, tmp_path / "dense")
    code, out, err = qprune("prune", "--model", "dense", *QUICK, *arguments, "--output", "out")
    assert (code, out) == (2, "")
    assert reason in err
    assert err.splitlines()[-1].startswith("qprune: ")
    assert not (tmp_path / "out").exists()
