"""Settings from a file, from the command line, and refused."""

import inspect

import pytest
import yaml

import qprune
from qprune.distributed.workers import checked_threads
from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.jobs.kinds import Images
from qprune.jobs.settings import Settings, make_settings
from qprune.objective import CURVATURES
from qprune.record.folder import FORMAT
from qprune.steps.start import STARTS

ENOUGH = {"model": "digits-mlp", "data": "digits", "sparsity": 0.9}


def test_the_command_line_wins_over_the_file(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("model: mlpnet\ndata: digits\nsparsity: 0.5\nblock-size: 64\nignore: fc3\n")
    settings = make_settings({"sparsity": 0.8, "seed": None, "model": "digits-mlp"}, config)
    assert (settings.model, settings.sparsity, settings.block_size) == ("digits-mlp", 0.8, 64)
    assert settings.seed == 0
    assert settings.ignore == ("fc3",)


def test_written_settings_read_back_the_same(tmp_path):
    sampler = {"sampler_options": {"num_sweeps": 20, "tolerance": 0.5}}
    settings = make_settings(ENOUGH | sampler | {"weights": "a.safetensors"})
    config = tmp_path / "config.yaml"
    config.write_text(settings.to_yaml())
    assert make_settings({}, config) == settings
    assert set(yaml.safe_load(config.read_text())) == {"format", *Settings.model_fields}
    completed = Images.completed(settings)
    config.write_text(completed.to_yaml(Images.foreign))
    assert make_settings({}, config) == completed
    assert "method" not in yaml.safe_load(config.read_text())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sparsity": 1.0}, "--sparsity must be a number that is at least 0 and below 1, not 1.0"),
        (
            {"sparsity": -0.1},
            "--sparsity must be a number that is at least 0 and below 1, not -0.1",
        ),
        ({"sparsity": float("nan")}, "--sparsity"),
        ({"budget": "column"}, "--budget must be 'global', 'layer' or 'row'"),
        ({"loss": "teacher"}, "--loss must be 'dense', 'cross-entropy', 'mse' or 'bce'"),
        ({"target": "teacher"}, "no setting named 'target'; there are: model"),
        ({"block_size": 1}, "--block-size must be a whole number from 2 to 2,147,483,647, not 1"),
        ({"num_calibration_samples": 0}, "--num-calibration-samples"),
        (
            {"max_seconds": 0.0},
            "--max-seconds must be a number that is above 0 and at most 1e+09, not 0.0",
        ),
        ({"density": 0.1}, "give it or --sparsity, not both"),
        ({"sparsity": None}, "--sparsity is missing"),
        ({"blocksize": 3}, "no setting named 'blocksize'; there are: model"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(given, message):
    with pytest.raises(ImpossibleRequestError) as refusal:
        make_settings(ENOUGH | given)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_of_older_versions_are_read(tmp_path):
    config = tmp_path / "run.yaml"
    for target, loss in (("dense", "dense"), ("labels", "cross-entropy")):
        config.write_text(f"model: mlpnet\ndata: digits\nsparsity: 0.5\ntarget: {target}\n")
        assert make_settings({}, config).loss == loss
        assert make_settings({"loss": "mse"}, config).loss == "mse"


def test_the_sparsity_comes_from_what_is_given():
    given = {"model": "digits-mlp", "data": "digits"}
    assert make_settings(given | {"sparsity": 0.9}).asked_sparsity == 0.9
    assert make_settings(given | {"density": 0.25}).asked_sparsity == 0.75
    assert make_settings(given | {"mask_structure": "1:4"}).asked_sparsity == 0.75


def test_defaults_are_those_of_prune():
    parameters = inspect.signature(qprune.prune).parameters
    settings = Images.completed(make_settings(ENOUGH))
    shared = set(settings.arguments()) & set(parameters)
    assert len(shared) > 7
    for name in shared - {"sparsity", "sampler_options", "ignore", "threads"}:
        assert getattr(settings, name) == parameters[name].default, name
    assert settings.threads == checked_threads(parameters["threads"].default)
    assert settings.augment  # True leaves it to prune's own "auto".
    assert parameters["augment"].default == "auto"
    method = parameters["method"].default
    assert STARTS[settings.start] == method.start
    assert CURVATURES[settings.curvature] == method.curvature
    for name in ("block_size", "num_blocks", "stages", "rounds", "final_rounds"):
        assert getattr(settings, name) == getattr(method, name), name


@pytest.mark.parametrize("name", sorted(Images.foreign))
def test_a_setting_of_another_kind_is_refused_by_name(name):
    numbers = {"stage2_steps": 8, "max_seq_length": 8, "method": "wanda", "dtype": "auto"}
    settings = make_settings(ENOUGH | {name: numbers.get(name, "cpu")})
    with pytest.raises(ImpossibleRequestError, match=f"no setting named '{name}' for digits-mlp"):
        Images.completed(settings)


def test_a_configuration_of_a_later_version_is_refused(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"format: {FORMAT + 1}\nmodel: mlpnet\ndata: digits\nsparsity: 0.5\n")
    with pytest.raises(RunFolderError, match=f"format {FORMAT + 1}.*use a later one"):
        make_settings({}, config)


def test_what_is_missing_is_named():
    with pytest.raises(ImpossibleRequestError, match="--model is missing"):
        make_settings({"data": "digits", "sparsity": 0.5})


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "1: 2\n"])
def test_a_file_that_is_no_settings_is_refused(tmp_path, text):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(ImpossibleRequestError, match=r"run\.yaml"):
        make_settings({}, config)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ImpossibleRequestError, match="cannot read the configuration"):
        make_settings({}, tmp_path / "none.yaml")


def test_yaml_runs_no_code(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("model: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ImpossibleRequestError, match="cannot read"):
        make_settings({}, config)
