"""Checkpoints as what they are: which are loaded, what they are asked, what is told of them."""

import json
import logging

import pytest
import torch

from qprune.data.calibration import Calibration
from qprune.data.inputs import Inputs, called
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.models.evaluate import untracked
from qprune.models.pretrained import (
    CAUSAL,
    ENCODER_DECODER,
    MASKED,
    SEQUENCES,
    is_pretrained,
    load_checkpoint,
    load_pretrained,
    task_of,
)
from qprune.models.text import read_corpus
from qprune.network.transformer import enter, find_blocks, reproduces, stacks_of, stores

transformers = pytest.importorskip("transformers")
tiny = pytest.importorskip("tiny_heads")
heads = pytest.importorskip("qprune.models.heads")


@pytest.fixture
def folder(tmp_path):
    """A tiny BERT classifier's folder."""
    tiny.save("bert-sequence", tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_in_shards(folder):
    torch.save({}, folder / "pytorch_model-00001-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    (folder / "model.safetensors").unlink()


def one_shard_gone(folder):
    load_pretrained(str(folder)).save_pretrained(folder, max_shard_size="4KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    next(folder.glob("model-00001-of-*.safetensors")).unlink()


def cut_short(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def adapter_alone(folder):
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def gguf(folder):
    (folder / "model.safetensors").rename(folder / "model-q4.gguf")


def quantised(**config):
    return lambda folder: edit(folder, quantization_config=config)


def named(*names, **more):
    return lambda folder: edit(folder, architectures=list(names) or None, **more)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (pickled, "pytorch_model.bin and not in safetensors.*safe_serialization=True"),
        (pickled_in_shards, "pytorch_model-00001-of-00002.bin and not in safetensors"),
        (one_shard_gone, r"lacks model-00001-of-\d+.safetensors, one of the \d+ files"),
        (cut_short, "cannot load"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (adapter_alone, "LoRA adapter or the like.*merge_and_unload"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "merge_and_unload"),
        (gguf, "holds GGUF.*gguf_file=name"),
        (quantised(quant_method="gptq", bits=4), r"is quantised \(gptq\).*dequantize"),
        (quantised(quant_method="awq"), r"is quantised \(awq\)"),
        (quantised(load_in_4bit=True), r"is quantised \(quantization_config\)"),
        (lambda f: edit(f, text_config={"quantization_config": {"quant_method": "fp8"}}), "fp8"),
        (lambda f: (f / "quantize_config.json").write_text("{}"), "quantize_config.json"),
        (named(), '"architectures" in its config.json names no class'),
        (named("BertForMaskedLM", "BertForPreTraining"), "names 2 classes"),
        (named("BertModel"), "is a BertModel, and from a folder qprune prunes a causal"),
        (named("BertForQuestionAnswering"), "is a BertForQuestionAnswering.*qprune.prune"),
        (named("BertForTheMoon"), "which transformers .* does not have"),
        (named("Own", auto_map={"AutoModel": "own.Own"}), "auto_map.*runs no such code"),
        (named("RobertaForMaskedLM"), "RobertaForMaskedLM, model_type bert"),
        (named("BertForMaskedLM"), "lacks .* weights of a BertForMaskedLM.*cls.predictions"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_with_the_way_out(folder, change, reason):
    change(folder)
    assert is_pretrained(str(folder))
    with pytest.raises(ImpossibleRequestError, match=reason) as refused:
        load_pretrained(str(folder))
    assert str(folder) in str(refused.value)


def test_a_weight_that_the_class_has_no_place_for_is_named(tmp_path, caplog):
    config = tiny.make("bert-masked").config
    transformers.BertForPreTraining(config).save_pretrained(tmp_path)
    edit(tmp_path, architectures=["BertForMaskedLM"])
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(str(tmp_path))
    assert type(loaded.model) is transformers.BertForMaskedLM
    assert {name.rpartition(".")[0] for name in loaded.unused} == {
        "bert.pooler.dense",
        "cls.seq_relationship",
    }
    assert "no place for 4 weights" in caplog.text
    assert "bert.pooler.dense.bias" in caplog.text


def test_every_class_has_one_task():
    for name, task in (
        ("LlamaForCausalLM", CAUSAL),
        ("BartForConditionalGeneration", ENCODER_DECODER),
        ("BertForMaskedLM", MASKED),
        ("LlamaForSequenceClassification", SEQUENCES),
        ("BertModel", None),
    ):
        assert task_of(name, transformers) is task
    assert len(heads.HEADS) == 6


def subject_of(tmp_path, name, text=None, data="text.txt", **options):
    tiny.save(name, tmp_path / "model")
    (tmp_path / data).write_text(text or tiny.words(400))
    asked = heads.Samples(
        f"text:{tmp_path / data}", **{"number": 6, "max_seq_length": 12} | options
    )
    loaded = load_checkpoint(str(tmp_path / "model"))
    return heads.head_of(loaded.model).subject(asked, loaded)


def test_windows_stand_between_the_special_tokens(tmp_path):
    subject = subject_of(tmp_path, "bert-tokens")
    ids = subject.calibration.inputs.tree["input_ids"]
    assert ids.shape == (6, 12)
    assert (ids[:, 0] == tiny.CLS).all()
    assert (ids[:, -1] == tiny.SEP).all()
    assert int(ids[:, 1:-1].max()) < tiny.CLS
    assert subject.held_out.inputs.tree["input_ids"].shape == (40 // 10, 12)


def test_the_loss_of_masked_tokens_is_theirs_alone(tmp_path):
    subject = subject_of(tmp_path, "bert-masked")
    tree, labels = subject.calibration.inputs.tree, subject.calibration.labels
    assert ((tree["input_ids"] == tiny.MASK).sum(1) == 2).all()
    assert (tree["input_ids"].gather(1, tree["masked"]) == tiny.MASK).all()
    assert int(labels.max()) < tiny.CLS
    with torch.no_grad():
        found = called(subject.model, subject.calibration.inputs)
        logits = subject.model(tree["input_ids"], attention_mask=tree["attention_mask"]).logits
    assert found.shape == (6, 2, tiny.VOCABULARY)
    assert torch.equal(found[3, 1], logits[3, tree["masked"][3, 1]])


def test_a_decoder_is_given_what_follows_the_text(tmp_path):
    text = " ".join(f"w{n % 60}" for n in range(400))
    tree = subject_of(tmp_path, "t5", text).calibration.inputs.tree
    given, ahead = tree["input_ids"], tree["decoder_input_ids"]
    assert given.shape == ahead.shape == (6, 12)
    assert (ahead[:, 0] == tiny.PAD).all()
    assert torch.equal(ahead[:, 1], (given[:, -2] + 1) % 60)


def test_a_whole_window_has_no_padding_whatever_its_tokens_are():
    model = tiny.make("llama-reward")
    ids = torch.randint(60, (3, 8), generator=torch.Generator().manual_seed(0))
    inputs = Inputs(heads._read(ids), heads._to_the_last_token)
    with torch.no_grad():
        found = called(model, inputs).logits
        one_by_one = torch.cat([model(row[None]).logits for row in ids])
    assert torch.allclose(found, one_by_one, atol=1e-5)
    assert model.config.pad_token_id is None
    model.config.pad_token_id = int(ids[0, -1])
    with torch.no_grad():
        assert torch.allclose(called(model, inputs).logits, one_by_one, atol=1e-5)


def rows(labels):
    return "\n".join(
        json.dumps({"text": tiny.words(2 + n), "label": label}) for n, label in enumerate(labels)
    )


def test_rows_are_padded_behind_and_labels_are_classes(tmp_path):
    subject = subject_of(tmp_path, "bert-sequence", rows(["LABEL_2", 1] * 10), "rows.jsonl")
    tree = subject.calibration.inputs.tree
    lengths = tree["attention_mask"].sum(1)
    assert tree["input_ids"].shape == (6, 12)
    assert len(set(lengths.tolist())) > 2
    for ids, length in zip(tree["input_ids"], lengths, strict=True):
        assert ids[length - 1] == tiny.SEP
        assert (ids[length:] == tiny.PAD).all()
    assert set(subject.calibration.labels.tolist()) == {1, 2}
    assert subject.held_out.labels.tolist() == [2, 1]
    hidden = subject_of(tmp_path, "bert-sequence", rows([-1] * 20), "rows.jsonl")
    assert hidden.calibration.labels is None


def test_labels_and_rows_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match="label 3 is none of the model's 3 classes"):
        subject_of(tmp_path, "bert-sequence", rows([3] * 20), "rows.jsonl")
    with pytest.raises(ImpossibleRequestError, match="names no pad_token_id"):
        subject_of(tmp_path, "llama-reward", rows([0.5] * 20), "rows.jsonl")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    subject_of(tmp_path, "bert-tokens", " ".join(f"w{n % 9}" for n in range(400)))
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["more"])
    model = tiny.make("bert-tokens")
    model.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    (tmp_path / "grown.txt").write_text("more w1 " * 200)
    for data, refused in (("text.txt", False), ("grown.txt", True)):
        asked = heads.Samples(f"text:{tmp_path / data}", number=2, max_seq_length=12)
        loaded = load_checkpoint(str(tmp_path / "grown"))
        head = heads.head_of(loaded.model)
        if refused:
            with pytest.raises(ImpossibleRequestError, match=r"token 64 of the text.*64 tokens, 0"):
                head.subject(asked, loaded)
        else:
            head.subject(asked, loaded)


def test_the_text_of_json_lines_is_read_and_other_json_is_refused(tmp_path, caplog):
    lines = [json.dumps({"text": f"line {n}", "label": n}) for n in range(20)]
    for name, text in (("rows.jsonl", "\n".join(lines)), ("rows.txt", "\n\n".join(lines))):
        (tmp_path / name).write_text(text)
        with caplog.at_level(logging.INFO):
            corpus = read_corpus(f"text:{tmp_path / name}", "train")
        assert (corpus.texts[1], len(corpus.texts), corpus.labels[17]) == ("line 1", 18, 17)
        assert read_corpus(f"text:{tmp_path / name}", "test").text == "line 18\nline 19"
        assert "holds JSON lines" in caplog.text
    for name, text, where in (
        ("a.txt", "\n".join([*lines[:3], '{"txt": 1}']), "line 4"),
        ("b.txt", json.dumps([{"text": "a"}], indent=1), "line 1"),
        ("c.json", '["a", "b"]', "line 1"),
        ("d.jsonl", "plain", "line 1"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ImpossibleRequestError, match=f"is JSON, and its {where} is no object"):
            read_corpus(f"text:{tmp_path / name}", "train")
    (tmp_path / "plain.txt").write_text("[1] A note, {and} more.\n" * 10)
    assert read_corpus(f"text:{tmp_path / 'plain.txt'}", "train").text.startswith("[1] A note")


def test_divergence_and_accuracy_are_means_over_all_samples():
    dense, other = tiny.make("bert-sequence", 0), tiny.make("bert-sequence", 1)
    ids = torch.randint(60, (11, 600), generator=torch.Generator().manual_seed(0))[:, :30]
    labels = torch.arange(11) % 3
    data = Calibration(Inputs({"input_ids": ids}), labels)
    loss = heads.classification_criterion(dense.config).loss
    value, accuracy = heads.compared(dense, other, data, loss, untracked)
    with torch.no_grad():
        p, q = (m(ids).logits.double().log_softmax(-1) for m in (dense, other))
    assert value == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)
    assert accuracy == float((q.argmax(-1) == labels).double().mean())


@pytest.mark.parametrize("name", ["bert-tokens", "t5", "bart"])
def test_blocks_are_entered_with_what_the_model_calls_them_with(name):
    """Block by block, the last one gives what it gives when the model runs as a whole."""
    model = tiny.make(name)
    ids = torch.randint(60, (5, 9), generator=torch.Generator().manual_seed(0))
    tree = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name != "bert-tokens":
        tree["decoder_input_ids"] = ids.flip(1)
    inputs, blocks = Inputs(tree), find_blocks(model)
    stacks = [[blocks[index] for index in stack] for stack in stacks_of(blocks)]
    assert len(stacks) == (1 if name == "bert-tokens" else 2)
    for stack in stacks:
        seen = []
        handle = stack[-1][1].register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        with torch.no_grad():
            called(model, inputs)
        handle.remove()
        whole = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
        with stores("cpu") as new_store, torch.no_grad():
            entry = enter(model, stack, inputs.split(2), new_store)
            for batch, expected in enumerate(whole.split(2)):
                hidden = entry.hidden.get(batch, torch.device("cpu"))
                for (_, block), calls in zip(stack, entry.calls, strict=True):
                    hidden = calls[batch].of(block, hidden)
                assert torch.allclose(hidden, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "whether"), [("vit", True), ("swin", False), ("resnet", False)])
def test_blocks_that_change_the_shape_are_not_taken_for_a_row(name, whether):
    model = tiny.make(name)
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with stores("cpu") as new_store:
        assert reproduces(model, find_blocks(model), pixels, new_store) == whether
    assert "forward" not in vars(find_blocks(model)[0][1])
