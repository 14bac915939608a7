"""A progress bar for a terminal: one observer among others."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qprune.steps import Step


class ProgressBar:
    """Shows sparsity, loss and how many steps were taken, on standard error.

    Args:
        sparsity: what was asked; the bar is full when it is reached.
        console: where to draw; nothing is drawn where there is no terminal.
    """

    def __init__(self, sparsity: float, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("preparing", total=sparsity or 1.0, state="")
        self._accepted = 0

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

    def __call__(self, step: Step) -> None:
        """Show the step."""
        self._accepted += step.accepted
        self._progress.update(
            self._task,
            completed=step.sparsity,
            description=f"stage {step.stage + 1}",
            state=f"{100 * step.sparsity:.1f} % zero, loss {step.loss:.4g}, "
            f"{self._accepted} of {step.index + 1} steps taken",
        )
