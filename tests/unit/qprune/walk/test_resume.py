"""A run stopped at any moment goes on to the bytes of a run that was never stopped."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from odd_samplers import Odd
from small_networks import mlp

import qprune
from qprune import Limits
from qprune.errors import DISK, RunFolderError
from qprune.moving.compensate import Compensation
from qprune.network.statistics import take_again
from qprune.record.checkpoint import CHECKPOINTS, Checkpoints, Snapshot
from qprune.record.folder import CHECKSUMS, FINGERPRINT, REPORT_JSON, STEPS
from solvers.host.disk import LOCK

RUN = {
    "sparsity": 0.5,
    "method": qprune.Networkwise(stages=3, rounds=2, block_size=32),
    "sampler": "greedy",
    "compensate": Compensation(iterations=(2,), final_steps=2),
}
INPUTS = torch.randn(64, 10, generator=torch.Generator().manual_seed(5))


class KilledError(Exception):
    """Raised where a real run would be killed."""


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


def normalised():
    model = mlp()
    model.insert(1, torch.nn.BatchNorm1d(12))
    model = model.eval()
    take_again(model, model, [INPUTS])
    return model


def test_statistics_of_batch_norm_are_resumed_and_put_back(tmp_path, every_step):
    options = RUN | {"compensate": qprune.Distillation(20, 32), "augment": None}
    options |= {"method": qprune.Networkwise(stages=3, rounds=0, final_rounds=0)}
    model = normalised()
    dense = weights_of(model)
    qprune.prune(model, INPUTS, **options)
    for at in (1, 2, 4):

        def observe(step, at=at):
            if step.index == at:
                raise KilledError

        folder, again = tmp_path / str(at), normalised()
        with pytest.raises(KilledError):
            qprune.prune(again, INPUTS, **options, output_dir=folder, observe=observe)
        assert same(dense, weights_of(again))
        qprune.prune(again, INPUTS, **options, resume_from=folder)
        assert same(weights_of(model), weights_of(again)), f"killed at step {at}"
    moved = {
        name for name, value in model.state_dict().items() if not same({0: dense[name]}, {0: value})
    }
    assert {"1.running_mean", "1.running_var", "1.weight", "1.bias"} < moved
    assert not moved & {"0.bias", "3.bias", "1.num_batches_tracked"}


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
            limits=Limits(should_stop=lambda count=count: next(count, None) is None),
        )
        assert stopped.report.stopped == "interrupted"
        assert stopped.report.achieved_sparsity == 0.5
        model = mlp()
        qprune.prune(model, INPUTS, **RUN, resume_from=folder)
        assert same(whole[0], weights_of(model)), f"stopped at question {calls}"


def test_time_spent_before_counts(tmp_path, every_step):
    killed(tmp_path, 5)
    used = Checkpoints(tmp_path).load().seconds
    limits = Limits(max_seconds=used / 2)
    again = qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path, limits=limits)
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
    assert "checksum is wrong" in caplog.text
    model = mlp()
    qprune.prune(model, INPUTS, **RUN, resume_from=tmp_path)
    assert same(whole[0], weights_of(model))


def test_two_damaged_checkpoints_are_refused(tmp_path, every_step):
    killed(tmp_path, 9)
    for name in CHECKPOINTS:
        (tmp_path / name).write_bytes(b"\0" * 100)
    with pytest.raises(RunFolderError, match="no checkpoint can be read"):
        qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path)


def test_half_written_files_are_swept_and_others_stay(tmp_path, every_step):
    killed(tmp_path, 3)
    (tmp_path / ".checkpoint.0.safetensors.77.tmp").write_bytes(b"half")
    (tmp_path / ".notes.tmp").write_bytes(b"mine")
    qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path)
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".notes.tmp"]


@pytest.mark.parametrize("present", [(STEPS,), CHECKPOINTS[:1], CHECKPOINTS[1:]])
def test_without_its_fingerprint_nothing_of_a_run_is_taken_for_its_own(
    tmp_path, every_step, present
):
    killed(tmp_path, 5)
    for name in {FINGERPRINT, STEPS, *CHECKPOINTS} - {*present}:
        (tmp_path / name).unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunFolderError, match=rf"fingerprint.json is missing.*{present[0]}"):
        qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_killed_before_its_fingerprint_starts_again(tmp_path, whole):
    with DISK.locked(tmp_path):
        pass
    model = mlp()
    qprune.prune(model, INPUTS, **RUN, resume_from=tmp_path)
    assert same(whole[0], weights_of(model))
    assert (tmp_path / FINGERPRINT).exists()


@pytest.mark.parametrize("replaced", [CHECKPOINTS, CHECKPOINTS[:1], CHECKPOINTS[1:]])
def test_checkpoints_of_another_run_are_refused_by_name(tmp_path, every_step, replaced):
    own, other = tmp_path / "own", tmp_path / "other"
    killed(own, 5)
    killed(other, 5, seed=1)
    for name in (REPORT_JSON, CHECKSUMS):
        (own / name).write_text("an outcome so far")
    for name in replaced:
        (own / name).write_bytes((other / name).read_bytes())
    refused = pytest.raises(RunFolderError, match=rf"{replaced[0]} is a checkpoint of another run")
    with refused:
        qprune.prune(mlp(), INPUTS, **RUN, resume_from=own)
    assert (own / REPORT_JSON).exists(), "what there was is lost"
    # With its fingerprint too, it is the other run's folder, and the settings do not fit.
    (own / FINGERPRINT).write_bytes((other / FINGERPRINT).read_bytes())
    with pytest.raises(RunFolderError, match="setting seed is 0, it was 1"):
        qprune.prune(mlp(), INPUTS, **RUN, resume_from=own)


def test_limits_of_time_may_change_between_checkpoints(tmp_path, whole, every_step):
    killed(tmp_path, 5, limits=Limits(max_seconds=1e6))
    model = mlp()
    qprune.prune(model, INPUTS, **RUN, resume_from=tmp_path, limits=Limits(max_memory=1e12))
    assert same(whole[0], weights_of(model))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", [*CHECKPOINTS, FINGERPRINT])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, every_step, name, make):
    killed(tmp_path, 5)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(RunFolderError, match=f"{name} is a (pipe|directory), where a file"):
        qprune.prune(mlp(), INPUTS, **RUN, resume_from=tmp_path)


class Closer(Odd):
    """Closes descriptors that are not its own, in its third call."""

    def __init__(self, close):
        self.calls, self._close = 0, close

    def sample(self, bqm, num_reads=1, seed=None):
        self.calls += 1
        if self.calls == 3:
            self._close()
        return super().sample(bqm, num_reads, seed)


def test_a_sampler_that_closes_the_lock_ends_the_run_in_order(tmp_path, every_step):
    def close():
        inode = (tmp_path / LOCK).stat().st_ino
        for number in range(3, 256):
            with contextlib.suppress(OSError):
                if os.fstat(number).st_ino == inode:
                    os.close(number)

    model, asked = mlp(), RUN | {"sampler": Closer(close)}
    dense = weights_of(model)
    with pytest.raises(RunFolderError, match=r"the lock of .* is gone: .* sampler"):
        qprune.prune(model, INPUTS, **asked, output_dir=tmp_path)
    assert same(dense, weights_of(model))
    steps = (tmp_path / STEPS).read_text()
    assert steps.endswith("\n")
    # What there is can be gone on with, to the bytes of a run in which nobody closed anything.
    honest = RUN | {"sampler": Closer(lambda: None)}
    again, undisturbed = mlp(), mlp()
    qprune.prune(again, INPUTS, **honest, resume_from=tmp_path)
    qprune.prune(undisturbed, INPUTS, **honest)
    assert same(weights_of(again), weights_of(undisturbed))


def test_a_sampler_that_closes_everything_ends_the_run_in_order(tmp_path):
    """In a process of its own, since the others need their descriptors."""
    code = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[3])]!r}
import torch
from qprune.errors import QpruneError
from test_resume import INPUTS, RUN, Closer, mlp, qprune, same, weights_of
torch.set_num_threads(1)
model = mlp()
dense = weights_of(model)
close = lambda: os.closerange(3, 4096)
try:
    qprune.prune(model, INPUTS, **RUN | {{"sampler": Closer(close)}}, output_dir={str(tmp_path)!r})
except QpruneError as error:
    print(error, same(dense, weights_of(model)), sep="|")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    told = done.stdout.strip().split("|")
    assert "is gone" in told[0], done.stderr
    assert told[1] == "True"


def test_checkpoints_stay_within_their_share(tmp_path, whole):
    """The run is far too short for a checkpoint to be worth its time."""
    run = RUN | {"method": qprune.Networkwise(stages=1, rounds=0)}
    qprune.prune(mlp(), INPUTS, **run, output_dir=tmp_path)
    assert not any((tmp_path / name).exists() for name in CHECKPOINTS)


def test_a_folder_in_use_is_refused(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom qprune.errors import DISK\n"
        f"with DISK.locked(Path({str(tmp_path)!r})):\n    print('in', flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(RunFolderError, match="another process is working"),
            DISK.locked(tmp_path),
        ):
            pytest.fail("entered")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with DISK.locked(tmp_path):
        pass  # The lock went with its process.
