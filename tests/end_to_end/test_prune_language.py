"""`qprune prune` of a language model, as a user runs it."""

import json
import os
import random
import subprocess
import sys

import pytest
import torch

from qprune.cli import main

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
tiny_models = pytest.importorskip("tiny_models")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model stored in half precision, with a tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.make("llama").half().save_pretrained(folder / "llama")
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz .")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="."))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    wrapped.save_pretrained(folder / "llama")
    (folder / "text.txt").write_text("".join(random.Random(0).choices("abcdef gh", k=2000)))
    tiny_models.make("vit").save_pretrained(folder / "vit")
    return folder


def prune_in_a_fresh_process(folder, *arguments):
    command = "from qprune.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", command, "prune", "--data", "text:text.txt", *arguments],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def prune(folder, monkeypatch, capsys):
    """The command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr(sys, "path", list(sys.path))
        command = ["qprune", "prune", "--data", "text:text.txt", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code or 0, *capsys.readouterr()

    return run


COMMON = ("--model", "llama", "--max-seq-length", "16", "--num-calibration-samples", "8")


def test_a_folder_that_stock_transformers_loads_with_the_reported_perplexity(folder):
    done = prune_in_a_fresh_process(
        folder, *COMMON, "--sparsity", "0.5", "--output", "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["asked_sparsity"] == outcome["achieved_sparsity"] == 0.5
    assert "left dense: model.embed_tokens, lm_head" in done.stderr
    assert outcome["peak_memory"] > 1e6
    assert len(outcome["layers"]) == 14

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "out", dtype="auto")
    assert model.dtype == torch.float16
    weight = model.float().model.layers[0].mlp.up_proj.weight
    assert int((weight == 0).sum()) == weight.numel() // 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "out")
    text = (folder / "text.txt").read_text()[-200:]
    windows = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])[:192].view(
        12, 16
    )
    with torch.no_grad():
        logits = model(windows).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert outcome["final"] == pytest.approx(float(loss.exp()), rel=1e-5)
    assert outcome["dense"] != outcome["final"]


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
