"""The settings of one `qprune prune`: checked before any work, read from YAML, kept beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from qprune.cli_options import OptionValue
from qprune.errors import ImpossibleRequestError
from qprune.sparsity import KeepNofM, checked_sparsity
from qprune.threads import DEFAULT_THREADS, MAX_THREADS
from solvers.redaction import is_secret, without_secrets


def _names(value: Any) -> Any:
    """One name alone stands for a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class Asked(BaseModel):
    """What every run is asked: which network, which data, how sparse."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    data: str
    sparsity: float | None = Field(default=None, ge=0, lt=1)
    density: float | None = Field(default=None, gt=0, le=1)
    mask_structure: str | None = None

    @property
    def structure(self) -> KeepNofM | None:
        """The mask structure, if one was asked."""
        return KeepNofM.parse(self.mask_structure) if self.mask_structure else None

    @property
    def asked_sparsity(self) -> float:
        """The sparsity to reach, as given, from the density, or from the mask structure.

        Raises:
            ImpossibleRequestError: none of these was given.
        """
        sparsity = self.sparsity if self.density is None else 1 - self.density
        return checked_sparsity(sparsity, self.structure)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where something that a run leaves behind is from."""
        return self.model_dump(mode="json", include={"model", "data", "seed"})

    @property
    def title(self) -> str:
        """The run in a few words."""
        return f"{self.model} pruned to {100 * self.asked_sparsity:.4g} %"

    def to_yaml(self) -> str:
        """The settings as a file that ``--config`` reads; without secrets."""
        plain = without_secrets(self.model_dump(mode="json"))
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


S = TypeVar("S", bound=Asked)


#: What ``loss`` was before it had names.
_TARGETS = {"dense": "dense", "labels": "cross-entropy"}


class Settings(Asked):
    """Everything that decides a run, so that two equal settings give equal masks."""

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
    block_size: int | None = Field(default=None, ge=2)
    num_blocks: int = Field(default=1, ge=1)
    stages: int | None = Field(default=None, ge=1)
    rounds: int | None = Field(default=None, ge=0)
    final_rounds: int | None = Field(default=None, ge=0)
    compensate: bool = True
    augment: bool = True
    samples_per_step: int | None = Field(default=None, ge=1)
    num_calibration_samples: int = Field(default=1000, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)
    max_steps: int | None = Field(default=None, ge=0)
    max_memory: float | None = Field(default=None, gt=0)
    executor: str | None = None
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=DEFAULT_THREADS, ge=1, le=MAX_THREADS)

    @model_validator(mode="before")
    @classmethod
    def _older(cls, values: Any) -> Any:
        """Files of older versions say ``target: dense`` or ``target: labels``."""
        if not isinstance(values, dict) or values.get("target") not in _TARGETS:
            return values
        rest = {name: value for name, value in values.items() if name != "target"}
        return {"loss": _TARGETS[values["target"]]} | rest


def merged(given: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """What a YAML file sets, overridden by what was given directly (None: not given).

    Raises:
        ImpossibleRequestError: the file cannot be read.
    """
    values = _read_yaml(config) if config is not None else {}
    return values | {name: value for name, value in given.items() if value is not None}


def make_settings(
    given: Mapping[str, Any], config: Path | None = None, kind: type[S] = Settings
) -> S:
    """Settings from a YAML file overridden by what was given directly.

    Args:
        given: values by name; None means not given.
        config: YAML file with values by name.
        kind: which settings.

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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ImpossibleRequestError(f"cannot read the configuration {path}: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ImpossibleRequestError(f"{path} must hold 'name: value' lines, one setting each")
    return {name.replace("-", "_"): value for name, value in values.items()}


def _explain(error: ValidationError, config: Path | None, kind: type[BaseModel]) -> str:
    """The first complaint in one line: which setting, what is wrong, what to do."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    option, where = f"--{name.replace('_', '-')}", f" (also read: {config})" if config else ""
    if first["type"] == "missing":
        return f"{option} is missing; give it on the command line or in a --config file{where}"
    if first["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        return f"no setting named {name!r}; there are: {known}{where}"
    message = first["msg"].removeprefix("Input ").replace("should be", "must be")
    return f"{option} {message}, not {first['input']!r}{where}"
