"""Third parties' samplers, with their input and their answers checked."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import pickle
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any

import dimod
import numpy as np
from numpy.typing import NDArray

from solvers.errors import (
    InvalidOptionError,
    InvalidProblemError,
    SamplerFailedError,
    SolverError,
    StudyError,
    UnknownOptionError,
    WorkerDiedError,
)
from solvers.host.clock import Deadline, clock_stopped, running
from solvers.host.machine import require_memory
from solvers.host.worker import Processes, Worker, on_a_thread
from solvers.options import SamplerOptions, read_options
from solvers.problem.problem import QuadraticProblem, require_bqm
from solvers.sampler import is_paid, random_states, states_of
from solvers.search.timed import descend

logger = logging.getLogger(__name__)

#: Key of ``info``: number of answers in which the sampler's own energies were NaN or infinite.
NOT_FINITE = "not_finite"
#: Key of ``info``: the fallback that answered where the sampler had found nothing in time.
INSTEAD = "instead"
#: Samples kept, the best ones, with a time limit and no number of reads.
MOST_KEPT = 100
# Third parties' generators take seeds of 31 or 32 bits.
_SEED_LIMIT = 2**31
# Grace seconds for a call to return by itself, after its time limit and after an interrupt.
_GRACE, _GRACE_OF_INTERRUPT = 0.02, 0.4
# Seconds per coupling to convert a model into a problem and to evaluate a state.
_CONVERSION, _EVALUATION = 4e-7, 1e-8
# Seconds per coupling to send a model to a process.
_SENDING = 1.5e-7
_LARGE = 1_000_000
# With less time than this no process is started.
_WORTH_A_PROCESS = 0.03
# Share of a time limit that the fallback may take.
_SHARE_OF_FALLBACK = 0.25
_SECONDS_OF_FALLBACK = 0.4

Options = dict[str, Any]


class ForeignSampler(dimod.Sampler):
    """A third party's sampler with the guarantees of this package, except for counts.

    Before the call: unknown options and invalid values are refused by name, coefficients are
    finite, variables become the integers 0..n-1 in the model's order (so that a seed means the
    same for every labelling), a seed of any size is folded to 31 bits, initial states may be
    anything dimod takes or a plain (k, n) array. After it: the answer has every variable once,
    in order, with values of the model's vartype, and energies recomputed in float64.

    Every sampler has ``time_limit`` here, and an interrupt ends it with what it has found; where
    that is nothing, swap descent answers and ``info["instead"]`` says so. With a time limit alone
    it is asked again and again, with seeds made from the given one, and the best 100 samples are
    returned. A sampler that cannot be stopped in time is asked in a process of its own, which is
    killed; where it cannot be sent there (it is defined in the main script, or cannot be
    pickled), on a thread that is not waited for. ``info["timing"]`` has nanoseconds:
    ``preprocessing_ns`` (checks, and starting the process, which the limit does not count),
    ``sampling_ns``, ``postprocessing_ns``.

    Args:
        child: any object with ``sample(bqm, **options) -> dimod.SampleSet``.
        name: its name in messages; default the class's name.

    Raises:
        InvalidOptionError: ``child`` has no ``sample``.

    Example:
        >>> import dimod
        >>> sampler = ForeignSampler(dimod.RandomSampler())
        >>> bqm = dimod.BinaryQuadraticModel({"b": 1.0, "a": -1.0}, {}, 0.0, "BINARY")
        >>> list(sampler.sample(bqm, num_reads=2, seed=1).variables)
        ['b', 'a']
    """

    def __init__(self, child: Any, *, name: str | None = None) -> None:
        if not callable(getattr(child, "sample", None)):
            raise InvalidOptionError(
                f"{child!r} is not a sampler: it has no method sample(bqm, **options)"
            )
        self.child = child
        self.name = name or type(child).__name__
        self._processes: Processes | None = None

    @property
    def paid(self) -> bool:
        """True if a call is charged for."""
        return is_paid(self.child)

    @property
    def theirs(self) -> frozenset[str]:
        """The options of the sampler itself."""
        return option_names(self.child)

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of `sample`."""
        return {name: [] for name in sorted(self.theirs | {"time_limit"})}

    @property
    def properties(self) -> dict[str, Any]:
        """Capabilities of the sampler; the child's own properties under ``child``."""
        return {
            "counts": False,
            "bound": False,
            "initial_states": "initial_states" in self.parameters,
            "child": dict(getattr(self.child, "properties", None) or {}),
        }

    def sample(self, bqm: dimod.BinaryQuadraticModel, **options: Any) -> dimod.SampleSet:
        """Sample a BQM of either vartype.

        Raises:
            UnknownOptionError: an option that `parameters` does not list.
            InvalidOptionError: an option has an invalid value.
            InvalidProblemError: no BQM, or a coefficient is not finite.
            SamplerFailedError: the sampler raised, or its answer is not one.
        """
        limit = self._checked(options).get("time_limit")
        with running(limit) as deadline:
            require_bqm(bqm)
            deadline.kept_back = _EVALUATION * bqm.num_interactions
            require_finite(bqm)
            instead = None if limit is None else self._instead(bqm, options, deadline)
            answer = self.attempt(bqm, options, deadline)
            if answer is None:
                answer = instead or self._instead(bqm, options, Deadline(_SECONDS_OF_FALLBACK))
        if answer is None:
            state = np.random.default_rng(options.get("seed")).integers(0, 2, bqm.num_variables)
            answer = _other_answer(bqm, state.astype(np.int8), "a random state")
        if deadline.interrupted:
            answer.info["interrupted"] = True
        return answer

    def attempt(
        self,
        bqm: dimod.BinaryQuadraticModel,
        options: Mapping[str, Any],
        deadline: Deadline,
        *,
        endless: bool = True,
    ) -> dimod.SampleSet | None:
        """`sample` with a ``deadline`` instead of a time limit; None if nothing was found.

        Args:
            bqm: the model, coefficients finite.
            options: as in `sample`.
            deadline: of the enclosing call.
            endless: True to repeat calls until the time limit where no number of reads is given.
        """
        stamps = [time.perf_counter_ns()]
        asked = self._checked(options)
        if deadline.time_limit is not None:
            asked.pop("time_limit", None)
        if "initial_states" in asked:
            asked["initial_states"] = _numbered_states(asked["initial_states"], bqm)
        endless &= deadline.time_limit is not None and "num_reads" not in asked and self.repeats
        collected = _Collected(bqm, asked, MOST_KEPT if endless else None)
        if is_constant(bqm):
            return collected.of_constant()
        labels = tuple(bqm.variables)
        plain = labels == tuple(range(len(labels)))
        model = bqm if plain else bqm.relabel_variables(_numbers(labels), inplace=False)
        self.require_room(model, asked)
        if deadline.time_limit is not None:
            asked |= self.hurried(model, asked)
        try:
            with ExitStack() as stack:
                ask = self._asking(model, asked, deadline, stack)
                stamps.append(time.perf_counter_ns())
                pieces = self._pieces(model, asked, endless)
                self._ask_all(model, asked, pieces, deadline, ask, collected)
        except (SolverError, KeyboardInterrupt) as error:
            if isinstance(error, SamplerFailedError):
                error.problem = bqm
            raise
        except Exception as error:
            why = " ".join(str(error).split())
            raise SamplerFailedError(
                f"{self.name} failed on {len(labels)} variables: {type(error).__name__}: {why}",
                problem=bqm,
            ) from error
        stamps.append(time.perf_counter_ns())
        answer = collected.sampleset()
        if answer is not None:
            stamps.append(time.perf_counter_ns())
            _add_timing(answer.info, stamps)
        return answer

    def run(self, bqm: dimod.BinaryQuadraticModel, options: Options) -> dimod.SampleSet:
        """Call the child on a model over 0..n-1; subclasses adapt the call here."""
        return self.child.sample(bqm, **options)

    # -- overridden for single samplers -------------------------------------------------------

    def require_room(self, model: dimod.BinaryQuadraticModel, options: Options) -> None:
        """Refuse a model that is too large for the sampler, before anything is allocated."""

    def reads_at_once(self, model: dimod.BinaryQuadraticModel, options: Options) -> int | None:
        """Reads of one call; more are made in several. None leaves the request whole."""
        return None

    def apart(
        self, model: dimod.BinaryQuadraticModel, options: Options, deadline: Deadline
    ) -> bool:
        """True if a call keeps its time limit only when its process is killed."""
        return deadline.time_limit is not None

    def clocked(self, options: Options, deadline: Deadline, seconds_per_read: float) -> Options:
        """The options with the sampler's own notion of a limit, where it has one.

        Args:
            options: of one call.
            deadline: when it should end.
            seconds_per_read: of the call before; 0 where there is none.
        """
        if "time_limit" in self.theirs and deadline.time_limit is not None:
            return options | {"time_limit": deadline.remaining}
        return options

    def hurried(self, model: dimod.BinaryQuadraticModel, options: Options) -> Options:
        """Options that shorten a call under a time limit."""
        return {}

    def learned(self, answer: dimod.SampleSet, options: Options) -> Options:
        """Options that later calls take over from the first answer, to save its preparation."""
        return {}

    @property
    def repeats(self) -> bool:
        """True if another call may give another answer."""
        return bool({"seed", "num_reads"} & self.theirs)

    # -- calls --------------------------------------------------------------------------------

    def _checked(self, options: Mapping[str, Any]) -> Options:
        refuse_unknown(self.name, options, self.parameters)
        checked = {name: value for name, value in options.items() if value is not None}
        common = {n: checked[n] for n in ("num_reads", "seed", "time_limit") if n in checked}
        asked = read_options(self.name, SamplerOptions, common)
        checked |= {name: getattr(asked, name) for name in common}
        if "seed" in checked:
            checked["seed"] = small_seed(checked["seed"])
        return checked

    def _ask_all(
        self,
        model: dimod.BinaryQuadraticModel,
        asked: Options,
        pieces: Iterator[Options],
        deadline: Deadline,
        ask: Callable[[Options, float], Any],
        collected: _Collected,
    ) -> None:
        """Call the sampler piece by piece, until all are done or the time is over."""
        pace = 0.0
        learned: Options = {}
        for index, piece in enumerate(pieces):
            if deadline.passed:
                return
            began = time.perf_counter()
            try:
                answer = ask(learned | piece, pace)
            except WorkerDiedError as error:
                if error.timed_out:
                    return
                raise SamplerFailedError(f"{self.name}: {error}") from None
            states = checked_answer(answer, model, self.name)
            pace = (time.perf_counter() - began) / len(states)
            if not index:
                learned = self.learned(answer, asked)
            collected.add(answer, states)

    def _pieces(
        self, model: dimod.BinaryQuadraticModel, asked: Options, endless: bool
    ) -> Iterator[Options]:
        """The options of each call."""
        at_once = self.reads_at_once(model, asked)
        total = asked.get("num_reads")
        if at_once is None and endless:
            for index in count():
                yield asked | _seed_of(asked, index)
        if not endless and (at_once is None or total is None or total <= at_once):
            yield asked
            return
        assert at_once is not None
        given = asked.get("initial_states", (np.zeros((0, 0)), ()))
        most = at_once if not endless else max(1, min(at_once, len(given[0])))
        done = 0
        for index in count():
            reads = most if total is None else min(at_once, total - done)
            if not reads:
                return
            piece = asked | _seed_of(asked, index) | {"num_reads": reads}
            if done < len(given[0]):
                piece["initial_states"] = (given[0][done : done + reads], given[1])
            else:
                piece.pop("initial_states", None)
            yield piece
            done += reads
            most = min(2 * most, at_once)

    def _asking(
        self,
        model: dimod.BinaryQuadraticModel,
        asked: Options,
        deadline: Deadline,
        stack: ExitStack,
    ) -> Callable[[Options, float], Any]:
        """A function that runs one call: here, on a thread, or in a process (lent by ``stack``)."""

        def here(options: Options, pace: float) -> Any:
            return self._run_here(model, options, deadline, pace)

        def grace() -> float:
            return _GRACE_OF_INTERRUPT if deadline.interrupted else _GRACE

        def on_thread(options: Options, pace: float) -> Any:
            return on_a_thread(partial(here, options, pace), deadline, grace)

        if deadline.time_limit is None and not deadline.listens:
            return here
        # Conversion of a large model to arrays holds the GIL for a second, so that no other
        # thread would see the deadline pass.
        large = deadline.time_limit is not None and model.num_interactions > _LARGE
        apart = large or self.apart(model, asked, deadline)
        if deadline.remaining < _WORTH_A_PROCESS or not apart:
            return on_thread
        processes = self._sent(asked)
        if processes is None:
            return on_thread
        worker = stack.enter_context(processes.lent())
        if not self._started(worker, deadline):
            return on_thread
        held = False

        def in_process(options: Options, pace: float) -> Any:
            nonlocal held
            if not held:
                if _SENDING * model.num_interactions > deadline.remaining:
                    raise WorkerDiedError("no time to send the model", timed_out=True)
                vectors = model.to_numpy_vectors(variable_order=range(model.num_variables))[:3]
                worker.call("hold", vectors, model.vartype, deadline=deadline)
                held = True
            return worker.call("ask", options, deadline=deadline)

        return in_process

    def _run_here(
        self, model: dimod.BinaryQuadraticModel, options: Options, deadline: Deadline, pace: float
    ) -> Any:
        answer = self.run(model, self.clocked(options, deadline, pace))
        if isinstance(answer, dimod.SampleSet):
            answer.resolve()
        return answer

    def _started(self, worker: Worker, deadline: Deadline) -> bool:
        """Start a process; False where there can be none."""
        try:
            with clock_stopped():
                worker.ensure(deadline)
        except StudyError as error:
            logger.warning("%s: no process of its own: %s", self.name, error)
            return False
        except WorkerDiedError:
            return False
        return True

    def _sent(self, asked: Options) -> Processes | None:
        """Processes with a copy of the sampler; None where there can be none."""
        if multiprocessing.parent_process() is not None:
            return None
        try:
            pickle.dumps(asked)
            if self._processes is None:
                copy = pickle.dumps(self)
                if b"__main__" in copy:  # The main script is not imported there.
                    return None
                self._processes = Processes(partial(_Held, copy), main=False)
        except Exception:
            return None
        return self._processes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_processes": None}

    def _instead(
        self, bqm: dimod.BinaryQuadraticModel, options: Mapping[str, Any], deadline: Deadline
    ) -> dimod.SampleSet | None:
        """Swap descent's answer, as the fallback; None if it takes long."""
        if _CONVERSION * bqm.num_interactions > _SHARE_OF_FALLBACK * deadline.remaining:
            return None
        problem = QuadraticProblem.from_bqm(bqm)
        state = random_states(problem, 1, np.random.default_rng(options.get("seed")))
        return _other_answer(bqm, descend(problem, state, deadline=deadline)[0], "swap descent")


class _Held:
    """The object in the other process: a copy of a sampler, and the model that it samples."""

    def __init__(self, copy: bytes) -> None:
        self.sampler: ForeignSampler = pickle.loads(copy)

    def hold(self, vectors: Any, vartype: dimod.Vartype) -> None:
        linear, (row, col, bias), offset = vectors
        size = len(linear)
        if 4 * len(bias) < size * size:
            self.model = dimod.BinaryQuadraticModel.from_numpy_vectors(
                linear, (row, col, bias), offset, vartype
            )
            return
        matrix = np.zeros((size, size))
        matrix[row, col] = bias
        self.model = dimod.BinaryQuadraticModel(linear, matrix, offset, vartype)

    def ask(self, options: Options) -> Any:
        answer = self.sampler.run(self.model, options)
        if isinstance(answer, dimod.SampleSet):
            answer.resolve()
        return answer


class _Collected:
    """The answers to the pieces of one request, under the caller's labels."""

    def __init__(self, bqm: dimod.BinaryQuadraticModel, asked: Options, most: int | None) -> None:
        self._bqm, self._labels = bqm, list(bqm.variables)
        self._reads, self._most = asked.get("num_reads", 1), most
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._info: dict[str, Any] = {}
        self._senseless = 0

    def add(self, answer: dimod.SampleSet, states: NDArray[np.int8]) -> None:
        columns = {
            name: np.asarray(vector)
            for name, vector in answer.data_vectors.items()
            if name not in ("energy", "sample")
        }
        columns |= {"sample": states, "energy": self._bqm.energies((states, self._labels))}
        self._senseless += not np.isfinite(np.asarray(answer.record.energy, float)).all()
        if not self._columns:
            self._info = dict(answer.info)
            self._columns = {name: [] for name in columns}
        for name in list(self._columns):
            if name in columns:
                self._columns[name].append(columns[name])
            else:
                del self._columns[name]
        if self._most is not None and sum(map(len, self._columns["energy"])) > 2 * self._most:
            self._joined(self._most)

    def _joined(self, most: int | None) -> None:
        joined = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        best = slice(None) if most is None else np.argsort(joined["energy"], kind="stable")[:most]
        self._columns = {name: [column[best]] for name, column in joined.items()}

    def sampleset(self) -> dimod.SampleSet | None:
        """The child's answer under the caller's labels, its own data kept, or None."""
        if not self._columns:
            return None
        self._joined(self._most)
        columns: dict[str, Any] = {n: parts[0] for n, parts in self._columns.items()}
        senseless = {NOT_FINITE: 1} if self._senseless else {}
        return dimod.SampleSet.from_samples(
            (columns.pop("sample"), self._labels),
            vartype=self._bqm.vartype,
            info=self._info | senseless,
            sort_labels=False,
            aggregate_samples=False,
            **columns,
        )

    def of_constant(self) -> dimod.SampleSet:
        """The answer where there is nothing to solve: many samplers fail or warn there."""
        reads, size = self._reads, self._bqm.num_variables
        require_memory(float(reads) * (size + 64), f"an answer of {reads} reads", "ask for fewer")
        low = 0 if self._bqm.vartype is dimod.BINARY else -1
        answer = dimod.SampleSet.from_samples_bqm(
            (np.full((reads, size), low, dtype=np.int8), self._labels),
            self._bqm,
            sort_labels=False,
            aggregate_samples=False,
        )
        _add_timing(answer.info, [0, 0, 0, 0])
        return answer


def _add_timing(info: dict[str, Any], stamps: Sequence[int]) -> None:
    """Nanoseconds under the names that D-Wave's samplers use; other entries stay."""
    before, during, after = np.diff(stamps).tolist()
    told = info.get("timing")
    info["timing"] = {
        **(told if isinstance(told, Mapping) else {}),
        "preprocessing_ns": before,
        "sampling_ns": during,
        "postprocessing_ns": after,
    }


def _seed_of(asked: Options, index: int) -> Options:
    """The seed of one call: the given one for the first, derived from it for later ones."""
    if "seed" not in asked or not index:
        return {}
    state = np.random.SeedSequence([asked["seed"], index]).generate_state(1)
    return {"seed": int(state[0]) % _SEED_LIMIT}


def _other_answer(
    bqm: dimod.BinaryQuadraticModel, state: NDArray[np.int8], who: str
) -> dimod.SampleSet:
    states = state[None] if bqm.vartype is dimod.BINARY else 2 * state[None] - 1
    answer = dimod.SampleSet.from_samples_bqm((states, list(bqm.variables)), bqm)
    answer.info[INSTEAD] = who
    _add_timing(answer.info, [0, 0, 0, 0])
    return answer


def option_names(sampler: Any) -> frozenset[str]:
    """The options that a sampler takes: its ``parameters``, and ``sample``'s named keywords.

    Both, because ``parameters`` is often incomplete (`dimod.RandomSampler` leaves out its seed)
    and the keywords are where a remote solver's options go through ``**kwargs``.
    """
    parameters = getattr(sampler, "parameters", None)
    listed = frozenset(parameters) if isinstance(parameters, Mapping) else frozenset()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    keywords = list(inspect.signature(sampler.sample).parameters.values())[1:]
    return listed | frozenset(p.name for p in keywords if p.kind in named)


def refuse_unknown(sampler: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse options that are not in ``known``.

    Raises:
        UnknownOptionError: names the first such option, the sampler, and what it has.
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UnknownOptionError(
            f"{sampler} has no option {unknown[0]!r}; it has: "
            + (", ".join(sorted(known)) or "none")
        )


def require_finite(bqm: dimod.BinaryQuadraticModel) -> None:
    """Refuse a model with NaN or infinite coefficients.

    Raises:
        InvalidProblemError: names the variable or pair.
    """
    # A finite sum shows that all terms are finite: the slow search is rarely made.
    total = bqm.linear.sum() + bqm.quadratic.sum() + bqm.offset
    if np.isfinite(total):
        return
    for variable, bias in bqm.linear.items():
        if not np.isfinite(bias):
            raise InvalidProblemError(f"the linear bias of {variable!r} is not finite: {bias}")
    for u, v, bias in bqm.iter_quadratic():
        if not np.isfinite(bias):
            raise InvalidProblemError(f"the bias between {u!r} and {v!r} is not finite: {bias}")
    if not np.isfinite(bqm.offset):
        raise InvalidProblemError(f"the offset must be finite, not {bqm.offset}")


def small_seed(seed: Any) -> int:
    """A seed of any size as one of 31 bits; seeds below 2**31 stay as they are.

    Raises:
        InvalidOptionError: it is not a whole number of at least 0.

    Example:
        >>> small_seed(7), 0 <= small_seed(2**70) < 2**31
        (7, True)
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidOptionError(f"seed must be a whole number of at least 0, not {seed!r}")
    seed = int(seed)
    if seed < _SEED_LIMIT:
        return seed
    return int(np.random.SeedSequence(seed).generate_state(1)[0]) % _SEED_LIMIT


def checked_answer(answer: Any, bqm: dimod.BinaryQuadraticModel, name: str) -> NDArray[np.int8]:
    """The states of an answer to a model over 0..n-1, shape (reads, n), in the model's vartype.

    Raises:
        SamplerFailedError: no `dimod.SampleSet`, no rows, wrong variables or values.
    """
    size = bqm.num_variables
    if not isinstance(answer, dimod.SampleSet):
        raise SamplerFailedError(
            f"{name} returned {type(answer).__name__}, not a dimod.SampleSet",
            problem=bqm,
            answer=answer,
        )
    if len(answer) == 0:
        raise SamplerFailedError(f"{name} returned no samples", problem=bqm, answer=answer)
    position = {label: i for i, label in enumerate(answer.variables)}
    if set(position) != set(range(size)):
        raise SamplerFailedError(
            f"{name} answered for {len(position)} variables, asked for {size}: they must be "
            "the model's own",
            problem=bqm,
            answer=answer,
        )
    states = np.asarray(answer.record.sample)[:, [position[i] for i in range(size)]]
    allowed = (0, 1) if answer.vartype is dimod.BINARY else (-1, 1)
    if not np.isin(states, allowed).all():
        raise SamplerFailedError(
            f"{name} returned values other than {allowed[0]} and {allowed[1]}",
            problem=bqm,
            answer=answer,
        )
    if answer.vartype is not bqm.vartype:
        states = (states + 1) // 2 if bqm.vartype is dimod.BINARY else 2 * states - 1
    return states.astype(np.int8)


def _numbers(labels: Sequence[Hashable]) -> dict[Hashable, int]:
    return {label: i for i, label in enumerate(labels)}


def _numbered_states(given: Any, bqm: dimod.BinaryQuadraticModel) -> Any:
    """Initial states as dimod's (array, labels 0..n-1), in the model's vartype."""
    labels = tuple(bqm.variables)
    binary = states_of(given, labels)
    return (binary if bqm.vartype is dimod.BINARY else 2 * binary - 1, list(range(len(labels))))


def is_constant(bqm: dimod.BinaryQuadraticModel) -> bool:
    """True if every bias is zero, so that every state has the same energy."""
    # Sums first: they are fast, and rarely 0 otherwise.
    return (
        bqm.linear.sum() == 0
        and bqm.quadratic.sum() == 0
        and not any(bqm.linear.values())
        and not any(bias for _, _, bias in bqm.iter_quadratic())
    )
