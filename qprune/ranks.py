"""Calibration over processes: every rank passes its micro-batches, and all get the same sums.

Every rank runs the whole walk; what is shared out is the passes. Micro-batch b is passed by rank
b mod size. Sums over batches are taken in the order of the batches, whoever made the parts: each
rank adds up its own slice of a sum (an all-to-all for every turn, as large as FSDP's own
reduce-scatter), and the slices are joined at the end. The bytes are therefore those of one
process with the same micro-batches, for any number of ranks on machines of one kind. Blocks are
solved once, by rank 0.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from qprune.errors import ImpossibleRequestError, LostRankError, QpruneError

T = TypeVar("T")
R = TypeVar("R")

#: How long ranks wait for one another.
TIMEOUT = timedelta(minutes=30)
# Parts of a sum are sent in messages of about this many numbers.
_MESSAGE_FLOATS = 1 << 22

Parts = Iterable[Tensor | None]


class Sums(Protocol):
    """Sums over batches, under way."""

    def add(self, parts: Parts, number: int) -> None:
        """Every rank's parts of a turn, in the order of ranks; only ``number`` of them count."""
        ...

    def close(self) -> None:
        """The totals are complete, on every rank."""
        ...


class Ranks(Protocol):
    """A strategy: which process passes which micro-batch, and how all learn what came out."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    @property
    def serial(self) -> Ranks:
        """The same, but batch after batch within a process: for what no threads may share."""
        ...

    def own(self, things: T) -> T:
        """What this thread may run and change: ``things``, or its own copy of them."""
        ...

    def gather(self, function: Callable[[int, T], R], batches: Sequence[T]) -> list[R]:
        """``function(number, batch)`` of every batch, in their order, on every rank."""
        ...

    def accumulate(
        self,
        function: Callable[[int, T], tuple[R, Parts]],
        batches: Sequence[T],
        totals: Sequence[Tensor],
    ) -> dict[int, R]:
        """Add every batch's parts into ``totals``, in the order of the batches.

        Args:
            function: (number, batch) -> (what this rank keeps of it, one part for each total; a
                part may be None and is then nothing).
            batches: all of them, the same on every rank.
            totals: flat vectors, changed in place to the same bytes on every rank.

        Returns:
            What this rank kept, by the batches' numbers.
        """
        ...

    def summing(self, totals: Sequence[Tensor]) -> Sums:
        """Sums to be taken into ``totals`` turn by turn, where `accumulate` does not suit."""
        ...

    def once(self, function: Callable[[], R]) -> R:
        """What ``function`` gives on rank 0, on every rank; what it raises is raised on all."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        ...

    def total(self, number: int) -> int:
        """The sum of every rank's number."""
        ...

    def require_equal(self, what: str, value: str) -> None:
        """Refuse when a rank has another ``value`` than rank 0.

        Raises:
            ImpossibleRequestError: names the rank.
        """
        ...

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, losing another rank is a `LostRankError`."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process that does everything."""

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
    def watched(self) -> Iterator[None]:
        yield


class DataParallel:
    """The processes of a `torch.distributed` group, as torchrun starts them.

    Args:
        group: of processes; None = all. Its backend must work where the model is (gloo: CPU).

    Raises:
        ImpossibleRequestError: no process group has been joined; see `joined`.
    """

    def __init__(self, group: Any = None) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise ImpossibleRequestError(
                "no process group has been joined; start with torchrun and enter "
                "qprune.ranks.joined(), or call torch.distributed.init_process_group"
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
            # An idle rank has passed a batch again; what it found first stays.
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
    def watched(self) -> Iterator[None]:
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
        """The numbers of the batches that are passed at the same time."""
        for first in range(0, len(batches), self.size):
            yield range(first, min(first + self.size, len(batches)))

    def _own(self, numbers: range) -> int:
        """This rank's batch of a turn.

        Where there is none for it, one that it has passed before: the passes of a sharded model
        need every rank.
        """
        if self.rank < len(numbers):
            return numbers[self.rank]
        return numbers.start + self.rank - self.size if numbers.start else numbers[-1]

    def _exchange(self, function: Callable[[], R]) -> list[R]:
        """Every rank's result; the first rank's error is raised on all."""
        found = self._all(_sendable(_outcome(function)))
        for _, error in found:
            if error is not None:
                raise error
        return [result for result, _ in found]

    def _together(self, function: Callable[[], R]) -> R:
        """This rank's result, once all have theirs; the first rank's error is raised on all."""
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
    """The sums of the only process."""

    totals: Sequence[Tensor]

    def add(self, parts: Parts, number: int) -> None:
        for total, part in zip(self.totals, parts, strict=True):
            if part is not None:
                total.view(-1).add_(part.reshape(-1))

    def close(self) -> None:
        return


class _Spread:
    """Every rank adds up its own slice of the totals, cut into messages."""

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
        """The parts of a message one after the other, shape (ranks, numbers of one rank)."""
        sizes = [total.numel() for total in message]
        length = -(-sum(sizes) // self._size)
        joined = message[0].new_zeros(length * self._size)
        for view, part in zip(joined[: sum(sizes)].split(sizes), parts, strict=True):
            if part is not None:
                view.copy_(part.reshape(-1))
        return joined.view(self._size, length)


@dataclass(frozen=True)
class FirstSolves:
    """An executor (`qprune.executors`): rank 0 calls the function, the others get the results.

    Args:
        ranks: all of them.
        executor: rank 0's own.
    """

    ranks: Ranks
    executor: Any = None

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> list[R]:
        """The results, in the order of ``items``."""
        run = map if self.executor is None else self.executor.map
        return self.ranks.once(lambda: list(run(function, items)))


#: The only process.
ALONE = Alone()


def started_ranks() -> int:
    """How many processes torchrun started; 1 where it was not torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """The ranks that torchrun started, or `ALONE` where it was not torchrun.

    Args:
        timeout: how long ranks wait for one another before they end with an error.
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
    """Consecutive totals, together about as large as one message."""
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
            raise  # There is nobody left to tell.
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
    """Whether ``error`` is from a collective that another rank did not come to."""
    if isinstance(error, torch.distributed.DistError):
        return True
    # gloo has no type of its own.
    return isinstance(error, RuntimeError) and "gloo" in str(error)
