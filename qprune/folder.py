"""Files that are whole or not there, and a folder that one process at a time works in."""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock, Timeout

from qprune.errors import RunFolderError

LOCK = ".lock"

# ``.NAME.PID.tmp``, as `write_whole` names what is not whole yet.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp", re.DOTALL)
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else works in ``folder`` meanwhile; the lock ends with the process, however it ends.

    The same thread may enter again.

    Raises:
        RunFolderError: another process is in there, the folder cannot be written, or the lock was
            lost inside (see `require_locked`).
    """
    refuse_irregular([folder / LOCK])
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
        require_locked(folder)
    finally:
        # A descriptor that something else has closed cannot be closed again.
        with suppress(OSError):
            lock.release()


def require_locked(folder: Path) -> None:
    """Refuse to go on where the lock that this process holds on ``folder`` is gone.

    Code of the user's own may have closed its descriptor, or removed its file: from then on
    another process can work in the folder.

    Raises:
        RunFolderError: it is gone.
    """
    # A second descriptor gets the lock only where the first one has lost it.
    probe = FileLock(folder / LOCK, blocking=False, is_singleton=False)
    try:
        probe.acquire()
    except Timeout:
        return
    except OSError as error:
        raise _unwritable(folder / LOCK, error) from error
    probe.release()
    raise RunFolderError(
        f"the lock of {folder} is gone: code in this process, such as a sampler, has closed "
        "descriptors that are not its own, or removed the file; mend that, then resume"
    )


def kind_of(path: Path) -> str | None:
    """Words for what ``path`` is in the end; None where nothing is there or it is a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link that leads nowhere" if os.path.islink(path) else None  # noqa: PTH114
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def regular(path: Path) -> Path:
    """``path``, if it ends in a regular file: opening it neither waits nor does anything.

    For readers that want a path; others use `read_regular`.

    Raises:
        RunFolderError: a pipe, a directory, a device or a socket is in its place.
        OSError: it cannot be opened.
    """
    os.close(_opened(path))
    return path


def read_regular(path: Path) -> bytes:
    """The content of a regular file, however many links lead to it.

    Raises:
        RunFolderError: a pipe, a directory, a device or a socket is in its place.
        OSError: it cannot be read.
    """
    with os.fdopen(_opened(path), "rb") as file:
        return file.read()


def refuse_irregular(paths: Iterable[Path]) -> None:
    """Refuse what is there and ends in no regular file.

    Raises:
        RunFolderError: names the first.
    """
    for path in paths:
        kind = kind_of(path)
        if kind is not None:
            raise _irregular(path, kind)


def _opened(path: Path) -> int:
    # Not even opened, since with some devices that alone does something.
    refuse_irregular([path])
    # Between the two it may have become a pipe, whose opening would wait.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _irregular(path, "no regular file")
    return handle


def _irregular(path: Path, kind: str) -> RunFolderError:
    return RunFolderError(f"{path} is {kind}, where a file is expected; move it away")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that even a power cut leaves the old one or the new one.

    Written aside, flushed to the disk, renamed, and the folder flushed too.

    Raises:
        RunFolderError: it cannot be written; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A process of the same number may have been killed here before.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
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
        refuse_irregular([path])
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except RunFolderError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error


def remove(paths: Iterable[Path]) -> None:
    """Remove files, those that are there.

    Raises:
        RunFolderError: one cannot be removed; a directory never is.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            kind = kind_of(path)
            raise _irregular(path, kind) if kind else _unwritable(path, error) from error


def flush_file(path: Path) -> None:
    """Make what was appended to a file last.

    Raises:
        RunFolderError: the disk refuses.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
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


def half_written(folder: Path, names: Iterable[str]) -> list[Path]:
    """What a killed `write_whole` left of files with these names, which may have wildcards."""
    names = tuple(names)
    found = []
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        ours = match is not None and any(fnmatchcase(match["name"], name) for name in names)
        if ours and path.is_file() and not path.is_symlink():
            found.append(path)
    return sorted(found)


def asides(folder: Path) -> list[Path]:
    """Neighbours of ``folder`` that a killed process filled to take its place; see `aside_of`."""
    pattern = re.compile(re.escape(f".{folder.absolute().name}.") + r"\d+\.aside", re.DOTALL)
    found = folder.absolute().parent.glob(glob.escape(f".{folder.absolute().name}.") + "*.aside")
    return sorted(path for path in found if pattern.fullmatch(path.name) and path.is_dir())


def aside_of(folder: Path) -> Path:
    """Where this process puts what will take its place in ``folder``."""
    return folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.aside")


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process left half written of ``names``, and beside ``folder``.

    Nothing else, whatever it is called. Only under the lock.

    Raises:
        RunFolderError: it cannot be removed.
    """
    remove(half_written(folder, names))
    for left in asides(folder):
        try:
            shutil.rmtree(left)
        except OSError as error:
            raise _unwritable(left, error) from error


def _unwritable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot write {path}: {error.strerror or error}; make room or give rights, then resume"
    )
