"""From a pruned model to folders and back, by the command line and in fresh processes."""

import json
import os
import subprocess
import sys

import pytest
import tiny_language as tiny
import torch
from safetensors.torch import load_file

from qprune.cli import main as cli
from qprune.models.evaluate import evaluate_perplexity
from qprune.models.save import save_model
from qprune.network.mask_file import read_mask

transformers = pytest.importorskip("transformers")


@pytest.fixture
def qprune(monkeypatch, capsys):
    """`qprune` in this process: exit code, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["qprune", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        done = capsys.readouterr()
        return stopped.value.code or 0, done.out, done.err

    return call


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(tiny.text(4000))
    return f"text:{tmp_path / 'text.txt'}"


@pytest.fixture
def pruned(tmp_path):
    """A pruned folder in half precision, and the model that it was made from."""
    model = tiny.llama()
    mask = tiny.magnitude_mask(model, 0.5)
    tokenizer = tiny.tokenizer()
    save_model(tmp_path / "pruned", model, mask, tokenizer=tokenizer, dtype=torch.float16)
    return tmp_path / "pruned", model


# Stock transformers alone; the perplexity as our README defines it, written out again.
STOCK = """
import json, math, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(name.split(".")[0] == "qprune" for name in sys.modules)
folder, path = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
text = open(path).read()
text = text[len(text) - len(text) // 10 :]
ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])
windows = ids[: len(ids) // 32 * 32].view(-1, 32)
with torch.no_grad():
    logits = model(windows).logits[:, :-1].flatten(0, 1).double()
loss = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
zeros = {n: int((p == 0).sum()) for n, p in model.named_parameters() if p.ndim == 2}
print(json.dumps({"perplexity": math.exp(loss), "zeros": zeros}))
"""


def test_stock_transformers_in_a_fresh_process_gives_the_same_perplexity(pruned, text, qprune):
    folder, model = pruned
    reported = evaluate_perplexity(model, tiny.tokenizer(), text).value
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(folder), text.removeprefix("text:")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    stock = json.loads(done.stdout.splitlines()[-1])
    assert stock["perplexity"] == pytest.approx(reported, rel=1e-6)
    mask = read_mask(folder / "mask.safetensors")
    assert {n: z for n, z in stock["zeros"].items() if n in mask} == {
        name: int((~kept).sum()) for name, kept in mask.items()
    }
    code, out, err = qprune("evaluate", folder, "--data", text, "--json")
    assert code == 0, err
    found = json.loads(out)["perplexity"]
    assert found["value"] == pytest.approx(reported, rel=1e-6)
    assert (found["max_seq_length"], found["stride"]) == (32, 32)


def test_evaluate_with_overlap_and_as_a_table(pruned, text, qprune):
    options = ["--data", text, "--max-seq-length", 16, "--stride", 4]
    code, out, err = qprune("evaluate", pruned[0], *options, "--json")
    assert code == 0, err
    found = json.loads(out)["perplexity"]
    assert found["predicted_tokens"] == 15 + (found["windows"] - 1) * 4
    code, out, _ = qprune("evaluate", pruned[0], *options)
    assert code == 0
    assert f"{found['value']:.4f}" in out
    assert "stride 4" in out


def test_measure_says_what_is_saved_and_what_is_not(pruned, qprune):
    code, out, err = qprune("measure", pruned[0], "--rounds", 3, "--dtype", "float32", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["machine"]["device"] == "cpu"
    assert found["sizes"]["packed"] < found["dense_sizes"]["packed"]
    assert found["sizes"]["memory"] == found["dense_sizes"]["memory"]
    assert "NVIDIA GPU, this is cpu" in found["sparse_obstacle"]
    code, out, _ = qprune("measure", pruned[0], "--rounds", 3, "--dtype", "float32")
    assert code == 0
    assert "values and packed mask" in out
    assert "2:4 kernels not used: 2:4 kernels need an NVIDIA GPU" in out


def test_hold_applies_the_mask_to_a_tuned_checkpoint(pruned, tmp_path, qprune):
    folder, _ = pruned
    mask = read_mask(folder / "mask.safetensors")
    tuned = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01)
    tuned.save_pretrained(tmp_path / "tuned")
    tiny.tokenizer().save_pretrained(tmp_path / "tuned")
    arguments = ["hold", tmp_path / "tuned", "--mask", folder, "--output", tmp_path / "held"]
    code, out, err = qprune(*arguments, "--json")
    assert code == 0, err
    pruned_weights = sum(int((~kept).sum()) for kept in mask.values())
    done = json.loads(out)
    assert done["num_pruned"] == pruned_weights
    assert done["num_filled"] == pytest.approx(pruned_weights, rel=0.01)
    before, after = (
        load_file(tmp_path / "tuned/model.safetensors"),
        load_file(tmp_path / "held/model.safetensors"),
    )
    assert set(before) == set(after)
    for name, weight in after.items():
        assert weight.dtype == torch.float16
        kept = mask.get(name, torch.tensor(True))
        assert torch.equal(weight, torch.where(kept, before[name], 0))
    transformers.AutoTokenizer.from_pretrained(tmp_path / "held")
    assert all(
        torch.equal(k, mask[n]) for n, k in read_mask(tmp_path / "held/mask.safetensors").items()
    )
    code, _, err = qprune(*arguments)
    assert code == 2
    assert "is there already" in err
    assert qprune(*arguments, "--overwrite")[0] == 0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_a_trainer_and_a_lora_merge_end_in_the_same_zeros(pruned, tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    import qprune as api

    folder, _ = pruned
    mask = read_mask(folder / "mask.safetensors")
    tokens = torch.randint(1, 28, (16, 16), generator=torch.Generator().manual_seed(0))
    samples = [{"input_ids": row, "labels": row} for row in tokens]

    def train(model):
        settings = transformers.TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            weight_decay=0.1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        transformers.Trainer(model, settings, train_dataset=samples).train()

    def wrong(model):
        state = model.state_dict()
        return sum(int((state[name][~kept] != 0).sum()) for name, kept in mask.items())

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with api.hold(model, mask):
        train(model)
    assert wrong(model) == 0
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())

    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora)
    held = api.hold(adapted, folder)
    train(adapted)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    stored = load_file(tmp_path / "merged/model.safetensors")
    assert all(not stored[name][~kept].any() for name, kept in mask.items())
    held.remove()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["evaluate", "{pruned}"], "nothing to evaluate on"),
        (["evaluate", "{pruned}", "--data", "text:/no/such.txt"], "/no/such.txt"),
        (["evaluate", "{pruned}", "--data", "{text}", "--max-seq-length", 64], "context of 32"),
        (["evaluate", "{pruned}", "--data", "{text}", "--stride", 40], "stride"),
        (["evaluate", "{pruned}", "--data", "{text}", "--dtype", "int8"], "int8"),
        (["evaluate", "{tmp}", "--data", "{text}"], "config.json"),
        (["evaluate", "/no/such", "--data", "{text}"], "/no/such"),
        (["measure", "{tmp}"], "model*.safetensors"),
        (["measure", "{pruned}", "--against", "/no/such"], "/no/such"),
        (["hold", "{pruned}", "--mask", "/no/mask", "--output", "{tmp}/out"], "/no/mask"),
        (["hold", "{tmp}", "--mask", "{pruned}", "--output", "{tmp}/out"], "config.json"),
        (["hold", "{tmp}/adapter", "--mask", "{pruned}", "--output", "{tmp}/out"], "LoRA adapter"),
        (["hold", "{pruned}", "--mask", "{tmp}/other", "--output", "{tmp}/out"], "'x.weight'"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(
    pruned, text, tmp_path, qprune, arguments, reason
):
    from qprune.network.mask_file import packed_bytes

    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "other").write_bytes(packed_bytes({"x.weight": torch.ones(2, 2).bool()}))
    places = {"pruned": pruned[0], "tmp": tmp_path, "text": text}
    code, out, err = qprune(*(str(part).format(**places) for part in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("qprune: ")
    assert err.count("\n") == 1
    assert reason in err
    assert not (tmp_path / "out").exists()
