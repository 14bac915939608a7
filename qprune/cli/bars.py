"""Progress bars for a terminal, and a graceful stop on Ctrl-C and SIGTERM."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track

from qprune.cli.terminal import LegibleFormatter
from qprune.errors import LeftDenseWarning
from qprune.results import Step
from solvers.host.legible import legible

if TYPE_CHECKING:
    from qprune.models.evaluate import Track

# Largest number of characters beside a bar.
_LONGEST_STATE = 120


def tracked(console: Console) -> Track:
    """Return a `Track` that draws a bar, where there is a terminal."""

    def through(items: Sequence[Any], description: str) -> Iterable[Any]:
        return track(
            items,
            escape(legible(description)),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    return through


@contextmanager
def logged(console: Console) -> Generator[None]:
    """Print log messages of qprune and solvers on ``console`` within the context, above its bars.

    Warnings of tensors left dense are printed in the same way.
    """
    # Without a terminal, lines are not wrapped.
    handler: logging.Handler = logging.StreamHandler(console.file)
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_time=False, show_level=False)
    handler.setFormatter(LegibleFormatter())
    logger, others = logging.getLogger("qprune"), logging.getLogger("solvers")
    before = logger.level, others.level
    for one in (logger, others):
        one.addHandler(handler)
        one.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            shown = warnings.showwarning

            def show(message: Any, category: type[Warning], *place: Any) -> None:
                if issubclass(category, LeftDenseWarning):
                    logger.warning("warning: %s", message)
                else:
                    shown(message, category, *place)

            warnings.showwarning = show
            yield
    finally:
        for one, level in zip((logger, others), before, strict=True):
            one.setLevel(level)
            one.removeHandler(handler)


class _Bar:
    """Progress bar, drawn within its context.

    Args:
        console: where to draw; nothing is drawn where there is no terminal.
        total: number of units of work.
    """

    def __init__(self, console: Console, total: float | None = None) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("preparing", total=total, state="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()


class Waiting(_Bar):
    """Clock of one task without known length.

    Args:
        what: short description of the task.
        console: where to draw.
    """

    def __init__(self, what: str, console: Console) -> None:
        super().__init__(console)
        self._progress.update(self._task, description=what)


class ProgressBar(_Bar):
    """Progress bar of a run on standard error: sparsity, loss and number of accepted steps.

    Args:
        sparsity: requested sparsity, at which the bar is full.
        console: where to draw; nothing is drawn where there is no terminal.
    """

    def __init__(self, sparsity: float, console: Console) -> None:
        super().__init__(console, sparsity or 1.0)
        self._sparsity, self._accepted = sparsity or 1.0, 0

    def __call__(self, step: Step) -> None:
        """Show a finished step."""
        self._accepted += step.accepted
        zero = f"{100 * step.sparsity:.1f} % zero"
        if step.kind == "block":
            errors = [record.error for record in step.layers if record.error is not None]
            state = f"{zero}, output error {max(errors, default=0.0):.3g}"
            self._show(f"block {step.round + 1}", step.sparsity, self._sparsity, state)
            return
        taken = f"{self._accepted} of {step.index + 1} steps taken"
        state = f"{zero}, loss {step.loss:.4g}, {taken}"
        self._show(f"stage {step.stage + 1}", step.sparsity, self._sparsity, state)

    def tell(self, what: str, done: int, total: int) -> None:
        """Show work between steps: text, moves, scores."""
        self._show(what, done, total, f"{done} of {total}")

    def _show(self, what: str, done: float, total: float, state: str) -> None:
        self._progress.update(
            self._task,
            completed=done,
            total=total,
            description=legible(what),
            state=legible(state, _LONGEST_STATE),
        )


logger = logging.getLogger(__name__)

#: Exit code of an interrupted command, by the shells' convention: 128 + SIGINT.
INTERRUPTED = 130

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def terminable() -> Generator[None]:
    """Turn SIGTERM into a `KeyboardInterrupt` within the context."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interruptible() -> Generator[Callable[[], bool]]:
    """Note the first SIGINT or SIGTERM within the context; a second one interrupts at once.

    Yields:
        A function, True once a signal has come; never outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        logger.warning("stopping after this step with the best so far; Ctrl-C again stops at once")

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
