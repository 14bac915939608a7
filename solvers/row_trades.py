"""Trades between rows of a layer budget: prune where it costs least, restore where it gains most.

Rows do not interact, so a trade between two different rows changes the objective by exactly the
cost in one minus the gain in the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Marginals(NamedTuple):
    """The cheapest weight to prune and the best one to restore in every row.

    Attributes:
        cost: what pruning ``prune`` adds to the row's objective; inf where nothing is kept.
        prune: an input of every row.
        gain: what restoring ``restore`` takes off it; -inf where nothing is pruned.
        restore: an input of every row.
    """

    cost: Floats
    prune: Integers
    gain: Floats
    restore: Integers


def match(marginals: Marginals, tolerance: float) -> tuple[Integers, Integers]:
    """Rows that give a weight and rows that take one, paired; a row is in one pair at most.

    The row that gains most takes from the row that loses least, and so on while the gain
    exceeds the cost by more than ``tolerance``.

    Returns:
        (givers, takers), of equal length.
    """
    givers: list[int] = []
    takers: list[int] = []
    used = np.zeros(marginals.cost.size, dtype=bool)
    cheapest = iter(np.argsort(marginals.cost, kind="stable").tolist())
    for taker in np.argsort(-marginals.gain, kind="stable").tolist():
        if used[taker]:
            continue
        used[taker] = True
        giver = next((row for row in cheapest if not used[row]), None)
        if giver is None or not (marginals.gain[taker] - marginals.cost[giver] > tolerance):
            break
        used[giver] = True
        givers.append(giver)
        takers.append(taker)
    return np.array(givers, dtype=np.int64), np.array(takers, dtype=np.int64)
