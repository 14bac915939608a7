# pyright: standard
"""The common part of all inner loops: numba settings, random numbers, access to a matrix.

Every kernel works in place on plain arrays, releases the GIL and carries its own random state.
Names used throughout:

``matrix``
    the symmetric Q with its diagonal: an (n, n) array, or ``(indptr, indices, data)`` (CSR).
``field``
    linear + Q x, shape (n,), the dtype of the matrix.
``half``
    half the diagonal of Q, shape (n,), the same dtype. Setting variable i changes E by
    ``field[i] + half[i]``, clearing it by ``-field[i] + half[i]``, and a swap of i and j by the
    two together minus ``Q_ij``.
``x``
    int8 state, shape (n,).
``starts``
    group g holds the variables ``starts[g]`` to ``starts[g + 1] - 1``, int64, shape (g + 1,).
``random``
    four uint64 words of xoshiro256++ (Blackman and Vigna 2021), see `random_states_for`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import event
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from solvers.host.clock import COMPILING

logger = logging.getLogger(__name__)


class _Watch(event.Listener):
    """Listener that stops the clock while numba compiles or loads its cache."""

    def on_start(self, event: event.Event) -> None:
        COMPILING.began()

    def on_end(self, event: event.Event) -> None:
        COMPILING.ended()


class _Announcement(event.Listener):
    """Listener that logs once that numba compiles, which takes seconds."""

    said = False

    def on_start(self, event: event.Event) -> None:
        if not self.said:
            logger.info("compiling inner loops, once for each kind of problem")
        self.said = True

    def on_end(self, event: event.Event) -> None:
        pass


# Registered first: numba's list of listeners changes while threads compile, and later ones in
# it can be skipped.
event.register("numba:compiler_lock", _Watch())
event.register("numba:compile", _Announcement())

# Reductions over floats vectorise only when their order is free and NaN is ruled out.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"nnan", "nsz", "reassoc", "contract"},
}


def compiler(**options: Any) -> Callable[[Any], Any]:
    """A numba decorator with the settings of this package; it caches on disk where possible.

    Args:
        **options: of numba's ``njit``, beside those that all kernels have.
    """
    settings: Any = {**_OPTIONS, **options}

    def compiled(function: Any) -> Any:
        try:
            return njit(**settings)(function)
        except RuntimeError:
            # No cache folder can be written to.
            return njit(**settings | {"cache": False})(function)

    return compiled


#: Compiles an inner loop.
kernel = compiler()

#: Compiles a part of an inner loop, always inlined: a call with several arrays costs some 20 ns.
part = compiler(forceinline=True)

#: Quantiles of the unit exponential: a Metropolis threshold costs one table look-up, no log.
EXPONENTIALS = -np.log((np.arange(4096) + 0.5) / 4096).astype(np.float32)

#: Standard Gumbel quantiles in a fixed random order. A kernel reads ``SEGMENT`` of them from a
#: random place: adding T times Gumbel noise and taking the least score samples the Boltzmann
#: distribution over the scores (the "Gumbel-max" identity) with no exponential and no sum.
SEGMENT = 4096
GUMBELS = (
    np.random.default_rng(0)
    .permutation(-np.log(-np.log((np.arange(4 * SEGMENT) + 0.5) / (4 * SEGMENT))))
    .astype(np.float32)
)


def random_states_for(seed: np.random.SeedSequence, num: int) -> NDArray[np.uint64]:
    """An independent generator state for each of ``num`` reads, shape (num, 4)."""
    words = [child.generate_state(4, np.uint64) for child in seed.spawn(num)]
    return np.array(words, dtype=np.uint64).reshape(num, 4)


@part
def next_random(random):
    """The next 64 random bits (xoshiro256++)."""
    a, b, c, d = random[0], random[1], random[2], random[3]
    total = a + d
    result = ((total << np.uint64(23)) | (total >> np.uint64(41))) + a
    shifted = b << np.uint64(17)
    c ^= a
    d ^= b
    b ^= c
    a ^= d
    c ^= shifted
    d = (d << np.uint64(45)) | (d >> np.uint64(19))
    random[0], random[1], random[2], random[3] = a, b, c, d
    return result


@part
def copy_into(target, source):
    """``target[:] = source``, element by element: numba takes seconds to compile the other."""
    for t in range(target.size):
        target[t] = source[t]


@part
def below(bits, bound):
    """An index in 0..bound-1 from the upper 32 of 64 random bits (bound below 2^32)."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@part
def exponential(bits):
    """A unit exponential from the lower 12 of 64 random bits."""
    return EXPONENTIALS[np.int64(bits & np.uint64(4095))]


@intrinsic
def _smaller(typing_context, a, b):
    if not isinstance(a, types.Float) or a != b:
        return None

    def generate(context, builder, signature, arguments):
        kind = arguments[0].type
        minimum = builder.module.declare_intrinsic(
            "llvm.minnum", [kind], ir.FunctionType(kind, [kind, kind])
        )
        return builder.call(minimum, arguments, fastmath=("nnan", "nsz"))

    return a(a, b), generate


#: The smaller of two floats, as the one instruction that LLVM turns into vector code.
smaller: Any = _smaller


@part
def locate(scores, least):
    """The first index whose score is at most ``least`` (one must be)."""
    for low in range(0, scores.size, 64):
        block = scores[low : low + 64]
        hits = np.int32(0)
        for t in range(block.size):
            hits += np.int32(block[t] <= least)
        if hits:
            for t in range(block.size):
                if block[t] <= least:
                    return low + t
    return 0


def entry(matrix, i, j):
    """Q_ij, in kernels only."""
    raise NotImplementedError


def add_row(matrix, i, sign, field):
    """``field += sign * Q_i``, in kernels only."""
    raise NotImplementedError


def add_rows(matrix, i, j, sign, field):
    """``field += sign * (Q_j - Q_i)``, in kernels only."""
    raise NotImplementedError


def score_row(matrix, i, low, sign, field, half, x, temperature, noise, scores):
    """Scores of swapping i with each of a run of variables, less what i itself adds.

    ``field``, ``half``, ``x`` and ``scores`` are the run's slices, ``low`` its first variable.
    Those with the value of i get infinity. Returns the least score; in kernels only.
    """
    raise NotImplementedError


@overload(entry)
def _entry(matrix, i, j):
    if isinstance(matrix, types.Array):
        return lambda matrix, i, j: matrix[i, j]
    return _sparse_entry


@overload(add_row)
def _add_row(matrix, i, sign, field):
    return _dense_add_row if isinstance(matrix, types.Array) else _sparse_add_row


@overload(add_rows)
def _add_rows(matrix, i, j, sign, field):
    return _dense_add_rows if isinstance(matrix, types.Array) else _sparse_add_rows


@overload(score_row)
def _score_row(matrix, i, low, sign, field, half, x, temperature, noise, scores):
    return _dense_score_row if isinstance(matrix, types.Array) else _sparse_score_row


def _dense_add_row(matrix, i, sign, field):
    row = matrix[i]
    for t in range(field.size):
        field[t] += sign * row[t]


def _dense_add_rows(matrix, i, j, sign, field):
    out_row = matrix[i]
    in_row = matrix[j]
    for t in range(field.size):
        field[t] += sign * (in_row[t] - out_row[t])


def _sparse_entry(matrix, i, j):
    indptr, indices, data = matrix
    low, high = indptr[i], indptr[i + 1]
    while low < high:
        middle = (low + high) >> 1
        if indices[middle] < j:
            low = middle + 1
        else:
            high = middle
    return data[low] if low < indptr[i + 1] and indices[low] == j else data.dtype.type(0)


def _sparse_add_row(matrix, i, sign, field):
    indptr, indices, data = matrix
    for p in range(indptr[i], indptr[i + 1]):
        field[indices[p]] += sign * data[p]


def _sparse_add_rows(matrix, i, j, sign, field):
    indptr, indices, data = matrix
    for p in range(indptr[j], indptr[j + 1]):
        field[indices[p]] += sign * data[p]
    for p in range(indptr[i], indptr[i + 1]):
        field[indices[p]] -= sign * data[p]


def _dense_score_row(matrix, i, low, sign, field, half, x, temperature, noise, scores):
    infinity = field.dtype.type(np.inf)
    taken = np.int8(sign > 0)
    row = matrix[i][low : low + field.size]
    least = infinity
    for t in range(field.size):
        score = sign * field[t] + half[t] - row[t] - temperature * noise[t]
        score = infinity if x[t] == taken else score
        scores[t] = score
        least = smaller(least, score)
    return least


def _sparse_score_row(matrix, i, low, sign, field, half, x, temperature, noise, scores):
    infinity = field.dtype.type(np.inf)
    taken = np.int8(sign > 0)
    for t in range(field.size):
        score = sign * field[t] + half[t] - temperature * noise[t]
        scores[t] = infinity if x[t] == taken else score
    indptr, indices, data = matrix
    for p in range(indptr[i], indptr[i + 1]):
        t = indices[p] - low
        if 0 <= t < field.size:
            scores[t] -= data[p]
    least = infinity
    for t in range(field.size):
        least = smaller(least, scores[t])
    return least
