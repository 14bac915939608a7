"""Optional logging of a study's rows to the experiment tracker trackio."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from qprune.errors import ImpossibleRequestError
from solvers.redaction import without_secrets

Tracker = Callable[[Mapping[str, Any], int, int], None]


@contextmanager
def tracker(project: str | None) -> Iterator[list[Tracker]]:
    """Return observers that log each row's plain values to ``project``; none for None.

    Nothing leaves the machine unless trackio's own settings say so.

    Raises:
        ImpossibleRequestError: trackio is not installed.
    """
    if project is None:
        yield []
        return
    try:
        import trackio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImpossibleRequestError(
            "--track needs trackio: pip install 'qprune[track]'"
        ) from error
    # Standard output belongs to the command; a monitoring thread would disturb the clock.
    with redirect_stdout(sys.stderr):
        run = trackio.init(project=project, embed=False, auto_log_cpu=False, auto_log_gpu=False)

    def log(row: Mapping[str, Any], done: int, total: int) -> None:
        plain = {n: v for n, v in without_secrets(row).items() if isinstance(v, int | float | str)}
        run.log({**plain, "done": done, "total": total})

    try:
        yield [log]
    finally:
        with redirect_stdout(sys.stderr):
            trackio.finish()
