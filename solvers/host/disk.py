"""Files that are whole or not there, strict JSON, and a lock on a folder.

What can fail for a reason that a user can mend is a method of `Disk`, which raises the error of
the package that asks. Functions raise `OSError` or nothing.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike, NDArray

from solvers.errors import StorageError
from solvers.host.secrets import without_secrets

LOCK = ".lock"

_INT64 = -(2**63), 2**63 - 1
# ``.NAME.PID.tmp``: temporary files of `Disk.write_whole`.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp", re.DOTALL)
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# --- strict JSON


def strict_json(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """Return ``value`` as standard JSON.

    NaN and infinities become null, integers beyond 64 bits text; secrets are left out (see
    `solvers.host.secrets`).

    Example:
        >>> strict_json({"loss": float("nan")})
        '{"loss": null}'
    """
    plain = without_secrets(_plain(value))
    return json.dumps(plain, allow_nan=False, indent=indent, sort_keys=sort_keys)


def read_json(text: str | bytes) -> Any:
    """Parse strict JSON: no NaN, and no integer beyond 64 bits.

    Raises:
        ValueError: the text is not such JSON.
    """
    try:
        return json.loads(
            text, parse_int=_whole_number, parse_float=_number, parse_constant=_number
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _whole_number(text: str) -> int:
    number = int(text)
    if not _INT64[0] <= number <= _INT64[1]:
        raise ValueError(f"{text[:20]} does not fit 64 bits")
    return number


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number in JSON")
    return number


def _plain(value: Any) -> Any:
    """Return plain JSON values for arrays, their scalars, and non-finite numbers."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast(Sequence[Any], value)]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not _INT64[0] <= value <= _INT64[1]:
        return str(value)
    return value if value is None or isinstance(value, int | str) else str(value)


def hex_of(bits: ArrayLike) -> str:
    """Return zeros and ones, shape (n,), as hexadecimal digits, eight of them in two digits.

    Example:
        >>> hex_of([1, 0, 0, 0, 0, 0, 0, 1, 1])
        '8180'
    """
    return np.packbits(np.asarray(bits).astype(bool)).tobytes().hex()


def bits_of(digits: str, size: int) -> NDArray[np.int8]:
    """Return the first ``size`` bits that `hex_of` has written, shape (size,).

    Raises:
        ValueError: there are no such digits, or fewer or more than ``size`` bits need.

    Example:
        >>> bits_of("8180", 9).tolist()
        [1, 0, 0, 0, 0, 0, 0, 1, 1]
    """
    packed = np.frombuffer(bytes.fromhex(digits), dtype=np.uint8)
    if len(packed) != -(-size // 8):
        raise ValueError(f"{8 * len(packed)} bits are not those of {size} variables")
    return np.unpackbits(packed, count=size).astype(np.int8)


# --- files and folders


def kind_of(path: Path) -> str | None:
    """Return words for the type of ``path``, links followed; None for a file or nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link that leads nowhere" if os.path.islink(path) else None  # noqa: PTH114
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


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


def flush_file(path: Path) -> None:
    """Flush a file to the disk.

    Raises:
        OSError: the disk refuses.
    """
    # Windows flushes only files opened for writing.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


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
    """Return temporary files that a killed `Disk.write_whole` left, by names with wildcards."""
    names = tuple(names)
    found: list[Path] = []
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


@dataclass(frozen=True)
class Disk:
    """Files and folders, with the error and the advice of the package that uses them.

    Args:
        error: raised for whatever its user can mend.
        advice: what to do where nothing can be written.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "file"
        >>> Disk().write_whole(path, b"whole")
        >>> Disk().read_regular(path)
        b'whole'
    """

    error: type[StorageError] = StorageError
    advice: str = "free space or grant access"

    def lock_of(self, folder: Path) -> FileLock:
        """Return the lock on ``folder``, held until it is released or its last holder is gone.

        Raises:
            StorageError: another process holds it, or the folder cannot be written.
        """
        self.refuse_irregular([folder / LOCK])
        lock = FileLock(folder / LOCK, blocking=False, is_singleton=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise self.error(
                f"another process is working in {folder}; wait for it, or choose another folder"
            ) from error
        except OSError as error:
            raise self._unwritable(folder / LOCK, error) from error
        return lock

    @contextmanager
    def locked(self, folder: Path) -> Generator[None]:
        """Lock ``folder`` against other processes within the context, or until the process ends.

        The same thread may enter again.

        Raises:
            StorageError: as `lock_of`; or the lock was lost inside (see `require_locked`).
        """
        lock = self.lock_of(folder)
        try:
            yield
            self.require_locked(folder)
        finally:
            # The descriptor may have been closed by other code.
            with suppress(OSError):
                lock.release()

    def require_locked(self, folder: Path) -> None:
        """Refuse to go on if this process has lost its lock on ``folder``.

        Code of the user's own may have closed its descriptor, or removed its file: from then on
        another process can work in the folder.

        Raises:
            StorageError: the lock is lost.
        """
        # A second descriptor gets the lock only if the first one has lost it.
        probe = FileLock(folder / LOCK, blocking=False, is_singleton=False)
        try:
            probe.acquire()
        except Timeout:
            return
        except OSError as error:
            raise self._unwritable(folder / LOCK, error) from error
        probe.release()
        raise self.error(
            f"the lock of {folder} is gone: code in this process, such as a sampler, has closed "
            "descriptors that are not its own, or removed the file; fix that, then resume"
        )

    def regular(self, path: Path) -> Path:
        """Return ``path`` if it leads to a regular file, which can be opened without waiting.

        For readers that need a path; others use `read_regular`.

        Raises:
            StorageError: a pipe, a directory, a device or a socket is in its place.
            OSError: it cannot be opened.
        """
        os.close(self._opened(path))
        return path

    def read_regular(self, path: Path) -> bytes:
        """Return the content of a regular file; links are followed.

        Raises:
            StorageError: a pipe, a directory, a device or a socket is in its place.
            OSError: it cannot be read.
        """
        with os.fdopen(self._opened(path), "rb") as file:
            return file.read()

    def refuse_irregular(self, paths: Iterable[Path]) -> None:
        """Refuse paths that exist and lead to no regular file.

        Raises:
            StorageError: names the first.
        """
        for path in paths:
            kind = kind_of(path)
            if kind is not None:
                raise self._irregular(path, kind)

    def _opened(self, path: Path) -> int:
        # Not opened first, since opening some devices has an effect.
        self.refuse_irregular([path])
        # It may have become a pipe in between, whose opening would wait.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise self._irregular(path, "no regular file")
        return handle

    def write_whole(self, path: Path, content: bytes) -> None:
        """Write a file so that even a power cut leaves the old one or the new one.

        The content goes to a temporary file, is flushed and renamed; the folder is flushed too.

        Raises:
            StorageError: it cannot be written; the old file is unchanged.
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
            raise self._unwritable(path, error) from error

    def append_line(self, path: Path, line: str, *, flush: bool = False) -> None:
        """Add a line to a text file; a power cut may take the last lines, or tear one.

        Args:
            path: of the file; made if it is not there.
            line: without its end.
            flush: True to return only when the line is on the disk.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            self.refuse_irregular([path])
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line + "\n")
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
        except StorageError:
            raise
        except OSError as error:
            raise self._unwritable(path, error) from error

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files that exist.

        Raises:
            StorageError: one cannot be removed; a directory never is.
        """
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                kind = kind_of(path)
                refused = self._irregular(path, kind) if kind else self._unwritable(path, error)
                raise refused from error

    def flush_file(self, path: Path) -> None:
        """Flush a file to the disk.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            flush_file(path)
        except OSError as error:
            raise self._unwritable(path, error) from error

    def sweep(self, folder: Path, names: Iterable[str]) -> None:
        """Remove temporary files of ``names``, and folders beside ``folder``, of a killed process.

        Only under the lock.

        Raises:
            StorageError: it cannot be removed.
        """
        self.remove(half_written(folder, names))
        for left in asides(folder):
            try:
                shutil.rmtree(left)
            except OSError as error:
                raise self._unwritable(left, error) from error

    def _irregular(self, path: Path, kind: str) -> StorageError:
        return self.error(f"{path} is {kind}, where a file is expected; move it away")

    def _unwritable(self, path: Path, error: OSError) -> StorageError:
        return self.error(f"cannot write {path}: {error.strerror or error}; {self.advice}")
