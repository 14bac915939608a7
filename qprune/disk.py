"""Atomic writing of files, and a lock on a folder."""

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

# ``.NAME.PID.tmp``: temporary files of `write_whole`.
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
    """Lock ``folder`` against other processes within the context; the lock ends with the process.

    The same thread may enter again.

    Raises:
        RunFolderError: another process holds the lock, the folder cannot be written, or the lock
            was lost inside (see `require_locked`).
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
        # The descriptor may have been closed by other code.
        with suppress(OSError):
            lock.release()


def require_locked(folder: Path) -> None:
    """Refuse to go on if this process has lost its lock on ``folder``.

    Code of the user's own may have closed its descriptor, or removed its file: from then on
    another process can work in the folder.

    Raises:
        RunFolderError: the lock is lost.
    """
    # A second descriptor gets the lock only if the first one has lost it.
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
        "descriptors that are not its own, or removed the file; fix that, then resume"
    )


def kind_of(path: Path) -> str | None:
    """Return words for the type of ``path``, links followed; None for a file or nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link that leads nowhere" if os.path.islink(path) else None  # noqa: PTH114
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def regular(path: Path) -> Path:
    """Return ``path`` if it leads to a regular file, which can be opened without waiting.

    For readers that need a path; others use `read_regular`.

    Raises:
        RunFolderError: a pipe, a directory, a device or a socket is in its place.
        OSError: it cannot be opened.
    """
    os.close(_opened(path))
    return path


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; links are followed.

    Raises:
        RunFolderError: a pipe, a directory, a device or a socket is in its place.
        OSError: it cannot be read.
    """
    with os.fdopen(_opened(path), "rb") as file:
        return file.read()


def refuse_irregular(paths: Iterable[Path]) -> None:
    """Refuse paths that exist and lead to no regular file.

    Raises:
        RunFolderError: names the first.
    """
    for path in paths:
        kind = kind_of(path)
        if kind is not None:
            raise _irregular(path, kind)


def _opened(path: Path) -> int:
    # Not opened first, since opening some devices has an effect.
    refuse_irregular([path])
    # It may have become a pipe in between, whose opening would wait.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _irregular(path, "no regular file")
    return handle


def _irregular(path: Path, kind: str) -> RunFolderError:
    return RunFolderError(f"{path} is {kind}, where a file is expected; move it away")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that even a power cut leaves the old one or the new one.

    The content goes to a temporary file, is flushed and renamed; the folder is flushed too.

    Raises:
        RunFolderError: it cannot be written; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A killed process with the same id may have left one.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        # Fails on a read-only disk too.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, flushed to the disk.

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
    """Remove files that exist.

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
    """Flush a file to the disk.

    Raises:
        RunFolderError: the disk refuses.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def flush_folder(folder: Path) -> None:
    """Flush renames in ``folder`` to the disk; does nothing on Windows."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def half_written(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return temporary files that a killed `write_whole` left, by names with wildcards."""
    names = tuple(names)
    found = []
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        ours = match is not None and any(fnmatchcase(match["name"], name) for name in names)
        if ours and path.is_file() and not path.is_symlink():
            found.append(path)
    return sorted(found)


def asides(folder: Path) -> list[Path]:
    """Return temporary folders beside ``folder`` that a killed process left; see `aside_of`."""
    pattern = re.compile(re.escape(f".{folder.absolute().name}.") + r"\d+\.aside", re.DOTALL)
    found = folder.absolute().parent.glob(glob.escape(f".{folder.absolute().name}.") + "*.aside")
    return sorted(path for path in found if pattern.fullmatch(path.name) and path.is_dir())


def aside_of(folder: Path) -> Path:
    """Return the temporary folder of this process beside ``folder``."""
    return folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.aside")


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Remove temporary files of ``names``, and folders beside ``folder``, of a killed process.

    Only under the lock.

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
        f"cannot write {path}: {error.strerror or error}; free space or grant access, then resume"
    )
