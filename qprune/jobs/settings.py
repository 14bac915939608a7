"""Settings of one `qprune prune`: checked before any work, read from YAML, stored in the folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from qprune.distributed.workers import DEFAULT_THREADS
from qprune.errors import ImpossibleRequestError
from qprune.jobs.options import OptionValue
from qprune.network.groups import NofM, checked_sparsity
from qprune.record.plain_yaml import read_plain_yaml
from solvers.host.ranges import (
    NUMBER,
    Count,
    FurtherSteps,
    Gigabytes,
    Number,
    Pair,
    Seconds,
    Seed,
    Steps,
    Threads,
    quoted,
    told,
)
from solvers.host.secrets import is_secret, without_secrets


def _names(value: Any) -> Any:
    """Return a list; a single name becomes a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class Asked(BaseModel):
    """Settings that every run has: network, data, sparsity."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    data: str
    sparsity: Annotated[float, NUMBER, Field(ge=0, lt=1)] | None = None
    density: Annotated[float, NUMBER, Field(gt=0, le=1)] | None = None
    mask_structure: str | None = None

    @property
    def structure(self) -> NofM | None:
        """Requested mask structure, or None."""
        return NofM.parse(self.mask_structure) if self.mask_structure else None

    @property
    def asked_sparsity(self) -> float:
        """Sparsity to reach: as given, from the density, or from the mask structure.

        Raises:
            ImpossibleRequestError: none of these was given.
        """
        sparsity = self.sparsity if self.density is None else 1 - self.density
        return checked_sparsity(sparsity, self.structure)

    @property
    def provenance(self) -> dict[str, Any]:
        """Origin of a run's output files: model, data, seed."""
        return self.model_dump(mode="json", include={"model", "data", "seed"})

    @property
    def title(self) -> str:
        """Short title of the run."""
        return f"{self.model} pruned to {100 * self.asked_sparsity:.4g} %"

    def to_yaml(self) -> str:
        """Return the settings as YAML that ``--config`` reads; without secrets."""
        plain = without_secrets(self.model_dump(mode="json"))
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


S = TypeVar("S", bound=Asked)


#: Older values of ``loss``.
_TARGETS = {"dense": "dense", "labels": "cross-entropy"}


class Settings(Asked):
    """Complete settings of a run: two equal settings give equal masks."""

    weights: Path | None = None
    normalization: str | None = None
    targets: Names | None = None
    ignore: Names = ()
    start: str = "fisher"
    sampler: str = "relax"
    sampler_options: dict[str, OptionValue] = {}
    curvature: str = "fisher"
    loss: Literal["dense", "cross-entropy", "mse", "bce"] = "dense"
    budget: Literal["global", "layer", "row"] = "global"
    block_size: Pair | None = None
    num_blocks: Number = 1
    stages: Steps | None = None
    rounds: FurtherSteps | None = None
    final_rounds: FurtherSteps | None = None
    compensate: bool = True
    augment: bool = True
    samples_per_step: Number | None = None
    num_calibration_samples: Number = 1000
    max_seconds: Seconds | None = None
    max_steps: Count | None = None
    max_memory: Gigabytes | None = None
    executor: str | None = None
    seed: Seed = 0
    threads: Threads = DEFAULT_THREADS

    @model_validator(mode="before")
    @classmethod
    def _older(cls, values: Any) -> Any:
        """Translate ``target: dense`` and ``target: labels`` of older versions."""
        if not isinstance(values, dict) or values.get("target") not in _TARGETS:
            return values
        rest = {name: value for name, value in values.items() if name != "target"}
        return {"loss": _TARGETS[values["target"]]} | rest


def merged(given: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """Merge a YAML file with values given directly, which win (None: not given).

    Raises:
        ImpossibleRequestError: the file cannot be read.
    """
    values = _read_settings(config) if config is not None else {}
    return values | {name: value for name, value in given.items() if value is not None}


def make_settings(
    given: Mapping[str, Any], config: Path | None = None, kind: type[S] = Settings
) -> S:
    """Return settings from a YAML file, overridden by values given directly.

    Args:
        given: values by name; None means not given.
        config: YAML file with values by name.
        kind: class of the settings.

    Raises:
        ImpossibleRequestError: the file cannot be read, a name is unknown or missing, or a
            value is out of range.
    """
    try:
        settings = kind(**merged(given, config))
    except ValidationError as error:
        raise ImpossibleRequestError(_explain(error, config, kind)) from error
    if settings.sparsity is not None and settings.density is not None:
        raise ImpossibleRequestError("--density is 1 - sparsity; give it or --sparsity, not both")
    if (settings.sparsity, settings.density, settings.mask_structure) == (None, None, None):
        raise ImpossibleRequestError("--sparsity is missing; give it, or a --mask-structure")
    secret = next(filter(is_secret, getattr(settings, "sampler_options", {})), None)
    if secret is not None:
        raise ImpossibleRequestError(
            f"the sampler option {secret!r} would be written into the run's folder; give secrets "
            "by the environment, or by the provider's own configuration"
        )
    return settings


def _read_settings(path: Path) -> dict[str, Any]:
    values = read_plain_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ImpossibleRequestError(f"{path} must hold 'name: value' lines, one setting each")
    names = [name.replace("-", "_") for name in values]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ImpossibleRequestError(f"{path} sets {twice} twice, with a dash and without")
    return dict(zip(names, values.values(), strict=True))


def _explain(error: ValidationError, config: Path | None, kind: type[BaseModel]) -> str:
    """Return the first error in one line: the setting, its problem, the remedy."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    option, where = f"--{name.replace('_', '-')}", f" (also read: {config})" if config else ""
    if first["type"] == "missing":
        return f"{option} is missing; give it on the command line or in a --config file{where}"
    if first["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        return f"no setting named {name!r}; there are: {known}{where}"
    field = kind.model_fields[name]
    wanted = told(field.annotation, *field.metadata)
    message = first["msg"].removeprefix("Input ").replace("should be", "must be")
    message = f"must be {wanted}" if wanted else message
    return f"{option} {message}, not {quoted(first['input'])}{where}"
