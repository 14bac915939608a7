"""What a run leaves on disk, and how it reads back."""

import dataclasses
import hashlib
import json
import math
import os
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.reliability.file_steps import FileSteps, failing
from qprune.errors import DISK, RunFolderError
from qprune.jobs.audit import kept_zeros
from qprune.jobs.settings import make_settings, read_run, read_settings
from qprune.record.checkpoint import CHECKPOINTS
from qprune.record.folder import (
    CHECKSUMS,
    CONFIG,
    FILES,
    FINGERPRINT,
    REPORT_HTML,
    REPORT_JSON,
    SCORES,
    STEPS,
    opened,
    read_checksums,
    read_scores,
    read_steps,
    stopped_by,
    tidy,
)
from qprune.results import (
    BlockRecord,
    LayerRecord,
    Report,
    Score,
    ScorePoint,
    Step,
    report_from_json,
    step_from_json,
)
from solvers.host.disk import LOCK, make_folder, strict_json

SETTINGS = make_settings({"model": "digits-mlp", "data": "digits", "sparsity": 0.5, "seed": 7})


def make_step(index=0, **changes):
    block = BlockRecord(8, 4, {"fc1.weight": 8}, "relax", -0.2, -math.inf, 2, 0.01, {"reads": 1})
    step = Step(
        index=index,
        stage=0,
        round=1,
        kind="blocks",
        sparsity=0.5,
        accepted=True,
        predicted=-0.2,
        real=-0.1,
        loss=0.4,
        fit_loss=0.5,
        flips=2,
        price=1e-4,
        blocks=(block,),
        seconds={"solve": 0.01},
        cpu_seconds=0.02,
    )
    return dataclasses.replace(step, **changes)


def make_report(steps=(), **changes):
    report = Report(
        asked_sparsity=0.5,
        achieved_sparsity=0.5,
        layers=(LayerRecord("fc1.weight", (2, 4), 8, 4),),
        steps=tuple(steps),
        settings={"sampler": "relax"},
        seed=7,
        seconds=1.0,
        cpu_seconds=0.9,
        dense=Score(0.9, 0.2),
        final=Score(None, 0.3),
    )
    return dataclasses.replace(report, **changes)


@contextmanager
def new_run(path):
    """The folder of a new run, with its settings."""
    with opened(path) as folder:
        folder.write_settings(SETTINGS.to_yaml())
        yield folder


def note(folder, *steps):
    """Write journal lines as a run does."""
    for step in steps:
        DISK.append_line(folder.path / STEPS, strict_json(step.to_json()))


def test_a_report_survives_json():
    report = make_report([make_step(0), make_step(1, predicted=None)])
    assert report_from_json(json.loads(strict_json(report.to_json()))) == report


def test_numbers_that_json_lacks_become_null_and_come_back():
    step = make_step(real=math.nan, loss=math.inf)
    text = strict_json(step.to_json())
    assert "NaN" not in text
    assert "Infinity" not in text
    back = step_from_json(json.loads(text))
    assert math.isnan(back.real)
    assert math.isnan(back.loss)
    assert back.blocks[0].lower_bound == -math.inf


def test_the_journal_has_every_step_as_it_happens(tmp_path):
    with new_run(tmp_path / "run") as folder:
        for index in range(3):
            note(folder, make_step(index))
            assert len(read_steps(folder.path)) == index + 1
    assert read_steps(tmp_path / "run") == tuple(make_step(i) for i in range(3))


def test_an_unfinished_run_reads_as_far_as_it_came(tmp_path):
    def stopped_by_hand():
        with new_run(tmp_path / "run") as folder:
            note(folder, make_step(0, sparsity=0.3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_by_hand()
    saved = read_run(tmp_path / "run")
    assert saved.settings == SETTINGS
    assert saved.report.stopped == "unfinished"
    assert saved.report.achieved_sparsity == 0.3
    assert len(saved.report.steps) == 1


def test_a_finished_run_reads_back_whole(tmp_path):
    model = nn.Sequential(nn.Linear(4, 2))
    mask = {"0.weight": torch.tensor([[True, False, True, False]] * 2)}
    report = make_report([make_step()])
    points = (ScorePoint(0, Score(0.5, 1.0)),)
    with new_run(tmp_path / "run") as folder:
        note(folder, make_step())
        folder.save(model, mask, report, points, "<html>")
    assert {path.name for path in folder.path.iterdir()} == {*FILES, LOCK} - {FINGERPRINT}
    saved = read_run(folder.path)
    assert (saved.settings, saved.report, saved.scores) == (SETTINGS, report, points)


def test_tied_weights_are_saved(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with new_run(tmp_path) as folder:
        folder.save(model, {"0.weight": torch.ones(2, 2, dtype=torch.bool)}, make_report(), (), "")
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_another_run_is_refused_and_untouched(tmp_path, name):
    (tmp_path / name).write_text("theirs")
    with pytest.raises(RunFolderError, match="holds another run"), new_run(tmp_path):
        pytest.fail("entered")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    refused = pytest.raises(RunFolderError, match="cannot write the output folder")
    with refused, new_run(tmp_path / "run"):
        pytest.fail("entered")


def test_a_run_that_fails_before_its_first_step_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="bad"), new_run(tmp_path / "run"):
        raise ValueError("bad")
    assert not (tmp_path / "run").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="bad"), new_run(tmp_path):
        raise ValueError("bad")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFolderError, match=r"cannot write .*file: No space left"):
        DISK.write_whole(target, b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_a_power_cut_leaves_the_old_file_or_the_new(tmp_path, monkeypatch):
    """The content is on the disk before its name is, and the name before the call returns."""
    order = []
    synced, renamed = os.fsync, Path.replace

    def fsync(handle):
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        synced(handle)

    def replace(path, target):
        order.append("rename")
        return renamed(path, target)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    DISK.write_whole(tmp_path / "file", b"new")
    assert order == ["content", "rename", "folder"]
    order.clear()
    make_folder(tmp_path / "a" / "b")
    assert order == ["folder", "folder"]
    assert (tmp_path / "a" / "b").is_dir()


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    with new_run(tmp_path / "run") as folder:
        note(folder, make_step(0), make_step(1))
    journal = tmp_path / "run" / STEPS
    journal.write_bytes(journal.read_bytes()[:-20])
    assert read_steps(tmp_path / "run") == (make_step(0),)
    assert len(read_run(tmp_path / "run").report.steps) == 1


def test_the_checksums_are_those_of_sha256sum(tmp_path):
    with new_run(tmp_path / "run") as folder:
        note(folder, make_step())
        mask = {"weight": torch.ones(2, 4, dtype=torch.bool)}
        folder.save(nn.Linear(4, 2), mask, make_report(), (), "<html>")
    told = (tmp_path / "run" / CHECKSUMS).read_text()
    for line in told.splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "run" / name).read_bytes()).hexdigest() == digest
    assert {*told.split()[1::2]} == {*FILES} - {CHECKSUMS, FINGERPRINT}


class DeathError(BaseException):
    """Raised where a real run would be killed; nobody catches it, and nothing is tidied for it."""


def begun(place):
    """A run's folder as it is when the run has taken its last step, and what it then writes."""
    with new_run(place / "run") as folder:
        note(folder, make_step())
        for name in (FINGERPRINT, *CHECKPOINTS):
            (folder.path / name).write_text(name)
    return folder


def outcome(**changes):
    torch.manual_seed(0)
    mask = {"weight": torch.ones(2, 4, dtype=torch.bool)}
    return nn.Linear(4, 2), mask, make_report([make_step()], **changes), (), "<html>"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stopped", ["done", "interrupted"])
def test_wherever_finishing_dies_a_run_is_whole_or_unfinished(tmp_path, stopped):
    folder = begun(tmp_path / "whole")
    with FileSteps(tmp_path / "whole")() as counted:
        folder.save(*outcome(stopped=stopped))
    whole = content(folder.path)
    assert ({*CHECKPOINTS} <= {*whole}) == (stopped == "interrupted")
    # Six files of seven steps each, the journal opened and flushed, and the checkpoints.
    assert len(counted.taken) == 6 * 7 + 2 + (2 if stopped == "done" else 0)
    finished = 0
    for at in range(1, len(counted.taken) + 1):

        def die(number, at=at):
            if number == at:
                raise DeathError

        place = tmp_path / str(at)
        folder = begun(place)
        with FileSteps(place, die)(), pytest.raises(DeathError):
            folder.save(*outcome(stopped=stopped))
        if stopped_by(folder.path) == "unfinished":
            # Whoever goes on finds nothing half written, and no outcome but the one that it makes.
            with opened(resume_from=folder.path) as folder:
                assert not list(folder.path.glob(".*.tmp"))
                assert {*CHECKPOINTS} <= {*content(folder.path)}
                folder.save(*outcome(stopped=stopped))
        else:
            finished += 1
            tidy(folder.path)
        assert content(folder.path) == whole, counted.taken[at - 1]
    # After the report has its name: flushing the folder, and removing two checkpoints.
    assert finished == (3 if stopped == "done" else 1)


def test_a_failed_end_leaves_a_run_to_go_on_with(tmp_path):
    for at in range(1, 42, 4):
        folder = begun(tmp_path / str(at))
        with FileSteps(folder.path, failing(at, 28))(), pytest.raises(RunFolderError) as refused:
            folder.save(*outcome())
        assert "No space left" in str(refused.value)
        assert stopped_by(folder.path) == "unfinished"
        assert {CONFIG, FINGERPRINT, STEPS, *CHECKPOINTS} <= {*content(folder.path)}


def test_a_report_without_checksums_is_no_finished_run(tmp_path):
    folder = begun(tmp_path)
    folder.save(*outcome())
    assert stopped_by(folder.path) == "done"
    (folder.path / CHECKSUMS).unlink()
    assert stopped_by(folder.path) == "unfinished"


def test_tidying_takes_only_what_is_left_over(tmp_path):
    folder = begun(tmp_path)
    folder.save(*outcome())
    for name in (*CHECKPOINTS, f".{REPORT_JSON}.17.tmp", ".notes.tmp", "notes.txt"):
        (folder.path / name).write_text("left")
    (tmp_path / ".run.12.aside").mkdir()
    tidy(folder.path)
    assert {*content(folder.path)} == {*FILES, LOCK, ".notes.tmp", "notes.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (folder.path / CHECKPOINTS[0]).mkdir()
    with pytest.raises(RunFolderError, match=f"{CHECKPOINTS[0]} is a directory"):
        tidy(folder.path)
    (folder.path / CHECKPOINTS[0]).rmdir()
    (folder.path / FINGERPRINT).unlink()
    with pytest.raises(RunFolderError, match=r"finished, but its fingerprint\.json is missing"):
        tidy(folder.path)


def test_a_page_written_again_has_its_checksum(tmp_path):
    folder = begun(tmp_path)
    folder.save(*outcome())
    before = read_checksums(folder.path)
    with FileSteps(tmp_path)() as counted:
        folder.write_page("<html>another")
    after = read_checksums(folder.path)
    assert after[REPORT_HTML] == hashlib.sha256(b"<html>another").hexdigest()
    assert before | {REPORT_HTML: after[REPORT_HTML]} == after
    for at in range(1, len(counted.taken) + 1):

        def die(number, at=at):
            if number == at:
                raise DeathError

        folder.write_page("<html>")
        with FileSteps(tmp_path, die)(), pytest.raises(DeathError):
            folder.write_page("<html>another")
        # Perhaps none, never a wrong one.
        digest = hashlib.sha256((folder.path / REPORT_HTML).read_bytes()).hexdigest()
        assert read_checksums(folder.path).get(REPORT_HTML, digest) == digest


def test_zeros_among_kept_weights_are_counted_where_the_report_counts_them():
    def told(**zeros):
        layer = LayerRecord("fc1", (2, 4), 8, 4, parameter="fc1.weight", **zeros)
        return make_report(layers=(layer,), zeros_before=3)

    weights = {"fc1.weight": torch.tensor([[0.0, 0, 0, 0], [1, -0.0, 2, 3]])}

    def found(**zeros):
        return [(one.contradicts, one.line) for one in kept_zeros(weights, told(**zeros))]

    for wrong in (4, 6):
        assert found(num_zero=wrong)[0][0]
    weights["fc1.weight"][1, 1] = 1.0
    assert found(num_zero=4) == []
    weights["fc1.weight"][1, 1] = 0.0
    ((contradicts, line),) = found(num_zero=5)
    assert not contradicts
    assert "1 weights that the mask keeps are zero" in line
    ((contradicts, line),) = found()
    assert not contradicts
    assert "did not count zeros" in line


@pytest.mark.parametrize(
    "line", ["0123  ../model.safetensors", "0123 model.safetensors", "0123  ", "  x", "0123  a/b"]
)
def test_checksums_of_anything_but_the_folders_files_are_refused(tmp_path, line):
    (tmp_path / CHECKSUMS).write_text(f"ab  {CONFIG}\n{line}\n")
    with pytest.raises(RunFolderError, match="no checksum of a file in the folder"):
        read_checksums(tmp_path)


@pytest.mark.parametrize("name", [*FILES, *CHECKPOINTS])
def test_every_reader_refuses_what_is_no_file(tmp_path, name):
    folder = begun(tmp_path)
    folder.save(*outcome())
    (folder.path / name).unlink(missing_ok=True)
    os.mkfifo(folder.path / name)
    for reader in (read_settings, read_run, tidy):
        with pytest.raises(RunFolderError, match=f"{name} is a pipe"):
            reader(folder.path)
    for one, reader in (
        (SCORES, read_scores),
        (STEPS, read_steps),
        (CHECKSUMS, read_checksums),
        (REPORT_JSON, stopped_by),
    ):
        if one == name:
            with pytest.raises(RunFolderError, match=f"{name} is a pipe"):
                reader(folder.path)


@pytest.mark.parametrize(
    ("name", "text"), [(CONFIG, "a: b"), (STEPS, "{}\n"), (STEPS, "no json\n")]
)
def test_an_unreadable_run_is_refused_by_name(tmp_path, name, text):
    with new_run(tmp_path / "run") as folder:
        note(folder, make_step())
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(RunFolderError, match="does not hold a readable run"):
        read_run(tmp_path / "run")


def test_a_run_killed_before_its_first_step_is_refused_by_name(tmp_path):
    (tmp_path / CONFIG).write_text(SETTINGS.to_yaml())
    with pytest.raises(RunFolderError, match=r"does not hold a readable run.*steps\.jsonl"):
        read_run(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        read_run(tmp_path)
