"""`qprune prune` of a language model, as a user runs it."""

import json
import os
import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from qprune.cli.main import main
from qprune.network.mask_file import read_mask

transformers = pytest.importorskip("transformers")
tiny_language = pytest.importorskip("tiny_language")
tiny_models = pytest.importorskip("tiny_models")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model stored in half precision, with a tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.make("llama").half().save_pretrained(folder / "llama")
    wrapped = tiny_language.tokenizer()
    wrapped.save_pretrained(folder / "llama")
    (folder / "text.txt").write_text("".join(random.Random(0).choices("abcdef gh", k=2000)))
    tiny_models.make("vit").save_pretrained(folder / "vit")
    for name in ("gpt2", "mixtral"):
        tiny_models.make(name).save_pretrained(folder / name)
        wrapped.save_pretrained(folder / name)
    return folder


def prune_in_a_fresh_process(folder, *arguments):
    command = "from qprune.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", command, "prune", "--data", "text:text.txt", *arguments],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def qprune(folder, monkeypatch, capsys):
    """The command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["qprune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def prune(qprune):
    return lambda *arguments: qprune("prune", "--data", "text:text.txt", *arguments)


def report_of(folder):
    """The steps' kinds, and the layers, of a run."""
    report = json.loads((folder / "report.json").read_text())
    return [step["kind"] for step in report["steps"]], report["layers"]


COMMON = ("--model", "llama", "--max-seq-length", "16", "--num-calibration-samples", "8")


def test_a_folder_that_stock_transformers_loads_with_the_reported_perplexity(folder):
    done = prune_in_a_fresh_process(
        folder, *COMMON, "--sparsity", "0.5", "--output", "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["asked_sparsity"] == outcome["achieved_sparsity"] == 0.5
    assert "left dense: model.embed_tokens" in done.stderr
    assert outcome["peak_memory"] > 1e6
    kinds, layers = report_of(folder / "out")
    assert len(layers) == 14
    assert outcome["steps"] == len(kinds)

    stored = load_file(folder / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "out")
    weights = {n: p for n, p in model.float().named_parameters() if "_proj" in n}
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    assert sum(zeros.values()) == sum(weight.numel() for weight in weights.values()) // 2
    assert all(zeros[layer["parameter"]] == layer["num_zero"] for layer in layers)
    shares = {layer["num_pruned"] / layer["num_weights"] for layer in layers}
    assert len(shares) > 2, "budgets by sensitivity"
    assert kinds[:3] == ["block", "block", "start"]
    assert {"compensate", "blocks"} == set(kinds[3:])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "out")
    text = (folder / "text.txt").read_text()[-200:]
    windows = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])[:192].view(
        12, 16
    )
    with torch.no_grad():
        logits = model(windows).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert outcome["final"]["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    assert outcome["final"]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert outcome["figure"] == "test perplexity"
    assert outcome["dense"] != outcome["final"]


def test_blocks_of_stage_2_are_recorded_for_comparisons(folder, prune, tmp_path):
    from solvers.study import read_instances

    quick = ("--stage2-steps", "2", "--no-evaluate", "--no-augment", "--block-size", "64")
    blocks = tmp_path / "blocks"
    code, _, err = prune(*COMMON, *quick, "--sparsity", "0.5", "--record-blocks", str(blocks))
    assert code == 0, err
    found = list(read_instances(blocks))
    assert f"{blocks} holds {len(found)} problems" in err
    assert {instance.problem.num_variables for instance in found} == {64}
    code, _, err = prune(
        *COMMON, "--sparsity", "0.5", "--method", "wanda", "--record-blocks", str(tmp_path / "no")
    )
    assert code == 2
    assert "--method wanda has none" in err


def test_a_table_for_people_and_the_options_of_a_file(folder, prune):
    (folder / "run.yaml").write_text("model: llama\nmethod: wanda\nmax-seq-length: 16\n")
    code, out, err = prune(
        *("--config", "run.yaml", "--mask-structure", "2:4", "--no-evaluate", "--mask-only")
    )
    assert code == 0, err
    assert "50.00 % of targeted weights are zero" in out
    assert "model.layers.1.mlp.down_proj" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sparsity", "0.5", "--max-seq-length", "64"), "longer than the model's context of 32"),
        (("--sparsity", "0.5", "--stages", "3"), "no setting named 'stages'"),
        (("--sparsity", "0.5", "--method", "gptq"), "--method must be 'magnitude', 'wanda'"),
        (("--mask-structure", "2:4", "--sparsity", "0.7"), "means sparsity 0.5"),
        (("--mask-structure", "3:7"), "not a multiple of 7"),
        ((), "--sparsity is missing"),
        (("--sparsity", "0.5", "--method", "wanda", "--stage2-steps", "9"), "--stage2-steps is of"),
        (("--sparsity", "0.5", "--method", "wanda", "--max-seconds", "9"), "wanda makes one pass"),
        (("--sparsity", "0.5", "--method", "wanda", "--sampler", "sa"), "wanda asks none"),
        (("--sparsity", "0.5", "--budget", "row"), "--budget row is of the layer-by-layer methods"),
        (("--sparsity", "0.5", "--sampler", "sam"), "no sampler is called 'sam'"),
        (("--sparsity", "0.5", "--sampler-option", "speed=3"), "'speed'"),
        (("--sparsity", "0.5", "--method", "reconstruct", "--sampler", "sam"), "'sam'"),
        (("--sparsity", "0.5", "--output", "."), "is not empty"),
        (("--sparsity", "0.5", "--model", "vit"), "is an image classifier"),
        (("--sparsity", "0.5", "--model", "hf:no/such-model"), "pass the path of a downloaded"),
        (("--sparsity", "0.5", "--data", "text:absent.txt"), "cannot read the text absent.txt"),
    ],
)
def test_mistakes_end_in_one_line(prune, arguments, message):
    code, out, err = prune(*COMMON, *arguments)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("qprune: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_transposed_layers_go_through_both_stages(folder, prune):
    code, out, err = prune(
        *("--model", "gpt2", *COMMON[2:], "--sparsity", "0.7", "--stage2-steps", "4"),
        *("--output", "gpt2-out", "--json"),
    )
    assert code == 0, err
    outcome = json.loads(out.splitlines()[-1])
    assert outcome["method"] == "qprune"
    assert "compensate" in report_of(folder / "gpt2-out")[0]
    mask = read_mask(folder / "gpt2-out" / "mask.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "gpt2-out")
    assert sum(int((~kept).sum()) for kept in mask.values()) == round(
        0.7 * sum(kept.numel() for kept in mask.values())
    )
    for name, kept in mask.items():
        assert torch.equal(model.get_parameter(name) != 0, kept), name
    assert type(model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"


def test_experts_are_pruned_layer_by_layer_and_that_is_said(prune):
    code, out, err = prune("--model", "mixtral", *COMMON[2:], "--sparsity", "0.5", "--json")
    assert code == 0, err
    assert "layer alone, as --method reconstruct does" in " ".join(err.split())
    outcome = json.loads(out.splitlines()[-1])
    assert (outcome["method"], outcome["achieved_sparsity"]) == ("reconstruct", 0.5)


def test_the_time_limit_ends_stage_2_at_the_asked_sparsity(prune, tmp_path):
    code, out, err = prune(
        *(*COMMON, "--sparsity", "0.6", "--max-seconds", "0.01", "--no-augment", "--json"),
        *("--output", tmp_path / "out"),
    )
    assert code == 0, err
    outcome = json.loads(out.splitlines()[-1])
    assert outcome["stopped"] == "max_seconds"
    assert outcome["achieved_sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert report_of(tmp_path / "out")[0] == ["block", "block", "start"]


def test_stage_1_alone_at_budgets_by_sensitivity(prune, tmp_path):
    code, _, err = prune(
        *(*COMMON, "--sparsity", "0.7", "--stage2-steps", "0", "--output", tmp_path / "out")
    )
    assert code == 0, err
    kinds, layers = report_of(tmp_path / "out")
    assert kinds == ["block", "block", "start"]
    assert len({layer["num_pruned"] / layer["num_weights"] for layer in layers}) > 2


def test_any_sampler_solves_the_rows(prune, tmp_path):
    code, _, err = prune(
        *(*COMMON, "--sparsity", "0.5", "--method", "reconstruct", "--no-evaluate"),
        *("--sampler", "greedy", "--targets", "re:.*layers.0.*_proj", "--budget", "row"),
        *("--output", tmp_path / "out"),
    )
    assert code == 0, err
    layers = report_of(tmp_path / "out")[1]
    assert {layer["num_pruned"] / layer["num_weights"] for layer in layers} == {0.5}
    assert len(layers) == 7
