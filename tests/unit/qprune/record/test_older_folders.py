"""Run folders of earlier versions: read by check, report and hold, and not gone on with."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from qprune.cli.main import app
from qprune.errors import RunFolderError
from qprune.jobs.audit import check_run
from qprune.jobs.settings import read_run
from qprune.network.hold import hold
from qprune.record.folder import FORMAT, opened

CONFIG = """\
model: digits-mlp
data: digits
sparsity: 0.5
density: null
mask_structure: null
weights: null
start: fisher
sampler: relax
target: dense
budget: layer
compensate: true
seed: 0
"""
STEP = {
    **{"index": 0, "stage": 0, "round": 0, "kind": "start", "sparsity": 0.5, "accepted": True},
    **{"predicted": None, "real": 0.1, "loss": 0.4, "fit_loss": 0.3, "flips": 4, "price": 0.0},
    **{"blocks": [], "seconds": {"accept": 0.1}, "cpu_seconds": 0.1, "faults": []},
}
REPORT = {
    **{"asked_sparsity": 0.5, "achieved_sparsity": 0.5, "steps": [STEP], "settings": {}},
    **{"layers": [{"name": "fc", "shape": [2, 4], "num_weights": 8, "num_pruned": 4}]},
    **{"seed": 0, "seconds": 1.0, "cpu_seconds": 1.0, "stopped": "done"},
    **{"dense": {"accuracy": 0.9, "loss": 0.2}, "start": None, "final": None},
    **{"num_accepted": 1, "scores": [{"step": 0, "score": {"accuracy": 0.8, "loss": 0.4}}]},
}
MASK = torch.tensor([[True, False, True, False]] * 2)


@pytest.fixture
def folder(tmp_path):
    """As it was written before files had a format: a boolean mask, and records without zeros."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "fingerprint.json").write_text(
        json.dumps({"model": "", "data": "", "settings": {}, "code": {}, "outputs": ""})
    )
    (tmp_path / "steps.jsonl").write_text(json.dumps(STEP) + "\n")
    (tmp_path / "scores.jsonl").write_text("")
    save_file({"fc.weight": MASK.float() * 3}, tmp_path / "model.safetensors")
    save_file({"fc.weight": MASK}, tmp_path / "mask.safetensors")
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "report.html").write_text("")
    (tmp_path / "checksums.sha256").write_text("")
    return tmp_path


def test_it_is_read_and_checked(folder):
    saved = read_run(folder)
    assert saved.settings.loss == "dense"
    assert saved.report.layers[0].parameter == "fc.weight"
    assert saved.scores[0].score.accuracy == 0.8
    audit = check_run(folder)
    assert audit.contradictions == ()
    assert (audit.num_weights, audit.num_pruned) == (8, 4)
    assert "did not count zeros" in audit.notes[0]


def test_what_contradicts_is_found_in_it_too(folder):
    mask = MASK.clone()
    mask[0, 1] = True
    save_file({"fc.weight": mask}, folder / "mask.safetensors")
    found = " ".join(check_run(folder).contradictions)
    assert "report.json says 4 of 8 pruned" in found
    assert "the mask has 0.375" in found
    assert "budget PerLayer" in found


def test_its_page_is_written_again_and_its_mask_is_held(folder):
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.exception
    assert "digits-mlp pruned to 50 %" in (folder / "report.html").read_text()
    model = torch.nn.Module()
    model.fc = torch.nn.Linear(4, 2)
    hold(model, folder).remove()
    assert int((model.fc.weight == 0).sum()) == 4


def test_to_go_on_with_it_is_refused_by_its_format(folder):
    (folder / "report.json").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = CliRunner().invoke(app, ["resume", str(folder)])
    assert isinstance(done.exception, RunFolderError)
    assert "another version of qprune began the run (format 1 of its files" in str(done.exception)
    assert "\n" not in str(done.exception)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_later_format_is_refused_by_its_number(folder):
    for name in ("report.json", "config.yaml"):
        text = (folder / name).read_text()
        later = json.dumps(REPORT | {"format": FORMAT + 1})
        later = later if name == "report.json" else f"format: {FORMAT + 1}\n{text}"
        (folder / name).write_text(later)
        with pytest.raises(RunFolderError, match=f"{name} has format {FORMAT + 1}.*use a later"):
            read_run(folder)
        (folder / name).write_text(text)
    (folder / "fingerprint.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(RunFolderError, match=f"format {FORMAT + 1} of"), opened(None, folder):
        pytest.fail("entered")
