"""Data-parallel calibration: ranks share the micro-batches, and all get the same sums.

Every rank runs the whole walk; only the passes are shared. Micro-batch b is passed by rank
b mod size. Sums over batches are taken in the order of the batches: each
rank adds up its own slice of a sum (an all-to-all for every turn, as large as FSDP's own
reduce-scatter), and the slices are joined at the end. The bytes are therefore those of one
process with the same micro-batches, for any number of ranks on machines of one kind. Blocks are
solved once, by rank 0.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from qprune.errors import ImpossibleRequestError, LostRankError, QpruneError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
R = TypeVar("R")

#: Time limit of ranks that wait for one another.
TIMEOUT = timedelta(minutes=30)
# Approximate number of floats per message.
_MESSAGE_FLOATS = 1 << 22

Parts = Iterable[Tensor | None]


class Sums(Protocol):
    """Protocol of unfinished sums over batches."""

    def add(self, parts: Parts, number: int) -> None:
        """Add this rank's parts of a turn; only those of the first ``number`` ranks count."""
        ...

    def close(self) -> None:
        """Complete the totals on every rank."""
        ...


class Ranks(Protocol):
    """Protocol of a group of processes: shares micro-batches and exchanges results."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    @property
    def serial(self) -> Ranks:
        """Same group without threads within a process."""
        ...

    def own(self, things: T) -> T:
        """Return ``things``, or this thread's own copy of them, which it may run and change."""
        ...

    def gather(self, function: Callable[[int, T], R], batches: Sequence[T]) -> list[R]:
        """Return ``function(number, batch)`` of every batch, in order, on every rank."""
        ...

    def accumulate(
        self,
        function: Callable[[int, T], tuple[R, Parts]],
        batches: Sequence[T],
        totals: Sequence[Tensor],
    ) -> dict[int, R]:
        """Add every batch's parts into ``totals``, in the order of the batches.

        Args:
            function: (number, batch) -> (result that this rank keeps, one part for each total; a
                part may be None, which adds nothing).
            batches: all batches, the same on every rank.
            totals: flat vectors, changed in place to the same bytes on every rank.

        Returns:
            Results that this rank kept, by batch number.
        """
        ...

    def summing(self, totals: Sequence[Tensor]) -> Sums:
        """Return sums into ``totals`` taken turn by turn, where `accumulate` does not suit."""
        ...

    def once(self, function: Callable[[], R]) -> R:
        """Call ``function`` on rank 0 and return its result, or raise its error, on every rank."""
        ...

    def any(self, flag: bool) -> bool:
        """Return True if ``flag`` is true on any rank."""
        ...

    def total(self, number: int) -> int:
        """Return the sum of ``number`` over the ranks."""
        ...

    def require_equal(self, what: str, value: str) -> None:
        """Refuse a ``value`` that differs from rank 0's.

        Raises:
            ImpossibleRequestError: names the rank.
        """
        ...

    @contextmanager
    def watched(self) -> Generator[None]:
        """Turn the loss of another rank within the context into a `LostRankError`."""
        ...


@dataclass(frozen=True)
class Alone:
    """Single process without a group."""

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1

    @property
    def serial(self) -> Ranks:
        return self

    def own(self, things: T) -> T:
        return things

    def gather(self, function: Callable[[int, T], R], batches: Sequence[T]) -> list[R]:
        return [function(number, batch) for number, batch in enumerate(batches)]

    def accumulate(
        self,
        function: Callable[[int, T], tuple[R, Parts]],
        batches: Sequence[T],
        totals: Sequence[Tensor],
    ) -> dict[int, R]:
        kept, sums = {}, _Here(totals)
        for number, batch in enumerate(batches):
            kept[number], parts = function(number, batch)
            sums.add(parts, 1)
        return kept

    def summing(self, totals: Sequence[Tensor]) -> Sums:
        return _Here(totals)

    def once(self, function: Callable[[], R]) -> R:
        return function()

    def any(self, flag: bool) -> bool:
        return flag

    def total(self, number: int) -> int:
        return number

    def require_equal(self, what: str, value: str) -> None:
        return

    @contextmanager
    def watched(self) -> Generator[None]:
        yield


class DataParallel:
    """Processes of a `torch.distributed` group, as torchrun starts them.

    Args:
        group: process group; None = all. Its backend must support the model's device (gloo: CPU).

    Raises:
        ImpossibleRequestError: no process group has been joined; see `joined`.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise ImpossibleRequestError(
                "no process group has been joined; start with torchrun and enter "
                "qprune.distributed.ranks.joined(), or call torch.distributed.init_process_group"
            )
        self._dist, self._group = dist, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    @property
    def serial(self) -> Ranks:
        return self

    def own(self, things: T) -> T:
        return things

    def gather(self, function: Callable[[int, T], R], batches: Sequence[T]) -> list[R]:
        results: list[R] = []
        for numbers in self._turns(batches):
            own = self._own(numbers)
            found = self._exchange(lambda at=own: function(at, batches[at]))
            results += found[: len(numbers)]
        return results

    def accumulate(
        self,
        function: Callable[[int, T], tuple[R, Parts]],
        batches: Sequence[T],
        totals: Sequence[Tensor],
    ) -> dict[int, R]:
        kept: dict[int, R] = {}
        sums = self.summing(totals)
        for numbers in self._turns(batches):
            own = self._own(numbers)
            found, parts = self._together(lambda at=own: function(at, batches[at]))
            # An idle rank has repeated a batch; its first result stays.
            kept.setdefault(own, found)
            sums.add(parts, len(numbers))
        sums.close()
        return kept

    def summing(self, totals: Sequence[Tensor]) -> Sums:
        return _Spread(self._dist, self._group, self.rank, self.size, totals)

    def once(self, function: Callable[[], R]) -> R:
        mine: Any = _outcome(function) if self.rank == 0 else None
        sent: list[Any] = [mine and _sendable(mine)]
        self._dist.broadcast_object_list(sent, src=self._first(), group=self._group)
        result, error = mine or sent[0]
        if error is not None:
            raise error
        return result

    def any(self, flag: bool) -> bool:
        return any(self._all(flag))

    def total(self, number: int) -> int:
        return sum(self._all(number))

    def require_equal(self, what: str, value: str) -> None:
        values = self._all(value)
        other = [rank for rank, found in enumerate(values) if found != values[0]]
        if other:
            raise ImpossibleRequestError(
                f"rank {other[0]} has another {what} than rank 0; start every rank with the same"
            )

    @contextmanager
    def watched(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, QpruneError) or not is_lost(error):
                raise
            message = " ".join(str(error).split())
            raise LostRankError(
                f"rank {self.rank} of {self.size} lost another rank, which died or did not answer "
                f"in time ({message[:200]}); look at its own output, then resume or start again"
            ) from error

    def _turns(self, batches: Sequence[Any]) -> Iterator[range]:
        """Yield the numbers of the batches that are passed at the same time."""
        for first in range(0, len(batches), self.size):
            yield range(first, min(first + self.size, len(batches)))

    def _own(self, numbers: range) -> int:
        """Return this rank's batch of a turn.

        Without a new one, an earlier batch of its own, since every rank takes part in the passes
        of a sharded model.
        """
        if self.rank < len(numbers):
            return numbers[self.rank]
        return numbers.start + self.rank - self.size if numbers.start else numbers[-1]

    def _exchange(self, function: Callable[[], R]) -> list[R]:
        """Return every rank's result; the first rank's error is raised on all."""
        found = self._all(_sendable(_outcome(function)))
        for _, error in found:
            if error is not None:
                raise error
        return [result for result, _ in found]

    def _together(self, function: Callable[[], R]) -> R:
        """Return this rank's result once all have theirs; raise the first rank's error on all."""
        result, error = _outcome(function)
        self._exchange(lambda: _raised(error))
        return result

    def _all(self, value: Any) -> list[Any]:
        found = [None] * self.size
        self._dist.all_gather_object(found, value, group=self._group)
        return found

    def _first(self) -> int:
        return 0 if self._group is None else self._dist.get_global_rank(self._group, 0)


@dataclass(frozen=True)
class _Here:
    """Sums of a single process."""

    totals: Sequence[Tensor]

    def add(self, parts: Parts, number: int) -> None:
        for total, part in zip(self.totals, parts, strict=True):
            if part is not None:
                total.view(-1).add_(part.reshape(-1))

    def close(self) -> None:
        return


class _Spread:
    """Sums over ranks: each adds up its own slice of the totals, cut into messages."""

    def __init__(
        self, dist: Any, group: Any, rank: int, size: int, totals: Sequence[Tensor]
    ) -> None:
        self._dist, self._group, self._size = dist, group, size
        self._messages = list(_messages(totals))
        self._slices = [self._padded(m, m)[rank].clone() for m in self._messages]

    def add(self, parts: Parts, number: int) -> None:
        coming = iter(parts)
        for message, owned in zip(self._messages, self._slices, strict=True):
            sent = self._padded([next(coming) for _ in message], message)
            received = torch.empty_like(sent)
            self._dist.all_to_all_single(received, sent, group=self._group)
            for part in received[:number]:
                owned.add_(part)

    def close(self) -> None:
        for message, owned in zip(self._messages, self._slices, strict=True):
            whole = owned.new_empty(self._size * owned.numel())
            self._dist.all_gather(list(whole.split(owned.numel())), owned, group=self._group)
            sizes = [total.numel() for total in message]
            for total, values in zip(message, whole[: sum(sizes)].split(sizes), strict=True):
                total.view(-1).copy_(values)

    def _padded(self, parts: Sequence[Tensor | None], message: Sequence[Tensor]) -> Tensor:
        """Return the concatenated parts of a message, shape (ranks, numbers of one rank)."""
        sizes = [total.numel() for total in message]
        length = -(-sum(sizes) // self._size)
        joined = message[0].new_zeros(length * self._size)
        for view, part in zip(joined[: sum(sizes)].split(sizes), parts, strict=True):
            if part is not None:
                view.copy_(part.reshape(-1))
        return joined.view(self._size, length)


@dataclass(frozen=True)
class FirstSolves:
    """Executor (`executors`) that calls the function on rank 0 and sends the results.

    Args:
        ranks: all ranks.
        executor: executor of rank 0.
    """

    ranks: Ranks
    executor: Any = None

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> list[R]:
        """Return the results in the order of ``items``."""
        run = map if self.executor is None else self.executor.map
        return self.ranks.once(lambda: list(run(function, items)))


#: Single process.
ALONE = Alone()


def started_ranks() -> int:
    """Return the number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(timeout: timedelta = TIMEOUT) -> Generator[Ranks]:
    """Yield the ranks that torchrun started, or `ALONE` without torchrun.

    Args:
        timeout: time limit of ranks that wait for one another.
    """
    if started_ranks() == 1:
        yield ALONE
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timeout)
    try:
        yield DataParallel()
    finally:
        dist.destroy_process_group()


def _messages(totals: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield groups of consecutive totals, each about as large as one message."""
    message: list[Tensor] = []
    for total in totals:
        if message and sum(t.numel() for t in message) + total.numel() > _MESSAGE_FLOATS:
            yield message
            message = []
        message.append(total)
    if message:
        yield message


def _outcome(function: Callable[[], R]) -> tuple[Any, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        if is_lost(error):
            raise  # No other rank is left to be notified.
        return None, error


def _raised(error: Exception | None) -> None:
    if error is not None:
        raise error


def _sendable(outcome: tuple[Any, Exception | None]) -> tuple[Any, Exception | None]:
    result, error = outcome
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = QpruneError(f"{type(error).__name__}: {error}")
    return (result.cpu() if isinstance(result, Tensor) else result), error


def is_lost(error: BaseException) -> bool:
    """Return True if ``error`` is from a collective that another rank missed."""
    if isinstance(error, torch.distributed.DistError):
        return True
    # gloo has no error type of its own.
    return isinstance(error, RuntimeError) and "gloo" in str(error)
