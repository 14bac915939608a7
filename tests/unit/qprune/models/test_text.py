"""Loading models, calibration text, perplexity: right, or a clear refusal."""

import gzip
import math

import pytest
import torch

from qprune.data.calibration import as_calibration
from qprune.errors import CalibrationError, ImpossibleRequestError, NonFiniteError
from qprune.models.evaluate import perplexity
from qprune.models.pretrained import checked_length, is_pretrained, load_pretrained, optional
from qprune.models.text import calibration_windows, evaluation_windows, random_windows

transformers = pytest.importorskip("transformers")
tiny_models = pytest.importorskip("tiny_models")


class Characters:
    """A tokenizer with one token for each character."""

    def __call__(self, text, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [ord(c) % 64 for c in text]}


@pytest.fixture
def tiny_llama():
    return tiny_models.make("llama")


def test_windows_are_pieces_of_the_text_and_the_seed_decides_which():
    tokens = torch.arange(100)
    windows = random_windows(tokens, 50, 8, seed=3)
    assert windows.shape == (50, 8)
    assert (windows.diff(dim=1) == 1).all()
    assert (windows >= 0).all()
    assert (windows < 100).all()
    assert torch.equal(windows, random_windows(tokens, 50, 8, seed=3))
    assert not torch.equal(windows, random_windows(tokens, 50, 8, seed=4))
    assert torch.equal(random_windows(tokens, 1, 100, seed=0)[0], tokens)


def test_text_shorter_than_a_window_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("abc")
    with pytest.raises(CalibrationError, match=r"has 3 tokens, less than one window of 8"):
        calibration_windows(f"text:{path}", Characters(), max_seq_length=8)


def test_a_text_file_keeps_its_last_tenth_for_scoring(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("a" * 90 + "b" * 10)
    test = evaluation_windows(f"text:{path}", Characters(), max_seq_length=5)
    assert test.tolist() == [[ord("b") % 64] * 5] * 2
    train = calibration_windows(f"text:{path}", Characters(), max_seq_length=5, num_samples=40)
    assert set(train.flatten().tolist()) == {ord("a") % 64}


def test_wikitext2_reads_each_split_from_its_own_file(tmp_path):
    for split, letter in (("train", "a"), ("test", "c")):
        with gzip.open(tmp_path / f"{split}.txt.gz", "wt") as file:
            file.write(letter * 20)
    source = f"wikitext2:{tmp_path}"
    assert calibration_windows(source, Characters(), max_seq_length=4)[0, 0] == ord("a") % 64
    assert evaluation_windows(source, Characters(), max_seq_length=4).shape == (5, 4)


def test_a_data_set_in_a_folder_needs_no_network(tmp_path):
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "%s"}\n' % (split * 4))
    windows = evaluation_windows(f"hf:{tmp_path}", Characters(), max_seq_length=4)
    assert windows[0].tolist() == [ord(c) % 64 for c in "test"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("book.txt", "none of wikitext2:DIR, text:FILE, hf:NAME"),
        ("text:/nowhere/x.txt", "cannot read the text /nowhere/x.txt"),
        ("wikitext2:/nowhere", "holds neither train.txt.gz nor train.txt"),
    ],
)
def test_sources_that_are_not_there_are_refused(source, message):
    with pytest.raises(ImpossibleRequestError, match=message):
        calibration_windows(source, Characters(), max_seq_length=4)


def test_batches_of_a_data_loader_are_joined():
    alone = [{"input_ids": ids} for ids in (torch.ones(2, 4).long(), torch.zeros(3, 4).long())]
    assert as_calibration(alone).inputs.tolist() == [[1] * 4] * 2 + [[0] * 4] * 3


def test_perplexity_is_that_of_all_predicted_tokens(tiny_llama):
    windows = torch.randint(64, (7, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = tiny_llama(windows).logits.double()
    chosen = logits[:, :-1].log_softmax(-1).gather(2, windows[:, 1:, None])
    assert perplexity(tiny_llama, windows) == pytest.approx(math.exp(-chosen.mean()), rel=1e-5)


def test_logits_that_are_not_numbers_are_named(tiny_llama):
    with torch.no_grad():
        tiny_llama.lm_head.weight[3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"window 0.*outputs of 'lm_head' hold"):
        perplexity(tiny_llama, torch.zeros(2, 5).long())
    with torch.no_grad():
        tiny_llama.model.layers[0].mlp.up_proj.weight[:] = float("inf")
    with pytest.raises(NonFiniteError, match=r"outputs of 'model\.layers\.0\.mlp\.up_proj' hold"):
        perplexity(tiny_llama, torch.zeros(2, 5).long())
    assert not any(module._forward_hooks for module in tiny_llama.modules())


def test_the_sequence_must_fit_the_context(tiny_llama):
    assert checked_length(tiny_llama, None) == 32
    assert checked_length(tiny_llama, 8) == 8
    with pytest.raises(ImpossibleRequestError, match="longer than the model's context of 32"):
        checked_length(tiny_llama, 33)
    with pytest.raises(ImpossibleRequestError, match="at least 2"):
        checked_length(tiny_llama, 1)


def test_a_saved_model_loads_in_the_dtype_asked(tiny_llama, tmp_path):
    tiny_llama.half().save_pretrained(tmp_path)
    assert is_pretrained(str(tmp_path))
    assert not is_pretrained("digits-mlp")
    assert load_pretrained(str(tmp_path)).dtype == torch.float32
    assert load_pretrained(str(tmp_path), dtype="auto").dtype == torch.float16
    with pytest.raises(ImpossibleRequestError, match="dtype 'int8' is none of"):
        load_pretrained(str(tmp_path), dtype="int8")
    with pytest.raises(ImpossibleRequestError, match="device 'gpu9' is not one"):
        load_pretrained(str(tmp_path), device="gpu9")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ImpossibleRequestError, match=r"has no config\.json"):
        load_pretrained(str(tmp_path))
    with pytest.raises(ImpossibleRequestError, match="there is no folder"):
        load_pretrained(str(tmp_path / "absent"))


def test_a_hub_id_without_network_offers_a_path(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ImpossibleRequestError, match="pass the path of a downloaded folder"):
        load_pretrained("hf:some-body/some-model-that-is-not-cached")


def test_a_model_without_a_head_is_not_a_language_model(tmp_path):
    transformers.T5Config(d_model=8, architectures=["T5Model"]).save_pretrained(tmp_path)
    with pytest.raises(ImpossibleRequestError, match="is a T5Model, and from a folder"):
        load_pretrained(str(tmp_path))


def test_a_missing_package_names_the_extra():
    with pytest.raises(ImpossibleRequestError, match=r"pip install 'qprune\[hf\]'"):
        optional("a_package_that_is_not_there")
