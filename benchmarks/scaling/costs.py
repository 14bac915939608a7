"""From what was measured to what a phase costs: counts of operations, few fitted numbers.

Passes are counted in forward passes. Of a forward pass's 2F operations a sample (F
multiplications): a backward pass to the layers' outputs takes as many again, weight gradients as
many more. An expansion is forward, backward with weight gradients, backward of the signs, and the
squares: 5. A Gauss-Newton product is forward with tangents, forward, and backward with
weight gradients: 6.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

MEASURED = Path(__file__).with_name("measured.json")
EXPAND, PRODUCT, GRADIENT, RECOMPUTE = 5.0, 6.0, 3.0, 2.0
# Bytes of vectors over all targeted weights that are read or written, for each weight: by
# choosing a block (costs, partition), by taking or undoing a step, by moving the kept values.
MOVE_BYTES = 24.0
#: Seconds of a matrix by (rows, inputs), q, gate and down of a 7B shape at 70 %, on an NVIDIA H100:
#: ``python -m benchmarks.language_gpu --layers 3 --methods reconstruct``, seed 0.
MATRICES_ON_H100 = {(4096, 4096): 0.9, (11008, 4096): 1.6, (4096, 11008): 4.3}


@dataclass(frozen=True)
class Costs:
    """Seconds of phases on the measured core.

    Args:
        rows: of ``measured.json``.
        calibrated_on: networks whose rows may be fitted on; the others are for checking.
    """

    rows: Sequence[Mapping[str, Any]]
    calibrated_on: str = "MLP"

    @classmethod
    def load(cls, path: Path = MEASURED) -> Costs:
        """Of the machine that was measured last."""
        return cls(json.loads(path.read_text())["rows"])

    def of(self, phase: str, prefix: str = "") -> list[Mapping[str, Any]]:
        """The rows of a phase, of things whose names begin with ``prefix``."""
        return [r for r in self.rows if r["phase"] == phase and r["what"].startswith(prefix)]

    @cached_property
    def stream(self) -> float:
        """Bytes per second that one core reads."""
        (row,) = self.of("stream")
        return row["sizes"]["bytes"] / row["seconds"]

    @cached_property
    def flops(self) -> float:
        """Operations per second of one core in the largest calibrated network's forward pass."""
        row = max(self.of("forward", self.calibrated_on), key=lambda r: r["sizes"]["weights"])
        return 2 * row["sizes"]["multiplications"] * row["sizes"]["samples"] / row["seconds"]

    def forward(self, network: str) -> float:
        """Seconds of one sample's forward pass, as measured on that network."""
        (row,) = self.of("forward", network)
        return row["seconds"] / row["sizes"]["samples"]

    @cached_property
    def per_layer(self) -> float:
        """Seconds of one batch's expansion for each layer that are no arithmetic.

        From the smallest calibrated network, where there is next to none.
        """
        row = min(self.of("expand", self.calibrated_on), key=lambda r: r["sizes"]["weights"])
        passes = EXPAND * self.forward(row["what"]) * row["sizes"]["samples"]
        return max(0.0, row["seconds"] - passes) / row["sizes"]["layers"]

    @cached_property
    def per_weight(self) -> float:
        """Seconds that an expansion of one batch takes for each weight, beside all that."""
        return _fit(
            self.of("expand", self.calibrated_on),
            lambda s: s["weights"],
            lambda r: (
                r["seconds"]
                - EXPAND * self.forward(r["what"]) * r["sizes"]["samples"]
                - self.per_layer * r["sizes"]["layers"]
            ),
        )

    @cached_property
    def columns(self) -> float:
        """Seconds for each entry of a block's columns."""
        rows = self.of("columns", self.calibrated_on)
        return _fit(rows, lambda s: s["samples"] * s["variables"])

    @cached_property
    def select(self) -> float:
        """Seconds for each weight that a block is chosen from."""
        return _fit(self.of("select"), lambda s: s["weights"])

    @cached_property
    def prune(self) -> float:
        """Seconds for each weight that a start chooses from."""
        return _fit(self.of("prune"), lambda s: s["weights"])

    @cached_property
    def draw(self) -> float:
        """Seconds for each random sign, drawn on the host and on every rank."""
        return _fit(self.of("draw"), lambda s: s["numbers"])

    @cached_property
    def exchange(self) -> tuple[float, float]:
        """What a turn of two ranks on this machine takes: bytes per CPU second, CPU seconds."""
        rows = self.of("exchange")
        shortest = min(rows, key=lambda r: r["sizes"]["bytes"])
        # Half of a vector goes out; beside it, two messages are exchanged.
        rate = _fit(rows, lambda s: s["bytes"] / 2, lambda r: r["seconds"] - shortest["seconds"])
        return 1 / rate, shortest["seconds"] / 2

    @cached_property
    def checkpoint(self) -> float:
        """Seconds for each weight of a checkpoint."""
        return _fit(self.of("checkpoint"), lambda s: s["weights"])

    def solve(self, variables: int, samples: int) -> float:
        """Seconds of formulating and solving one block."""
        total = {
            tuple(r["sizes"].values()): r["seconds"] + f["seconds"]
            for r, f in zip(self.of("solve"), self.of("formulate"), strict=True)
        }
        logs = np.log(np.array([[*sizes, seconds] for sizes, seconds in total.items()]))
        matrix = np.column_stack([np.ones(len(logs)), logs[:, :2]])
        fitted = np.linalg.lstsq(matrix, logs[:, 2], rcond=None)[0]
        return float(np.exp(fitted @ [1, np.log(variables), np.log(samples)]))


def matrix_on_h100(rows: int, inputs: int) -> float:
    """Seconds of pruning one matrix on an H100: inverses of A, and work for each row.

    Fitted to `MATRICES_ON_H100`, which it meets within three tenths.
    """
    amounts = np.array([[i**3, r * i**2] for r, i in MATRICES_ON_H100], dtype=np.float64)
    seconds = np.array(list(MATRICES_ON_H100.values()))
    # Relative errors: the largest matrix would decide alone.
    fitted, _ = nnls(amounts / seconds[:, None], np.ones(len(seconds)))
    return float(fitted @ [inputs**3, rows * inputs**2])


def _fit(
    rows: Sequence[Mapping[str, Any]],
    amount: Callable[[Mapping[str, float]], float],
    seconds: Callable[[Mapping[str, Any]], float] = lambda row: row["seconds"],
) -> float:
    """Seconds per unit, by least squares; at least 0."""
    x = np.array([amount(row["sizes"]) for row in rows])
    y = np.array([seconds(row) for row in rows])
    return float(max(0.0, x @ y / (x @ x)))
