"""Plan of a study: samplers, budgets, order and seeds of the runs, decided before any is made."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from solvers.errors import MissingPackageError, SamplerFailedError, StudyError
from solvers.host.legible import has_lone_surrogate, legible
from solvers.host.ranges import MAX_SECONDS, MAX_SEED, Repeats, Seed, Threads, checked
from solvers.host.ranges import Seconds as Limit
from solvers.study.bench import SamplerSetting, foreign_child, question
from solvers.study.budgets import (
    CLOCK_OPTIONS,
    CLOCKS,
    SWEEP_OPTIONS,
    Budget,
    Seconds,
    parse_budget,
)

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
    "time_limit": Limit,
    "prepare_limit": Limit,
}


@dataclass(frozen=True)
class PlannedRun:
    """One run to come.

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


@dataclass(frozen=True)
class Plan:
    """A study as asked for, all but its trials.

    Attributes:
        refused: (label, kind of budget) -> reason, for what cannot run.
        time_limit, prepare_limit: seconds of one run, and of making it ready; see `compare`.
    """

    settings: Sequence[SamplerSetting]
    budgets: Sequence[Budget]
    refused: Mapping[tuple[str, str], str]
    repeats: int
    seed: int
    threads: int
    clock: str
    time_limit: float
    prepare_limit: float | None

    @classmethod
    def of(
        cls,
        samplers: Iterable[Any],
        budgets: Iterable[str | Budget],
        repeats: int,
        seed: int,
        *,
        threads: int,
        clock: str,
        time_limit: float | None,
        prepare_limit: float | None = None,
    ) -> Plan:
        """The plan, if it can be carried out; arguments as in `compare`.

        Raises:
            StudyError, UnknownSamplerError, UnknownOptionError: otherwise.
        """
        settings, allowed = checked_settings(samplers), checked_budgets(budgets)
        numbers = {"repeats": repeats, "seed": seed, "threads": threads}
        numbers |= {"time_limit": time_limit, "prepare_limit": prepare_limit}
        for name, value in numbers.items():
            try:
                _ = value is None or checked(_RANGES[name], value, name)
            except ValueError as error:
                raise StudyError(str(error)) from error
        if clock not in CLOCKS:
            raise StudyError(f"the clock is one of {', '.join(CLOCKS)}, not {clock!r}")
        limit, refused = _limit(allowed, time_limit), refusals(settings, allowed)
        fixed = (repeats, seed, threads, clock, limit, prepare_limit)
        return cls(settings, allowed, refused, *fixed)

    def runs(self, problems: Sequence[str], *, paired: bool = False) -> list[PlannedRun]:
        """Every run, see `ordered_runs`."""
        labels = [one.label for one in self.settings]
        return ordered_runs(problems, labels, self.budgets, self.repeats, self.seed, paired=paired)

    def to_json(self) -> dict[str, Any]:
        """Its part of the record of a study."""
        shown: dict[str, Any] = {
            "samplers": [
                {"label": s.label, "name": s.name, "options": dict(s.options)}
                for s in self.settings
            ],
            "budgets": [{"kind": b.kind, "amount": b.amount} for b in self.budgets],
        }
        for name in ("repeats", "seed", "time_limit", "prepare_limit", "threads", "clock"):
            shown[name] = getattr(self, name)
        return shown


def checked_budgets(budgets: Iterable[str | Budget]) -> tuple[Budget, ...]:
    """The budgets, if there are any, each once.

    Raises:
        StudyError: otherwise.
    """
    found = tuple(parse_budget(budget) for budget in budgets)
    if not found:
        raise StudyError("a study needs at least one budget, such as 0.5s; none was given")
    keys = [(budget.kind, budget.amount) for budget in found]
    if len(set(keys)) != len(keys):
        raise StudyError("a budget is given twice; give each once")
    return found


def _limit(budgets: Sequence[Budget], time_limit: float | None) -> float:
    longest = max([b.amount for b in budgets if isinstance(b, Seconds)], default=0.0)
    if time_limit is None:
        return min(max(60.0, 10.0 * longest), MAX_SECONDS)
    if not time_limit > longest:
        raise StudyError(f"time_limit must exceed the longest budget, {longest:g} s")
    return float(time_limit)


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
        StudyError: there are none, two have one label, or a label holds a NUL or a lone surrogate.
    """
    settings = tuple(as_setting(sampler) for sampler in samplers)
    if not settings:
        raise StudyError("a study needs at least one sampler; none was given")
    labels = [setting.label for setting in settings]
    for label in labels:
        if "\0" in label:
            # NUL separates the words that a seed is made of, and pandas cuts text there.
            raise StudyError(f"the label {legible(label, 60)} holds a NUL; leave it out")
        if has_lone_surrogate(label):
            # Tables of a study are text, which pyarrow, where it is installed, holds as UTF-8.
            raise StudyError(f"the label {legible(label, 60)} is no UTF-8 text; give it another")
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
    *,
    paired: bool = False,
) -> list[PlannedRun]:
    """Every run, in a random order that the seed decides.

    In each repeat the problems are shuffled, and on each problem all samplers and budgets:
    competing runs are close in time, so that load on the machine affects all alike, and a
    model is built once for all that share it. A run's seed depends on its key, not on its
    position; ``paired`` runs have the seeds ``seed``, ``seed + 1``, ... by repeat.
    """
    number = repeats * len(problems) * len(labels) * len(budgets)
    if number > MAX_RUNS:
        raise StudyError(
            f"{len(problems):,} problems, {len(labels)} samplers, {len(budgets)} budgets and "
            f"{repeats:,} repeats are {number:,} runs; a study has at most {MAX_RUNS:,}"
        )
    rng = np.random.default_rng(seed)
    runs: list[PlannedRun] = []
    for repeat in range(repeats):
        for p in map(int, rng.permutation(len(problems))):
            pairs = [(label, budget) for label in labels for budget in budgets]
            for i in map(int, rng.permutation(len(pairs))):
                label, budget = pairs[i]
                words = (problems[p], label, budget.kind, repr(float(budget.amount)), str(repeat))
                own = (seed + repeat) % (MAX_SEED + 1) if paired else seed_of(seed, *words)
                runs.append(PlannedRun(len(runs), problems[p], label, budget, repeat, own))
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
    sampler = question(setting).sampler
    child = foreign_child(sampler)
    return frozenset(sampler.parameters if child is None else child.parameters)


def _refuse_reserved(setting: SamplerSetting, budget: Budget) -> None:
    both = [name for name in _RESERVED[budget.kind] if name in setting.options]
    if both:
        raise StudyError(
            f"sampler {setting.label!r}: {both[0]} is set by the budget of {budget.kind}; "
            "leave it out, or choose another kind of budget"
        )
