"""The plan of a study: runs, order and seeds, decided before anything runs."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from solvers.errors import (
    MissingPackageError,
    SamplerFailedError,
    StudyError,
)
from solvers.legible import legible
from solvers.ranges import Repeats, Seconds, Seed, Threads, checked
from solvers.study.asking import foreign_child
from solvers.study.bench import SamplerSetting, made
from solvers.study.budgets import CLOCK_OPTIONS, SWEEP_OPTIONS, Budget

#: Options that the study sets itself, by the kind of budget.
_RESERVED: Mapping[str, tuple[str, ...]] = {
    "seconds": tuple(CLOCK_OPTIONS),
    "reads": ("num_reads",),
    "sweeps": SWEEP_OPTIONS,
}
#: The most runs of a study: each is a row in memory, and takes some milliseconds.
MAX_RUNS = 1_000_000
_RANGES: Mapping[str, Any] = {
    "repeats": Repeats,
    "seed": Seed,
    "threads": Threads,
    "time_limit": Seconds,
    "prepare_limit": Seconds,
}


def require_in_range(**numbers: Any) -> None:
    """Refuse arguments of a study that are out of range; None passes.

    Raises:
        StudyError: names the first, and its range.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        try:
            checked(_RANGES[name], value, name)
        except ValueError as error:
            raise StudyError(str(error)) from error


@dataclass(frozen=True)
class Run:
    """One run, planned.

    Attributes:
        order: its position in the order of runs, from 0.
        seed: of the sampler.
    """

    order: int
    problem: str
    label: str
    budget: Budget
    repeat: int
    seed: int

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        """The key of the run, unique within the study."""
        return (self.problem, self.label, self.budget.kind, self.budget.amount, self.repeat)


def as_setting(sampler: Any) -> SamplerSetting:
    """A name, ``(name, options)``, ``(label, name, options)`` or a setting, as a setting.

    A sampler class or object that can be pickled may take the place of a name.

    Raises:
        StudyError: it is none of these.

    Example:
        >>> as_setting(("long", "swap-anneal", {"num_sweeps": 5000})).name
        'swap-anneal'
    """
    if isinstance(sampler, SamplerSetting):
        return sampler
    parts = sampler if isinstance(sampler, tuple) else (sampler,)
    if len(parts) == 1:
        parts = (parts[0], {})
    if len(parts) == 2:
        named = isinstance(parts[0], str)
        name = parts[0] if named else _class_name(parts[0])
        written = ",".join(f"{key}={value}" for key, value in parts[1].items())
        parts = (f"{name}({written})" if written else name, *parts)
    if len(parts) != 3 or not isinstance(parts[0], str) or not isinstance(parts[2], Mapping):
        raise StudyError(
            f"a sampler is a name, (name, options) or (label, name, options), not {sampler!r}"
        )
    label, what, options = parts
    if isinstance(what, str):
        return SamplerSetting(label, what, dict(options))
    return SamplerSetting(label, _class_name(what), dict(options), what)


def checked_settings(samplers: Iterable[Any]) -> tuple[SamplerSetting, ...]:
    """Settings with labels of their own.

    Raises:
        StudyError: there are none, two have one label, or a label holds a NUL.
    """
    settings = tuple(as_setting(sampler) for sampler in samplers)
    if not settings:
        raise StudyError("a study needs at least one sampler; none was given")
    labels = [setting.label for setting in settings]
    for label in labels:
        if "\0" in label:
            # NUL separates the words that a seed is made of, and pandas cuts text there.
            raise StudyError(f"the label {legible(label, 60)} holds a NUL; leave it out")
        if labels.count(label) > 1:
            raise StudyError(
                f"two samplers have the label {label!r}; give one another, as in other={label}"
            )
    return settings


def refusals(
    settings: Sequence[SamplerSetting], budgets: Sequence[Budget]
) -> dict[tuple[str, str], str]:
    """(label, kind of budget) -> reason why that sampler cannot keep it, for those that cannot.

    A sampler whose package is missing refuses all.

    Raises:
        StudyError: no budget is common to all samplers that are installed; or an option is
            both in a setting and the budget's.
        UnknownSamplerError, UnknownOptionError: a sampler or option does not exist.
    """
    refused: dict[tuple[str, str], str] = {}
    absent: set[str] = set()
    for setting in settings:
        try:
            takes = _options_of(setting)
        except (MissingPackageError, SamplerFailedError) as error:
            absent.add(setting.label)
            refused |= {(setting.label, budget.kind): str(error) for budget in budgets}
            continue
        for budget in budgets:
            _refuse_reserved(setting, budget)
            reason = budget.refusal(takes)
            if reason:
                refused[setting.label, budget.kind] = f"no budget in {budget.kind}: {reason}"
    here = [setting.label for setting in settings if setting.label not in absent]
    kinds = {budget.kind for budget in budgets}
    if here and not any(all((one, kind) not in refused for one in here) for kind in kinds):
        one, kind = next(key for key in refused if key[0] in here)
        raise StudyError(
            f"the samplers have no common budget: {one} has {refused[one, kind]}; "
            "every sampler can keep seconds, as in 0.5s"
        )
    return refused


def ordered_runs(
    problems: Sequence[str],
    labels: Sequence[str],
    budgets: Sequence[Budget],
    repeats: int,
    seed: int,
) -> list[Run]:
    """Every run, in a random order that the seed decides.

    In each repeat the problems are shuffled, and on each problem all samplers and budgets:
    competing runs are close in time, so that load on the machine affects all alike, and a
    model is built once for all that share it. A run's seed depends on its key, not on its
    position.
    """
    number = repeats * len(problems) * len(labels) * len(budgets)
    if number > MAX_RUNS:
        raise StudyError(
            f"{len(problems):,} problems, {len(labels)} samplers, {len(budgets)} budgets and "
            f"{repeats:,} repeats are {number:,} runs; a study has at most {MAX_RUNS:,}"
        )
    rng = np.random.default_rng(seed)
    runs: list[Run] = []
    for repeat in range(repeats):
        for p in map(int, rng.permutation(len(problems))):
            pairs = [(label, budget) for label in labels for budget in budgets]
            for i in map(int, rng.permutation(len(pairs))):
                label, budget = pairs[i]
                words = (problems[p], label, budget.kind, repr(float(budget.amount)), str(repeat))
                own = seed_of(seed, *words)
                runs.append(Run(len(runs), problems[p], label, budget, repeat, own))
    return runs


def seed_of(seed: int, *words: str) -> int:
    """A seed of 31 bits, derived from the words.

    Example:
        >>> seed_of("0", "a") == seed_of("0", "b")
        False
    """
    digest = zlib.crc32("\0".join(words).encode(errors="surrogatepass"))
    return int(np.random.SeedSequence([seed, digest]).generate_state(1)[0]) % 2**31


def _class_name(sampler: Any) -> str:
    return sampler.__name__ if isinstance(sampler, type) else type(sampler).__name__


def _options_of(setting: SamplerSetting) -> frozenset[str]:
    """The options of a call of the sampler, as a study calls it."""
    sampler, _ = made(setting)
    child = foreign_child(sampler)
    return frozenset(sampler.parameters if child is None else child.parameters)


def _refuse_reserved(setting: SamplerSetting, budget: Budget) -> None:
    both = [name for name in _RESERVED[budget.kind] if name in setting.options]
    if both:
        raise StudyError(
            f"sampler {setting.label!r}: {both[0]} is set by the budget of {budget.kind}; "
            "leave it out, or choose another kind of budget"
        )
