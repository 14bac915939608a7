"""Files that are whole or not there, and a folder that one process at a time works in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from qprune.errors import RunFolderError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else works in ``folder`` meanwhile; the lock ends with the process, however it ends.

    The same thread may enter again.

    Raises:
        RunFolderError: another process is in there, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, blocking=False, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(
            f"another process is working in {folder}; wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise _unwritable(folder / LOCK, error) from error
    try:
        yield
    finally:
        lock.release()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that even a power cut leaves the old one or the new one.

    Written aside, flushed to the disk, renamed, and the folder flushed too.

    Raises:
        RunFolderError: it cannot be written; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        # A read-only disk refuses this too.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that a power cut does not take it away again.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; a power cut may take the last lines, or tear one.

    Raises:
        RunFolderError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def flush_folder(folder: Path) -> None:
    """Make renames in ``folder`` last; where folders cannot be opened (Windows), nothing."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written; only under the lock."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot write {path}: {error.strerror or error}; make room or give rights, then resume"
    )
