"""Full disks, read-only folders and changed bytes. In short: the long version is
`benchmarks.reliability.storage`."""

import errno
import random

import pytest
import torch
from rich.progress import Progress

import qprune.jobs.job
from benchmarks.reliability.file_steps import WRITING, FileSteps, failing
from benchmarks.reliability.storage import (
    Drill,
    changed_bytes,
    full_disk,
    small_disks,
    small_files,
    without_rights,
)
from qprune.errors import DISK
from qprune.record.checkpoint import Checkpoints


@pytest.fixture
def drill(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "offer", Checkpoints.write)
    monkeypatch.setattr(qprune.jobs.job, "render_html", lambda report, **more: "<html>")
    assert torch.get_num_threads() == 1
    return Drill(tmp_path)


@pytest.fixture
def report():
    return Progress(disable=True)


def test_a_disk_that_fills_up(drill, report):
    # Not the last call, which makes a folder that is there already and may fail.
    full_disk(drill, 32, report)
    assert drill.wrong == []
    assert drill.counts["refused"] == drill.counts["done"] > 3


def test_rights_that_are_taken_away(drill, report):
    without_rights(drill, 40, report)
    assert drill.wrong == []
    assert drill.counts["refused"] == drill.counts["done"] > 3


def test_files_that_cannot_grow_and_disks_that_are_too_small(drill, report):
    small_files(drill, report, sizes=(1, 40))
    small_disks(drill, report, sizes=(8, 72))
    assert drill.wrong == []
    assert drill.counts["refused"] >= 2


def test_bytes_that_have_changed(drill, report):
    changed_bytes(drill, 30, random.Random(1), report)
    assert drill.wrong == []
    assert drill.counts["named by verify"] > 5


def test_the_drill_sees_what_goes_wrong(drill, tmp_path):
    """A run that ends in other bytes, and a failure that is no refusal."""
    (drill.stopped / "mask.safetensors").write_bytes(b"other")
    drill.same("other bytes", drill.stopped)

    def unexpected():
        raise KeyError("x")

    drill.attempt("unexpected", unexpected)
    assert len(drill.wrong) == 2


def test_the_disk_of_the_drill_fills_up(tmp_path):
    # Opening, the first half, the second.
    full = FileSteps(tmp_path, failing(3, errno.ENOSPC), WRITING)
    with full(), pytest.raises(OSError, match="No space left"):
        DISK.write_whole(tmp_path / "file", b"0123456789")
    assert [step.split()[0] for step in full.taken] == ["open", "write", "half"]
    assert not list(tmp_path.iterdir())
