"""Settings of one run, for every kind of model: options, YAML and help are derived from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from qprune.distributed.workers import DEFAULT_THREADS
from qprune.errors import ImpossibleRequestError
from qprune.models.factories import is_factory
from qprune.network.groups import NofM, checked_sparsity
from qprune.record.folder import (
    FORMAT,
    UNREADABLE,
    read_config,
    read_report,
    read_scores,
    read_steps,
    require_known,
    unreadable,
)
from qprune.record.plain_yaml import read_plain_yaml
from qprune.results import Report, ScorePoint, Step
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

#: Type of a sampler option's value; the sampler checks the value itself.
OptionValue = bool | int | float | str


def _names(value: Any) -> Any:
    """Return a list; a single name becomes a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
#: Older values of ``loss``, by those of ``target``.
_TARGETS = {"dense": "dense", "labels": "cross-entropy"}
# Settings that `qprune.prune` takes by the same name, whatever the model is.
_SHARED = (
    *("sparsity", "density", "mask_structure", "budget", "targets", "ignore", "sampler"),
    *("sampler_options", "loss", "compensate", "seed", "threads"),
)


class Settings(BaseModel):
    """Complete settings of a run: two equal settings give equal masks.

    Each field is an option of `qprune prune`, with its description as help, and a line of a
    ``--config`` file. None leaves the default to the kind of model (`qprune.jobs.kinds`).

    Example:
        >>> Settings(model="digits-mlp", data="digits", density=0.25).asked_sparsity
        0.75
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(
        description="a transformers checkpoint: folder, or hf:ID; or digits-mlp, mlpnet, "
        "resnet20, torchvision:NAME or package.module:factory"
    )
    weights: Path | None = Field(None, description="safetensors file for the model")
    data: str = Field(
        description="text: wikitext2:DIR, text:FILE or hf:NAME; or digits, mnist:PATH.npz, "
        "cifar10:PATH.npz or package.module:factory"
    )
    normalization: str | None = Field(
        None, description="none, half, digits, mnist or cifar10; the data's own if not given"
    )
    sparsity: Annotated[float, NUMBER, Field(ge=0, lt=1)] | None = Field(
        None, description="share of targeted weights to set to zero, in [0, 1)"
    )
    density: Annotated[float, NUMBER, Field(gt=0, le=1)] | None = Field(
        None, description="1 - sparsity, instead of it"
    )
    targets: Names | None = Field(
        None,
        description="classes, modules, parameters or re:PATTERN; by default every Linear and "
        "convolution, and the matrices of attention, LSTM and GRU",
    )
    ignore: Names = Field((), description="like --targets: what to leave dense")
    start: str | None = Field(
        None, description="first pass: random, magnitude, wanda, gradient or fisher (fisher)"
    )
    sampler: str | None = Field(
        None,
        description="a name that `qprune samplers` lists (relax); with --method reconstruct, of "
        "rows",
    )
    sampler_options: dict[str, OptionValue] = Field({}, description="options of the sampler")
    curvature: str | None = Field(None, description="fisher, empirical or hessian (fisher)")
    loss: Literal["dense", "cross-entropy", "mse", "bce"] | None = Field(
        None,
        description="keep to the dense network's outputs (dense), or to the labels: "
        "cross-entropy, mse or bce",
    )
    budget: Literal["global", "layer", "row"] | None = Field(
        None,
        description="count zeros globally (global), by layer or by row; layer by layer, by layer "
        "(the method's own) or row",
    )
    mask_structure: str | None = Field(
        None, description="N:M, at most N non-zero in every M consecutive inputs"
    )
    block_size: Pair | None = Field(None, description="variables in a block (1024)")
    num_blocks: Number | None = Field(None, description="disjoint blocks for one expansion (1)")
    stages: Steps | None = Field(
        None, description="stages up to the asked sparsity (20; 10 for a large network)"
    )
    rounds: FurtherSteps | None = Field(
        None, description="expansions in each stage (4; 1 for a large network)"
    )
    final_rounds: FurtherSteps | None = Field(
        None, description="expansions in the last stage (5 x rounds)"
    )
    compensate: bool = Field(
        True,
        description="whether kept weights may move",
        json_schema_extra={"option": "--compensate/--mask-only"},
    )
    augment: bool = Field(
        True, description="whether to fit on changed or blended copies of the samples too"
    )
    samples_per_step: Number | None = Field(
        None, description="samples in one expansion (2400; 400 for a large network)"
    )
    num_calibration_samples: Number | None = Field(
        None, description="number of calibration samples (1000; of checkpoints, 128)"
    )
    max_seconds: Seconds | None = Field(None, description="end after so long")
    max_steps: Count | None = Field(None, description="end after so many steps")
    max_memory: Gigabytes | None = Field(
        None, description="memory limit of the process, GB (what is available)"
    )
    executor: str | None = Field(
        None, description="where blocks are solved: threads[:N], ray or ray://HOST:PORT"
    )
    method: Literal["magnitude", "wanda", "sparsegpt", "reconstruct", "qprune"] | None = Field(
        None,
        description="checkpoints: magnitude, wanda, sparsegpt, reconstruct or qprune (qprune)",
    )
    stage2_steps: FurtherSteps | None = Field(
        None,
        description="checkpoints: optimiser steps across the network; 0 = layer by layer alone, "
        "at layer budgets by sensitivity",
    )
    max_seq_length: Pair | None = Field(
        None, description="checkpoints: tokens in a sample (the model's, to 2048)"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = Field(
        None, description="checkpoints: float32, bfloat16, float16, auto (float32)"
    )
    device: str | None = Field(None, description="checkpoints: device, as torch names it (cpu)")
    offload: str | None = Field(
        None,
        description="checkpoints: where activations are stored: cpu, device or a folder (cpu)",
    )
    evaluate: bool = Field(True, description="whether to measure the network on held-out data")
    seed: Seed = Field(0, description="seed of all random choices (0)")
    threads: Threads = Field(
        DEFAULT_THREADS,
        description="batches passed and blocks solved at once (1); no effect on the mask",
    )

    @model_validator(mode="before")
    @classmethod
    def _older(cls, values: Any) -> Any:
        """Translate ``target: dense`` and ``target: labels`` of older versions."""
        if not isinstance(values, dict) or values.get("target") not in _TARGETS:
            return values
        rest = {name: value for name, value in values.items() if name != "target"}
        return {"loss": _TARGETS[values["target"]]} | rest

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

    def arguments(self) -> dict[str, Any]:
        """Arguments of `qprune.prune` that mean the same for every kind of model."""
        values = {name: getattr(self, name) for name in _SHARED}
        return {name: value for name, value in values.items() if value is not None}

    def to_yaml(self, without: Iterable[str] = ()) -> str:
        """Return the settings as YAML that ``--config`` reads; without secrets."""
        plain = without_secrets(self.model_dump(mode="json", exclude=set(without)))
        return yaml.safe_dump({"format": FORMAT} | plain, sort_keys=False, allow_unicode=True)

    def with_defaults(
        self, defaults: Mapping[str, Any], foreign: Iterable[str], kind: str
    ) -> Settings:
        """Return a copy with the defaults of a kind of model.

        Args:
            defaults: value by name, where None is given.
            foreign: settings that have no meaning for the kind.
            kind: words for such a model, for the refusal.

        Raises:
            ImpossibleRequestError: a foreign setting is given.
        """
        given = next((name for name in foreign if getattr(self, name) is not None), None)
        if given is not None:
            known = ", ".join(name for name in type(self).model_fields if name not in foreign)
            raise ImpossibleRequestError(
                f"no setting named {given!r} for {kind}; there are: {known}"
            )
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return self.model_copy(update=missing)


def trusted(settings: Settings, model: str | None, data: str | None) -> None:
    """Refuse to import code that only a file names (a run folder, --config), not the user.

    Args:
        settings: settings in the file.
        model: the user's ``--model``; None = not given.
        data: the user's ``--data``.

    Raises:
        ImpossibleRequestError: names the option to give.
    """
    for option, said, given in (("model", settings.model, model), ("data", settings.data, data)):
        if given is not None and given != said:
            raise ImpossibleRequestError(f"the run was started with --{option} {said}, not {given}")
        if given is None and is_factory(said):
            raise ImpossibleRequestError(
                f"the settings ask to import {said!r}, which runs code; if that is your own, say "
                f"so with --{option} {said}"
            )


def merged(given: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """Merge a YAML file with values given directly, which win (None: not given).

    Raises:
        ImpossibleRequestError: the file cannot be read.
    """
    values = _read_settings(config) if config is not None else {}
    return values | {name: value for name, value in given.items() if value is not None}


def make_settings(given: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Return settings from a YAML file, overridden by values given directly.

    Args:
        given: values by name; None means not given.
        config: YAML file with values by name.

    Raises:
        ImpossibleRequestError: the file cannot be read, a name is unknown or missing, or a
            value is out of range.
    """
    try:
        settings = Settings(**merged(given, config))
    except ValidationError as error:
        raise ImpossibleRequestError(_explain(error, config)) from error
    if settings.sparsity is not None and settings.density is not None:
        raise ImpossibleRequestError("--density is 1 - sparsity; give it or --sparsity, not both")
    if (settings.sparsity, settings.density, settings.mask_structure) == (None, None, None):
        raise ImpossibleRequestError("--sparsity is missing; give it, or a --mask-structure")
    secret = next(filter(is_secret, settings.sampler_options), None)
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
    found = dict(zip(names, values.values(), strict=True))
    require_known(path, found.pop("format", 1))
    return found


def _explain(error: ValidationError, config: Path | None) -> str:
    """Return the first error in one line: the setting, its problem, the remedy."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    option, where = f"--{name.replace('_', '-')}", f" (also read: {config})" if config else ""
    if first["type"] == "missing":
        return f"{option} is missing; give it on the command line or in a --config file{where}"
    if first["type"] == "extra_forbidden":
        known = ", ".join(Settings.model_fields)
        return f"no setting named {name!r}; there are: {known}{where}"
    field = Settings.model_fields[name]
    wanted = told(field.annotation, *field.metadata)
    message = first["msg"].removeprefix("Input ").replace("should be", "must be")
    message = f"must be {wanted}" if wanted else message
    return f"{option} {message}, not {quoted(first['input'])}{where}"


@dataclass(frozen=True)
class Saved:
    """Run read from its folder.

    Attributes:
        settings: settings of the run.
        report: its report; for an unfinished run, the steps so far.
        scores: accuracy and loss on test data along the way.
    """

    settings: Settings
    report: Report
    scores: tuple[ScorePoint, ...]


def read_settings(path: Path) -> Settings:
    """Read the settings of the run in the folder ``path``.

    Raises:
        RunFolderError: the folder holds no run, or its settings cannot be read.
    """
    values = read_config(path)
    try:
        return Settings(**values)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def read_run(path: Path) -> Saved:
    """Read the run in the folder ``path``, finished or not.

    Raises:
        RunFolderError: the folder holds no run, or a file cannot be read.
    """
    settings, found = read_settings(path), read_report(path)
    if found is not None:
        return Saved(settings, *found)
    try:
        return Saved(settings, _unfinished(settings, read_steps(path)), read_scores(path))
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _unfinished(settings: Settings, steps: tuple[Step, ...]) -> Report:
    return Report(
        asked_sparsity=settings.asked_sparsity,
        achieved_sparsity=steps[-1].sparsity if steps else 0.0,
        layers=(),
        steps=steps,
        settings=settings.model_dump(mode="json"),
        seed=settings.seed,
        seconds=sum(sum(step.seconds.values()) for step in steps),
        cpu_seconds=sum(step.cpu_seconds for step in steps),
        stopped="unfinished",
    )
