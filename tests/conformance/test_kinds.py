"""Every kind of model: loaded, pruned, saved; read by stock loaders, and found consistent."""

import json
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_networks import cnn

from qprune.jobs.audit import check_run, verify_run
from qprune.jobs.job import run_job
from qprune.jobs.kinds import KINDS, kind_of
from qprune.jobs.settings import Settings, make_settings, read_settings
from qprune.models.datasets import DataSet
from qprune.network.mask_file import read_mask
from qprune.record.folder import CONFIG, MASK, MODEL
from qprune.record.plain_yaml import read_plain_yaml

transformers = pytest.importorskip("transformers")
tiny_heads = pytest.importorskip("tiny_heads")
tiny_language = pytest.importorskip("tiny_language")


def images():
    """Labelled images of 3 x 8 x 8 numbers; this module is the factory of them."""
    pixels = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 3
    return DataSet(pixels[:24], labels[:24], pixels[24:], labels[24:])


IMAGES = {"data": f"{__name__}:images", "num_calibration_samples": 16}
TEXT = {"num_calibration_samples": 8, "max_seq_length": 16, "stage2_steps": 2}


def of_images(folder):
    asked = {"model": "small_networks:cnn", "stages": 2, "rounds": 1, "final_rounds": 1}

    def load(saved):
        model = cnn()
        model.load_state_dict(load_file(saved / MODEL))
        return model

    return asked | IMAGES, load


def of_causal_models(folder):
    tiny_language.llama().save_pretrained(folder / "dense")
    tiny_language.tokenizer().save_pretrained(folder / "dense")
    (folder / "text.txt").write_text(tiny_language.text(2000))
    asked = {"model": str(folder / "dense"), "data": f"text:{folder / 'text.txt'}"}
    return asked | TEXT, transformers.AutoModelForCausalLM.from_pretrained


def of_text_classifiers(folder):
    tiny_heads.save("bert-sequence", folder / "dense")
    (folder / "text.txt").write_text(tiny_heads.words(600))
    asked = {"model": str(folder / "dense"), "data": f"text:{folder / 'text.txt'}"}
    return asked | TEXT, transformers.AutoModelForSequenceClassification.from_pretrained


def of_image_classifiers(folder):
    tiny_heads.save("vit", folder / "dense")
    asked = {"model": str(folder / "dense"), "stage2_steps": 2}
    return asked | IMAGES, transformers.AutoModelForImageClassification.from_pretrained


#: For each kind, models in a folder: settings, and the stock loader of what is saved.
MODELS = {
    "images": [of_images],
    "checkpoints": [of_causal_models, of_text_classifiers, of_image_classifiers],
}
# A kind that is registered without a model here fails.
CASES = [(kind, make) for kind in KINDS for make in MODELS[kind]]
each = pytest.mark.parametrize(("kind", "make"), CASES, ids=lambda v: getattr(v, "__name__", v))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(settings, outcome, stock loader, folder) of a run, carried out once."""

    @cache
    def run(make):
        place = tmp_path_factory.mktemp(make.__name__)
        asked, load = make(place)
        settings = make_settings(asked | {"sparsity": 0.5, "block_size": 32, "seed": 3})
        return settings, run_job(settings, place / "out"), load, place / "out"

    return run


@each
def test_its_settings_are_known_and_those_of_others_are_not_written(kind, make, finished):
    settings, outcome, _, folder = finished(make)
    assert kind_of(settings) is KINDS[kind]
    assert KINDS[kind].foreign < Settings.model_fields.keys()
    assert not KINDS[kind].foreign & read_plain_yaml(folder / CONFIG).keys()
    assert read_settings(folder) == outcome.settings


@each
def test_a_stock_loader_reads_the_pruned_model(kind, make, finished):
    _, outcome, load, folder = finished(make)
    assert all((folder / name).is_file() for name in KINDS[kind].needed)
    told, found = outcome.model.state_dict(), load(folder).state_dict()
    assert told.keys() == found.keys()
    assert all(torch.equal(told[name], found[name]) for name in told)


@each
def test_weights_that_the_mask_prunes_are_zero(kind, make, finished):
    _, outcome, load, folder = finished(make)
    mask, weights = read_mask(folder / MASK), dict(load(folder).named_parameters())
    assert mask.keys() == outcome.mask.keys()
    assert all(torch.equal(mask[name], kept) for name, kept in outcome.mask.items())
    assert all((weights[name][~kept] == 0).all() for name, kept in mask.items())
    assert all((weights[name][kept] != 0).any() for name, kept in mask.items())
    size = sum(kept.numel() for kept in mask.values())
    assert sum(int((~kept).sum()) for kept in mask.values()) == round(0.5 * size)


@each
def test_files_and_figures_are_consistent(kind, make, finished):
    settings, _, _, folder = finished(make)
    audit = check_run(folder)
    assert audit.contradictions == ()
    assert (audit.num_pruned, audit.num_weights) == (audit.num_weights // 2, audit.num_weights)
    assert audit.num_weights > 0
    assert verify_run(folder, settings.model, settings.data).contradictions == ()


@each
def test_pruned_weights_that_are_not_zero_are_found(kind, make, finished, tmp_path):
    folder = shutil.copytree(finished(make)[-1], tmp_path / "copy")
    ones = {name: torch.ones_like(tensor) for name, tensor in load_file(folder / MODEL).items()}
    save_file(ones, folder / MODEL, {"format": "pt"})
    assert "not exactly zero" in check_run(folder).contradictions[0]


def test_summaries_have_the_same_keys(finished):
    told = {make.__name__: json.loads(json.dumps(finished(make)[1].summary())) for _, make in CASES}
    keys = {name: list(summary) for name, summary in told.items()}
    assert all(found == keys["of_images"] for found in keys.values()), keys
    assert all(summary["achieved_sparsity"] == 0.5 for summary in told.values())
    assert all(summary["dense"].keys() == summary["final"].keys() for summary in told.values())
