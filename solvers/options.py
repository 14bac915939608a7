"""The options of this package's samplers: types, ranges and one line of help each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from solvers.errors import InvalidOptionError, UnknownOptionError
from solvers.host.ranges import MAX_COUNT, MAX_SECONDS, MAX_THREADS, quoted, shown


def _number(value: Any) -> Any:
    """Refuse text that looks like a number, and truth values."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise ValueError("a number")
    return value


_Number = BeforeValidator(_number)


def _not_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("a number")
    return value


#: A whole number of at least 1.
Count = Annotated[int, Field(ge=1, le=MAX_COUNT), _Number]
#: A whole number of at least 0.
Whole = Annotated[int, Field(ge=0, le=MAX_COUNT), _Number]
#: A whole number of at least 0, of any size.
Seed = Annotated[int, Field(ge=0), _Number]
#: Sweeps of one read: each has a temperature in memory. More reads are better than more sweeps.
Sweeps = Annotated[int, Field(ge=1, le=1_000_000), _Number]
#: The same, or 0.
SweepsIfAny = Annotated[int, Field(ge=0, le=1_000_000), _Number]
#: Number of threads; more than a machine can start is refused.
Threads = Annotated[int, Field(ge=1, le=MAX_THREADS), _Number]
#: Finite, at least 0.
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False), _Number]
#: A number, finite or infinite; no NaN.
Energy = Annotated[float, _Number, AfterValidator(_not_nan)]
#: At least 0, below 1.
Share = Annotated[float, Field(ge=0, lt=1), _Number]
#: Finite, above 0.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), _Number]


class TimedOptions(BaseModel):
    """The option of every sampler of this package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_limit: Seconds | None = Field(
        default=None, description="seconds of wall time after which the best so far is returned"
    )

    @property
    def starts(self) -> Any:
        """Initial states of the caller, in any form; None if there are none."""
        return None

    @property
    def randomness(self) -> int | None:
        """The seed; None if there is none."""
        return None


class SamplerOptions(TimedOptions):
    """Options of every randomised sampler; a sampler adds its own in a subclass."""

    num_reads: Count | None = Field(
        default=None,
        description="independent reads (default: 1; with a time limit, as many as fit)",
    )
    seed: Seed | None = Field(default=None, description="decides everything random")
    initial_states: Any = Field(
        default=None,
        description="states to start from: an array of shape (k, n), or anything that dimod "
        "takes as samples",
    )

    @property
    def starts(self) -> Any:
        return self.initial_states

    @property
    def randomness(self) -> int | None:
        return self.seed

    def reads(self, default: int) -> int | None:
        """Number of reads; None, with a time limit alone, is as many as fit."""
        if self.num_reads is not None:
            return self.num_reads
        return default if self.time_limit is None else None


Asked = TypeVar("Asked", bound=TimedOptions)


def described(kind: type[TimedOptions]) -> dict[str, str]:
    """Option name -> its line of help."""
    return {name: field.description or "" for name, field in kind.model_fields.items()}


def read_options(name: str, kind: type[Asked], options: Mapping[str, Any]) -> Asked:
    """``options`` as an object, values checked.

    Args:
        name: the sampler's, for messages.
        kind: class of the sampler's options.
        options: by name; None stands for the default.

    Raises:
        UnknownOptionError: an option that ``kind`` does not have.
        InvalidOptionError: a value out of its range; the message has the range.
    """
    unknown = sorted(set(options) - set(kind.model_fields))
    if unknown:
        raise UnknownOptionError(
            f"{name} has no option {unknown[0]!r}; it has: " + ", ".join(sorted(kind.model_fields))
        )
    try:
        return kind.model_validate({k: v for k, v in options.items() if v is not None})
    except ValidationError as error:
        raise InvalidOptionError(_explained(kind, error)) from None


def _explained(kind: type[TimedOptions], error: ValidationError) -> str:
    """The first invalid option, in one line with its valid range."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    allowed = _allowed(kind.model_json_schema()["properties"][name])
    return f"{name} must be {allowed}, not {quoted(first['input'])}"


def _allowed(schema: Mapping[str, Any]) -> str:
    """The values that a field takes, in words, from its JSON schema."""
    options = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return " or ".join(_in_words(one) for one in options)


def _in_words(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kinds = {"integer": "a whole number", "number": "a finite number", "boolean": "true or false"}
    kinds |= {"string": "text", "array": "a sequence"}
    bounds = [
        f"{words} {shown(schema[bound])}"
        for bound, words in (
            ("minimum", "of at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if bound in schema
    ]
    return " ".join([kinds[schema["type"]], " and ".join(bounds)]).strip()
