"""Perplexity predicts every token once, with the context that the stride promises."""

import json
import math

import pytest
import tiny_language as tiny
import torch
from torch.nn.functional import log_softmax

from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.models.evaluate import evaluate_perplexity, evaluate_tasks, names_of, perplexity
from qprune.models.text import encode, read_text

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    return tiny.llama(context=32)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "text.txt").write_text(tiny.text(2000))
    return f"text:{tmp_path / 'text.txt'}"


@torch.no_grad()
def by_hand(model, tokens, length, stride):
    """Token by token: its probability after what its window holds before it."""
    scored = {}
    for start in range(0, len(tokens) - length + 1, stride):
        window = tokens[start : start + length]
        fresh = range(1, length) if start == 0 else range(max(1, length - stride), length)
        for place in fresh:
            logits = model(window[None, :place]).logits[0, -1]
            assert start + place not in scored, "no token is predicted twice"
            scored[start + place] = -log_softmax(logits.double(), 0)[window[place]].item()
    return scored


@pytest.mark.parametrize(("length", "stride"), [(16, 16), (16, 5), (32, 31), (12, 1)])
def test_it_is_what_token_by_token_gives(model, tokenizer, source, length, stride):
    found = evaluate_perplexity(model, tokenizer, source, max_seq_length=length, stride=stride)
    tokens = encode(read_text(source, "test"), tokenizer)
    scored = by_hand(model, tokens, length, stride)
    assert found.predicted_tokens == len(scored)
    assert found.windows == (len(tokens) - length) // stride + 1
    assert found.value == pytest.approx(math.exp(sum(scored.values()) / len(scored)), rel=1e-5)
    assert (found.max_seq_length, found.stride, found.data) == (length, stride, source)


def test_overlap_leaves_no_gap(model, tokenizer, source):
    tokens = encode(read_text(source, "test"), tokenizer)
    scored = by_hand(model, tokens, 16, 4)
    assert sorted(scored) == list(range(1, max(scored) + 1))
    assert len(tokens) - max(scored) <= 4


def test_the_window_is_the_models_own_unless_told(model, tokenizer, source):
    found = evaluate_perplexity(model, tokenizer, source)
    assert (found.max_seq_length, found.stride) == (32, 32)


def test_the_bar_sees_every_window_but_the_first(model, tokenizer, source):
    seen = []

    def track(items, description):
        for item in items:
            seen.append((len(item), description))
            yield item

    found = evaluate_perplexity(model, tokenizer, source, max_seq_length=8, stride=8, track=track)
    assert sum(count for count, _ in seen) == found.windows - 1
    assert {description for _, description in seen} == {"evaluating"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stride": 0}, "between 1 and the window's 32 tokens, not 0"),
        ({"stride": 33}, "not 33"),
        ({"max_seq_length": 64}, "longer than the model's context of 32 tokens"),
        ({"max_seq_length": 1}, "at least 2"),
    ],
)
def test_lengths_that_cannot_be_are_refused(model, tokenizer, source, options, reason):
    with pytest.raises(ImpossibleRequestError, match=reason):
        evaluate_perplexity(model, tokenizer, source, **options)


def test_a_text_shorter_than_a_window_is_refused(model, tokenizer, tmp_path):
    (tmp_path / "short.txt").write_text(tiny.text(100))
    with pytest.raises(CalibrationError, match="has 10 tokens, less than one window of 32"):
        evaluate_perplexity(model, tokenizer, f"text:{tmp_path / 'short.txt'}")


def test_without_lm_eval_the_extra_is_named(model, tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ImpossibleRequestError, match=r"'lm_eval'.* pip install 'qprune\[eval\]'"):
        evaluate_tasks(model, tokenizer, ["arc_easy"])


def test_task_names():
    assert names_of(" a, b,,c ") == ("a", "b", "c")


@pytest.fixture
def choices(tmp_path):
    """A task of our own with answers that the test can score by itself."""
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    records = [
        {"question": tiny.text(6, seed), "choices": [tiny.text(3, -1 - seed), "abc"], "answer": 0}
        for seed in range(12)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "tiny_choices.yaml").write_text(
        "task: tiny_choices\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: '{data}'}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\n"
        "target_delimiter: ''\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {version: 1.0}\n"
    )
    return records


@torch.no_grad()
@pytest.mark.filterwarnings("default")  # lm-eval and its own dependencies warn as they like.
def test_lm_eval_itself_scores_a_task_of_ones_own(model, tokenizer, choices, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    right = 0
    for record in choices:
        sums = []
        for choice in record["choices"]:
            ids = encode(record["question"] + choice, tokenizer)
            logits = log_softmax(model(ids[None]).logits[0].double(), 1)
            sums.append(sum(logits[i - 1, ids[i]].item() for i in range(6, len(ids))))
        right += sums[0] > sums[1]
    found = evaluate_tasks(model, tokenizer, ["tiny_choices"], task_folder=tmp_path)
    assert found["tiny_choices"]["acc,none"] == pytest.approx(right / 12)
    with pytest.raises(ImpossibleRequestError, match="no task 'no_such_task'"):
        evaluate_tasks(model, tokenizer, ["no_such_task"], task_folder=tmp_path)


def test_dropout_is_off_and_on_again():
    model = tiny.llama(context=32)
    windows = torch.arange(8).view(2, 4)
    there = perplexity(model, windows)
    model.get_input_embeddings().register_forward_hook(
        lambda module, _, output: torch.dropout(output, 0.5, module.training)
    )
    assert perplexity(model.train(), windows) == there
    assert all(module.training for module in model.modules())
