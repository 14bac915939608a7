"""No secret of the environment is in any file that is written, and no file makes code run."""

import json
import re
from pathlib import Path

import dimod
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import qprune
from qprune.cli.main import app
from qprune.errors import ImpossibleRequestError
from qprune.jobs.job import run_job
from qprune.jobs.settings import Settings, make_settings
from qprune.record.folder import CONFIG
from solvers.host.secrets import HIDDEN, redacted, without_secrets
from solvers.study import compare, generate

SECRETS = {
    "HF_TOKEN": "hf_sentinel-0001",
    "DWAVE_API_TOKEN": 'DEV-"sentinel"-0002',
    "AWS_SECRET_ACCESS_KEY": "aws/sentinel+0003",
    "PGPASSWORD": "sentinel<0004>",
}
ASKED = {"model": "digits-mlp", "data": "digits", "sparsity": 0.9, "stages": 1, "rounds": 1}
ASKED |= {"final_rounds": 1, "block_size": 32, "num_calibration_samples": 60, "augment": False}


@pytest.fixture
def secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def told(folder):
    """Everything that the files below ``folder`` say."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert files
    return b"\0".join(path.read_bytes() for path in files).decode("latin-1")


def assert_kept(text):
    assert "sentinel" not in text


class Leaky(dimod.Sampler):
    """Says in its error, or its answer, what it logs in with; as if remote, so that it is kept."""

    properties = {}  # noqa: RUF012
    parameters = {"seed": [], "token": []}  # noqa: RUF012
    paid = True

    def __init__(self):
        self.calls = 0

    def sample(self, bqm, seed=None, token=None):
        self.calls += 1
        said = " ".join(SECRETS.values())
        if self.calls % 2:
            raise RuntimeError(f"login with {said} was refused")
        states = np.random.default_rng(seed).integers(0, 2, (5, bqm.num_variables))
        info = {"login": said, "headers": {"X-Auth": [said]}}
        return dimod.SampleSet.from_samples_bqm((states, list(bqm.variables)), bqm, info=info)


def test_a_run_and_its_faults_and_answers_write_no_secret(tmp_path, secrets, monkeypatch):
    from qprune.record.checkpoint import Checkpoints

    monkeypatch.setattr(Checkpoints, "offer", Checkpoints.write)
    torch.manual_seed(0)
    inputs = torch.randn(40, 8)
    pruned = qprune.prune(
        nn.Linear(8, 6),
        inputs,
        sparsity=0.5,
        method=qprune.Networkwise(stages=1, rounds=4),
        sampler=Leaky(),
        sampler_options={"token": "sentinel-given"},
        on_fault=qprune.FaultPolicy(fallback="keep", retries=0),
        output_dir=tmp_path,
    )
    faults = [fault for step in pruned.report.steps for fault in step.faults]
    assert faults
    assert list((tmp_path / "answers").iterdir())
    text = told(tmp_path)
    assert_kept(text)
    assert "$DWAVE_API_TOKEN" in text
    assert HIDDEN in text


def test_a_whole_run_folder_has_no_secret(tmp_path, secrets, monkeypatch):
    """The sampler's name is a way in, too: it stands in settings, journal, report and page."""
    run_job(Settings(**ASKED, normalization="digits"), tmp_path / "run")
    assert_kept(told(tmp_path))
    leaky = make_settings(ASKED | {"sampler_options": {"note": SECRETS["HF_TOKEN"]}})
    assert_kept(leaky.to_yaml())
    assert "$HF_TOKEN" in leaky.to_yaml()


def test_a_resume_is_not_refused_for_a_secret_it_does_not_write(tmp_path, secrets):
    from qprune.record.fingerprint import plain_settings
    from solvers.host.disk import read_json, strict_json

    settings = {"sampler_options": {"note": SECRETS["PGPASSWORD"], "token": "x" * 9}}
    assert read_json(strict_json(plain_settings(settings))) == plain_settings(settings)


def test_a_secret_option_is_refused_where_settings_are_written():
    with pytest.raises(ImpossibleRequestError, match=r"'api_token' would be written"):
        make_settings(ASKED | {"sampler_options": {"api_token": "x"}})


class Shy(dimod.RandomSampler):
    """Fails with what it knows."""

    def sample(self, bqm, **options):
        raise RuntimeError(" ".join(SECRETS.values()))


def test_a_study_writes_no_secret(tmp_path, secrets):
    samplers = ["greedy", ("shy", Shy(), {}), ("random", "random", {})]
    compare([generate("fisher:n=6")], samplers, ["1reads"], 1, folder=tmp_path)
    text = told(tmp_path)
    assert_kept(text)
    assert "$AWS_SECRET_ACCESS_KEY" in text
    pytest.importorskip("scikit_posthocs")
    from solvers.study.report.page import write_report

    write_report(tmp_path, title=f"with {SECRETS['HF_TOKEN']}")
    assert_kept(told(tmp_path))


def test_the_page_of_a_language_model_has_no_secret(tmp_path, secrets):
    from tiny_models import llama

    from qprune.models.card import Card
    from qprune.models.save import save_model
    from qprune.network.mask_file import MASK_FILE

    secret = SECRETS["HF_TOKEN"]
    card = Card(f"https://user:{secret}@hub/m", "wanda", 0.5, (), settings={"data": secret})
    save_model(tmp_path / "out", llama(), {}, card=card)
    assert (tmp_path / "out" / MASK_FILE).exists()
    assert_kept(told(tmp_path))


def test_what_is_short_or_no_secret_stays(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "fisher")
    monkeypatch.setenv("TOKEN_PATH", "/home/me/token-file")
    monkeypatch.setenv("OTHER_TOKEN", "long-enough")
    assert redacted("fisher /home/me/token-file") == "fisher /home/me/token-file"
    assert redacted("it is long-enough.") == "it is $OTHER_TOKEN."
    values = {"a": ["long-enough", 1, None], "max_tokens": "3", "my_token": "any", "token": 4}
    expected = {"a": ["$OTHER_TOKEN", 1, None], "max_tokens": "3", "my_token": HIDDEN, "token": 4}
    assert without_secrets(values) == expected


# -- code and files that a file names -----------------------------------------------------------


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module whose import leaves a trace."""
    (tmp_path / f"{tmp_path.name}.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nfactory = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "ran"


@pytest.mark.parametrize("option", ["model", "data"])
def test_a_file_cannot_make_the_user_import_code(tmp_path, evil, option):
    factory = f"{tmp_path.name}:factory"
    asked = ASKED | {option: factory}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(asked))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).write_text(json.dumps(asked))
    for command in (
        ["prune", "--config", str(config)],
        ["compare", "--prune", str(config), "--sampler", "greedy", "--budget", "1reads"],
        ["resume", str(tmp_path / "run")],
        ["verify", str(tmp_path / "run")],
        ["report", str(tmp_path / "run")],
        ["check", str(tmp_path / "run")],
    ):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, qprune.errors.QpruneError), command
        assert not evil.exists(), command
    named = CliRunner().invoke(app, ["prune", "--config", str(config), f"--{option}={factory}"])
    assert factory in str(named.exception)
    assert evil.exists()


def test_no_yaml_tag_runs_code(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"model: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'ran'}]\n")
    with pytest.raises(ImpossibleRequestError, match="cannot read the configuration"):
        make_settings({}, config)


@pytest.mark.parametrize("name", ["../outside.npz", "/etc/passwd", "a/b.npz", "..", ".", "", 3])
def test_a_list_of_blocks_names_files_beside_it_only(tmp_path, name):
    from solvers.errors import StudyError
    from solvers.formats.files import write_problem
    from solvers.study.instances import BLOCKS, read_instances

    (tmp_path / "blocks").mkdir()
    write_problem(generate("fisher:n=4").problem, tmp_path / "outside.npz")
    (tmp_path / "blocks" / BLOCKS).write_text(json.dumps({"file": name}) + "\n")
    with pytest.raises(StudyError, match=r"not in that folder|not a recorded block"):
        read_instances(tmp_path / "blocks")


def test_only_loaders_that_run_no_code_are_used():
    root = Path(__file__).parents[4]
    sources = [*(root / "qprune").rglob("*.py"), *(root / "solvers").rglob("*.py")]
    forbidden = {
        "torch.load": r"torch\.load\(",
        "unpickling": r"pickle\.load\(|allow_pickle=True|joblib|dill",
        "unsafe YAML": r"yaml\.(unsafe_|full_)?load\(|yaml\.Loader",
        "evaluation": r"(?<![\w.])(eval|exec)\(",
        "remote code": r"trust_remote_code=True",
    }
    for path in sources:
        for what, pattern in forbidden.items():
            assert not re.search(pattern, path.read_text()), f"{what} in {path}"
    # Between processes of one run, and nowhere else.
    unpickling = {path.name for path in sources if "pickle.loads(" in path.read_text()}
    assert unpickling == {"border.py", "ranks.py", "worker.py"}
