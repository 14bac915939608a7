"""Ranges of numbers as pydantic's types, with a sentence for each.

An upper bound refuses a number with which a run would not end or not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from solvers.host.legible import legible

#: The largest seed that numpy, torch, compiled kernels and JSON of 64 bits all take.
MAX_SEED = 2**63 - 1
#: The most threads that OpenMP starts on all platforms. With 100,000 it ends the process.
MAX_THREADS = 1024
#: The longest time, seconds: 30 years. Clocks of processes and locks overflow soon after.
MAX_SECONDS = 1e9
#: The largest count where nothing else bounds it: indices have 32 bits.
MAX_COUNT = 2**31 - 1
#: The most steps of one run: each is a record in memory and a line of the report, and takes
#: milliseconds at the least, so that a million are a gigabyte and hours.
MAX_STEPS = 1_000_000


def _no_truth(value: Any) -> Any:
    # Python's True is 1, and `stages: yes` in a file is a mistake.
    if isinstance(value, bool):
        raise ValueError("a truth value is no number")
    return value


NUMBER = BeforeValidator(_no_truth)

Seed = Annotated[int, NUMBER, Field(ge=0, le=MAX_SEED)]
Threads = Annotated[int, NUMBER, Field(ge=1, le=MAX_THREADS)]
Seconds = Annotated[float, NUMBER, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
#: A time limit in seconds; may be 0.
Limit = Annotated[float, NUMBER, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Gigabytes = Annotated[float, NUMBER, Field(gt=0, le=1e9, allow_inf_nan=False)]
#: Counts of at least 0, 1 and 2.
Count = Annotated[int, NUMBER, Field(ge=0, le=MAX_COUNT)]
Number = Annotated[int, NUMBER, Field(ge=1, le=MAX_COUNT)]
Pair = Annotated[int, NUMBER, Field(ge=2, le=MAX_COUNT)]
#: Steps of a run, one at least, or none.
Steps = Annotated[int, NUMBER, Field(ge=1, le=MAX_STEPS)]
FurtherSteps = Annotated[int, NUMBER, Field(ge=0, le=MAX_STEPS)]
#: Number of timings of one thing: a median needs three, and gains nothing after thousands.
Timings = Annotated[int, NUMBER, Field(ge=3, le=10_000)]
#: Number of runs of a study that differ in their seed; each is a row in memory.
Repeats = Annotated[int, NUMBER, Field(ge=1, le=10_000)]


def checked(kind: Any, value: Any, name: str) -> Any:
    """``value`` if it is in the range ``kind``; text, and 2.5 for a whole number, are refused.

    Args:
        kind: one of the types here.
        value: the value to check.
        name: its name for the message.

    Raises:
        ValueError: it is out of range, or no number; the message has the range.

    Example:
        >>> checked(Threads, 100000, "threads")
        Traceback (most recent call last):
        ValueError: threads must be a whole number from 1 to 1,024, not 100000
    """
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(f"{name} must be {told(kind)}, not {quoted(value)}") from error


def told(kind: Any, *more: Any) -> str:
    """The numbers that a type takes, in words; "" for a type that is no range.

    Args:
        kind: the type.
        more: further bounds, as pydantic keeps them in a field's metadata.

    Example:
        >>> told(Seconds)
        'a number that is above 0 and at most 1e+09'
    """
    ends: list[str] = []
    for mark in (*_marks(kind), *more):
        if isinstance(mark, Gt):
            ends.append(f"above {shown(mark.gt)}")
        elif isinstance(mark, Ge):
            ends.append(f"at least {shown(mark.ge)}")
        elif isinstance(mark, Lt):
            ends.append(f"below {shown(mark.lt)}")
        elif isinstance(mark, Le):
            ends.append(f"at most {shown(mark.le)}")
    if not ends:
        return ""
    if int in {kind, *_parts(kind)}:
        low, high = (end.removeprefix("at least ").removeprefix("at most ") for end in ends)
        return f"a whole number from {low} to {high}"
    return "a number that is " + " and ".join(ends)


def quoted(value: Any) -> str:
    """A value as a message shows it."""
    try:
        shown = repr(value)
    except ValueError:  # Python refuses to print more than some thousand digits.
        shown = "a number of thousands of digits"
    return legible(shown, 60)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _parts(kind: Any) -> Iterator[Any]:
    for part in get_args(kind):
        yield part
        yield from _parts(part)


def _marks(kind: Any) -> Iterator[Any]:
    for part in _parts(kind):
        yield part
        yield from getattr(part, "metadata", ())


def shown(bound: Any) -> str:
    """A bound as a message shows it."""
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
