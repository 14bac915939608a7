"""Every step that a process takes on the file system below a folder, and what befalls one of them.

Steps are opening a file to write, each write (once before it, once when half of it is through),
flushing, renaming, removing, making and removing folders. What is written by compiled code, such
as safetensors' own files, is not seen; the steps around it are.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

#: Steps that need room on the disk; removing frees some.
WRITING = ("open", "write", "half", "fsync", "replace", "rename", "mkdir")
#: All of them.
CHANGING = (*WRITING, "unlink", "remove", "rmdir")


class FileSteps:
    """Inside, something befalls the steps that a process takes below ``place``.

    Args:
        place: a folder, or the beginning of paths.
        befall: called with the number of each step, from 1, before it is taken; it may raise.
        kinds: which steps.

    Attributes:
        taken: the steps so far, in words.
    """

    def __init__(
        self,
        place: Path,
        befall: Callable[[int], None] = lambda number: None,
        kinds: tuple[str, ...] = CHANGING,
    ) -> None:
        self._place, self._befall, self._kinds = str(place), befall, kinds
        self.taken: list[str] = []

    def take(self, kind: str, path: Any) -> None:
        """One step more."""
        if kind in self._kinds:
            self.taken.append(f"{kind} {path}")
            self._befall(len(self.taken))

    def concerns(self, path: Any, named: dict[str, Any] | None = None) -> bool:
        """Whether the path lies below the place; relative to a descriptor, it is taken to."""
        if named and named.get("dir_fd") is not None:
            return True
        is_path = isinstance(path, str | os.PathLike)
        return is_path and str(os.path.realpath(path)).startswith(self._place)

    @contextmanager
    def __call__(self) -> Iterator[FileSteps]:
        with ExitStack() as stack:
            for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir"):
                stack.enter_context(mock.patch.object(os, name, self._on_path(name)))
            for module in (io, builtins):
                stack.enter_context(mock.patch.object(module, "open", self._opening(module.open)))
            stack.enter_context(mock.patch.object(os, "fsync", self._flushing(os.fsync)))
            stack.enter_context(mock.patch.object(os, "open", self._creating(os.open)))
            yield self

    def _on_path(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def step(path: Any, *rest: Any, **named: Any) -> Any:
            if self.concerns(path, named):
                self.take(name, path)
            return real(path, *rest, **named)

        return step

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if not {*mode} & {*"wax+"} or not self.concerns(path):
                return real(path, mode, *rest, **named)
            self.take("open", path)
            return _Watched(real(path, mode, *rest, **named), self, path)

        return step

    def _flushing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def step(handle: int) -> None:
            self.take("fsync", handle)
            real(handle)

        return step

    def _creating(self, real: Callable[..., int]) -> Callable[..., int]:
        def step(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT and self.concerns(path, named):
                self.take("open", path)
            return real(path, flags, *rest, **named)

        return step


class _Watched:
    """A file whose writes are steps."""

    def __init__(self, file: Any, steps: FileSteps, path: Any) -> None:
        self._file, self._steps, self._path = file, steps, path

    def write(self, content: Any) -> int:
        self._steps.take("write", self._path)
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        self._steps.take("half", self._path)
        self._file.write(content[half:])
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def failing(at: int, error: int) -> Callable[[int], None]:
    """The ``at``-th step fails, and all after it, with this number of `errno`."""

    def befall(number: int) -> None:
        if number >= at:
            raise OSError(error, os.strerror(error))

    return befall


def killed(at: int) -> Callable[[int], None]:
    """The process is killed before the ``at``-th step, as by ``kill -9``."""

    def befall(number: int) -> None:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return befall
