"""Files of a run's folder: opened only if they are files, removed only if they are ours."""

import os
import socket

import numpy as np
import pytest

from qprune.errors import DISK, RunFolderError
from solvers import QuadraticProblem, read_problem, write_problem
from solvers.errors import StorageError
from solvers.host.disk import (
    LOCK,
    Disk,
    asides,
    bits_of,
    half_written,
    hex_of,
    read_json,
    strict_json,
)


def make_socket(path):
    os.chdir(path.parent)  # Names of sockets are short.
    socket.socket(socket.AF_UNIX).bind(path.name)


ODD = {
    "a pipe": os.mkfifo,
    "a directory": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": make_socket,
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_no_file_is_refused_by_name_and_without_waiting(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    ODD[kind](path)
    for reader in (DISK.read_regular, DISK.regular, lambda path: DISK.append_line(path, "x")):
        with pytest.raises(RunFolderError, match=f"{path} is {kind}, where a file is expected"):
            reader(path)


def test_links_that_end_in_a_file_are_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "one").symlink_to("file")
    (tmp_path / "two").symlink_to("one")
    assert DISK.read_regular(tmp_path / "two") == b"content"
    assert DISK.regular(tmp_path / "two") == tmp_path / "two"
    with pytest.raises(FileNotFoundError):
        DISK.read_regular(tmp_path / "none")


def test_a_pipe_that_comes_between_looking_and_opening_is_refused_too(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "file")
    monkeypatch.setattr(type(DISK), "refuse_irregular", lambda disk, paths: None)
    with pytest.raises(RunFolderError, match="no regular file"):
        DISK.read_regular(tmp_path / "file")


def test_only_what_is_ours_is_swept(tmp_path):
    folder = tmp_path / "run[1]"
    folder.mkdir()
    ours = [".report.json.12.tmp", ".model-00001-of-00002.safetensors.3.tmp"]
    theirs = [
        *(".notes.tmp", ".report.json.tmp", "report.json.12.tmp", ".results.csv.12.tmp"),
        *(".report.json.x.tmp", ".report.json.12.tmp~", "report.json"),
    ]
    for name in (*ours, *theirs):
        (folder / name).write_text(name)
    (folder / ".config.yaml.4.tmp").mkdir()
    (folder / ".config.yaml.5.tmp").symlink_to("report.json")
    (tmp_path / ".run[1].77.aside").mkdir()
    (tmp_path / ".run[1].77.aside" / "model.safetensors").write_text("half")
    for name in (".run[1].x.aside", ".run1.77.aside", ".run[1].78.asides"):
        (tmp_path / name).mkdir()
    names = ("report.json", "config.yaml", "model-*.safetensors")
    assert [path.name for path in half_written(folder, names)] == sorted(ours)
    assert [path.name for path in asides(folder)] == [".run[1].77.aside"]
    DISK.sweep(folder, names)
    left = {*theirs, ".config.yaml.4.tmp", ".config.yaml.5.tmp"}
    assert {path.name for path in folder.iterdir()} == left
    beside = {"run[1]", ".run[1].x.aside", ".run1.77.aside", ".run[1].78.asides"}
    assert {path.name for path in tmp_path.iterdir()} == beside


def test_a_directory_is_never_removed(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(RunFolderError, match="file is a directory, where a file is expected"):
        DISK.remove([tmp_path / "none", tmp_path / "file"])
    assert (tmp_path / "file").is_dir()


def test_a_leftover_of_the_same_process_number_is_no_obstacle(tmp_path):
    (tmp_path / f".file.{os.getpid()}.tmp").write_text("half")
    DISK.write_whole(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"new")]


def close_the_lock(folder):
    inode = (folder / LOCK).stat().st_ino
    for number in range(3, 256):
        try:
            if os.fstat(number).st_ino == inode:
                os.close(number)
        except OSError:
            continue


def remove_the_lock(folder):
    (folder / LOCK).unlink()


@pytest.mark.parametrize("lose", [close_the_lock, remove_the_lock])
def test_a_lost_lock_is_noticed_and_can_be_had_again(tmp_path, lose):
    def inside():
        with DISK.locked(tmp_path):
            DISK.require_locked(tmp_path)  # It is there.
            with DISK.locked(tmp_path):
                lose(tmp_path)

    with pytest.raises(RunFolderError, match=r"the lock of .* is gone"):
        inside()
    with DISK.locked(tmp_path):
        DISK.require_locked(tmp_path)


def test_what_went_wrong_inside_counts_more_than_the_lock(tmp_path):
    def inside():
        with DISK.locked(tmp_path):
            close_the_lock(tmp_path)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        inside()


def test_every_package_has_its_own_error_and_advice(tmp_path):
    for disk, error, advice in (
        (DISK, RunFolderError, "free space or grant access, then resume"),
        (Disk(), StorageError, "free space or grant access"),
    ):
        with pytest.raises(error) as refused:
            disk.write_whole(tmp_path / "none" / "file", b"")
        assert type(refused.value) is error
        expected = f"cannot write {tmp_path}/none/file: No such file or directory; {advice}"
        assert str(refused.value) == expected
    assert issubclass(RunFolderError, StorageError)


@pytest.mark.parametrize("size", [0, 1, 8, 9, 21])
def test_bits_are_read_as_they_were_written(size):
    bits = np.random.default_rng(size).integers(0, 2, size).astype(np.int8)
    assert bits_of(hex_of(bits), size).tolist() == bits.tolist()
    with pytest.raises(ValueError, match=f"are not those of {size + 8} variables"):
        bits_of(hex_of(bits), size + 8)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", str(2**63), "[" * 100_000, "{"])
def test_json_that_is_not_strict_is_refused(text):
    with pytest.raises(ValueError, match=r"JSON|64 bits|deeply|Expecting"):
        read_json(text)


def test_numbers_that_strict_json_has_not_are_replaced():
    value = {"a": np.float64("nan"), "b": (np.int8(1), np.arange(2)), 3: 2**70, "c": np.inf}
    assert read_json(strict_json(value)) == {
        "a": None,
        "b": [1, [0, 1]],
        "3": str(2**70),
        "c": None,
    }


def test_a_problem_is_written_whole_or_to_a_device(tmp_path):
    problem = QuadraticProblem([1.0, -1.0], np.zeros((2, 2)))
    path, link = tmp_path / "two.coo", tmp_path / "link.coo"
    link.symlink_to(path)
    write_problem(problem, link)
    assert link.is_symlink()
    assert read_problem(path).energies([[0, 1]]).tolist() == [-1]
    device = tmp_path / "device.coo"
    device.symlink_to("/dev/null")
    write_problem(problem, device)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["device.coo", "link.coo", "two.coo"]
    with pytest.raises(StorageError, match=r"cannot write .*two\.coo: No such file or directory"):
        write_problem(problem, tmp_path / "none" / "two.coo")
