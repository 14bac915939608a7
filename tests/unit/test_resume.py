"""A run stopped at any moment goes on to the bytes of a run that was never stopped."""

import json
import logging

import pytest
import torch
from torch import nn

import qprune
from qprune.checkpoint import CHECKPOINTS, Checkpoints, Snapshot
from qprune.compensate import Compensation
from qprune.errors import RunFolderError
from qprune.folder import locked
from qprune.recording import FINGERPRINT, STEPS

RUN = {
    "sparsity": 0.5,
    "stages": 3,
    "rounds": 2,
    "sampler": "greedy",
    "block_size": 32,
    "compensate": Compensation(iterations=(2,), final_steps=2),
}
INPUTS = torch.randn(64, 10, generator=torch.Generator().manual_seed(5))


class KilledError(Exception):
    """Raised where a real run would be killed."""


def mlp():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(inplace=True), nn.Linear(12, 4))


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole():
    model = mlp()
    pruned = qprune.prune(model, INPUTS, **RUN)
    return weights_of(model), pruned


@pytest.fixture
def every_step(monkeypatch):
    """A checkpoint between any two steps, not only when time has paid for it."""
    monkeypatch.setattr(Checkpoints, "offer", Checkpoints.write)


def killed(folder, at, **changes):
    def observe(step):
        if step.index == at:
            raise KilledError

    with pytest.raises(KilledError):
        qprune.prune(mlp(), INPUTS, **(RUN | changes), output_dir=folder, observe=observe)


def test_killed_at_a_step_it_ends_as_if_never_killed(tmp_path, whole, every_step):
    weights, pruned = whole
    number = len(pruned.report.steps)
    for at in (1, 4, 9, number - 1):
        folder = tmp_path / str(at)
        killed(folder, at)
        model = mlp()
        again = qprune.prune(model, INPUTS, **RUN, resume_from=folder)
        assert same(weights, weights_of(model)), f"killed at step {at}"
        assert same(pruned.mask, again.mask)
        assert [s.kind for s in again.report.steps] == [s.kind for s in pruned.report.steps]
        assert len((folder / STEPS).read_text().splitlines()) == number


def test_killed_again_and_again(tmp_path, whole, every_step):
    killed(tmp_path, 0)
    for at in range(1, len(whole[1].report.steps), 3):

        def observe(step, at=at):
            if step.index == at:
                raise KilledError

        with pytest.raises(KilledError):
            qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path, observe=observe)
    model = mlp()
    qprune.prune(model, INPUTS, **RUN, resume_from=tmp_path)
    assert same(whole[0], weights_of(model))


def test_stopped_in_the_middle_of_a_step_the_stop_leaves_no_trace(tmp_path, whole):
    """The stop shortens the step it falls into; that step is taken back before going on."""
    for calls in (1, 8, 13, 21, 40):
        count = iter(range(calls))
        folder = tmp_path / str(calls)
        stopped = qprune.prune(
            mlp(),
            INPUTS,
            **RUN,
            output_dir=folder,
            should_stop=lambda count=count: next(count, None) is None,
        )
        assert stopped.report.stopped == "interrupted"
        assert stopped.report.achieved_sparsity == 0.5
        model = mlp()
        qprune.prune(model, INPUTS, **RUN, resume_from=folder)
        assert same(whole[0], weights_of(model)), f"stopped at question {calls}"


def test_time_spent_before_counts(tmp_path, every_step):
    killed(tmp_path, 5)
    used = Checkpoints(tmp_path).load().seconds
    again = qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path, max_seconds=used / 2)
    assert again.report.stopped == "max_seconds"
    assert again.report.seconds > used


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sparsity": 0.6}, "setting sparsity is 0.6, it was 0.5"),
        ({"seed": 3}, "setting seed is 3, it was 0"),
        ({"sampler_options": {"seed": 1}}, "setting sampler_options"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, changes, named):
    killed(tmp_path, 3)
    with pytest.raises(RunFolderError, match=named):
        qprune.prune(mlp(), INPUTS, **(RUN | changes), resume_from=tmp_path)


def test_another_model_or_other_data_are_refused(tmp_path):
    killed(tmp_path, 3)
    model = mlp()
    with torch.no_grad():
        model[2].bias[0] += 1e-7
    with pytest.raises(RunFolderError, match="the model is another one"):
        qprune.prune(model, INPUTS, **RUN, resume_from=tmp_path)
    with pytest.raises(RunFolderError, match="the calibration data is another one"):
        qprune.prune(mlp(), INPUTS.flip(0), **RUN, resume_from=tmp_path)


def test_another_version_is_refused_by_name(tmp_path):
    killed(tmp_path, 3)
    path = tmp_path / FINGERPRINT
    record = json.loads(path.read_text())
    record["code"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    with pytest.raises(RunFolderError, match=r"version of torch is .*, it was '1.0'"):
        qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path)


def test_a_machine_that_computes_otherwise_is_told(tmp_path, caplog):
    killed(tmp_path, 3)
    path = tmp_path / FINGERPRINT
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"outputs": "0" * 64}))
    with caplog.at_level(logging.WARNING):
        qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path)
    assert "not to the same bytes" in caplog.text


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    killed(tmp_path, 3)
    with pytest.raises(RunFolderError, match="holds another run"):
        qprune.prune(mlp(), INPUTS, **RUN, output_dir=tmp_path)
    with pytest.raises(RunFolderError, match="pass one of them"):
        qprune.prune(mlp(), INPUTS, **RUN, output_dir=tmp_path, resume_from=tmp_path)
    with pytest.raises(RunFolderError, match="is no folder"):
        qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path / "nowhere")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, whole, every_step, caplog):
    killed(tmp_path, 9)
    checkpoints = Checkpoints(tmp_path)
    steps = len(checkpoints.load().steps)
    newest = max(
        (tmp_path / name for name in CHECKPOINTS),
        key=lambda path: len(Snapshot.unpack(path.read_bytes()).steps),
    )
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert len(checkpoints.load().steps) < steps
    assert "digest does not fit" in caplog.text
    model = mlp()
    qprune.prune(model, INPUTS, **RUN, resume_from=tmp_path)
    assert same(whole[0], weights_of(model))


def test_two_damaged_checkpoints_are_refused(tmp_path, every_step):
    killed(tmp_path, 9)
    for name in CHECKPOINTS:
        (tmp_path / name).write_bytes(b"\0" * 100)
    with pytest.raises(RunFolderError, match="no checkpoint can be read"):
        qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path)


def test_half_written_files_are_swept(tmp_path, every_step):
    killed(tmp_path, 3)
    (tmp_path / ".checkpoint.0.safetensors.77.tmp").write_bytes(b"half")
    qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_checkpoints_stay_within_their_share(tmp_path, whole):
    """The run is far too short for a checkpoint to be worth its time."""
    qprune.prune(mlp(), INPUTS, **RUN, output_dir=tmp_path)
    assert not any((tmp_path / name).exists() for name in CHECKPOINTS)


def test_a_folder_in_use_is_refused(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, time\nfrom pathlib import Path\nfrom qprune.folder import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(RunFolderError, match="another process is working"), locked(tmp_path):
            pytest.fail("entered")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with locked(tmp_path):
        pass  # The lock went with its process.
