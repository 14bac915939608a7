"""Budgets: the exact counts of one matrix for a sparsity or a structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from qprune.errors import ImpossibleRequestError
from qprune.layerwise.matrices import Matrix
from qprune.sparsity import KeepNofM
from solvers.row_budgets import Budget, LayerBudget, NofM, RowBudget

#: Scope of a matrix' exact count: each output row, or the whole matrix.
Scope = Literal["row", "layer"]


def budget_of(matrix: Matrix, sparsity: float, structure: KeepNofM | None, scope: Scope) -> Budget:
    """Return the counts of ``matrix``, whose sum is exact.

    Raises:
        ImpossibleRequestError: no weight would be left, or the structure does not fit the inputs.
    """
    if structure is not None:
        if matrix.inputs % structure.m:
            raise ImpossibleRequestError(
                f"layer {matrix.name!r} has {matrix.inputs} inputs, not a multiple of "
                f"{structure.m}; {structure.n}:{structure.m} does not fit: add it to ignore"
            )
        return NofM(structure.n, structure.m)
    kept = matrix.size - round(sparsity * matrix.size)
    if not kept:
        raise ImpossibleRequestError(
            f"layer {matrix.name!r} has {matrix.size} weights; sparsity {sparsity:g} would leave "
            "none of them: lower it, or add the layer to ignore"
        )
    if scope == "layer":
        return LayerBudget(kept)
    # Remainders are spread evenly over the rows.
    return RowBudget(np.diff(np.arange(matrix.rows + 1) * kept // matrix.rows))


def sparsity_by_layer(
    matrices: Sequence[Matrix], sparsity: float, given: Mapping[str, float] | None
) -> dict[str, float]:
    """Return the sparsity of every matrix by its name.

    Args:
        matrices: all targeted matrices.
        sparsity: default for matrices not in ``given``.
        given: sparsities by name.

    Raises:
        ImpossibleRequestError: an unknown name, or a value outside [0, 1).
    """
    result = {matrix.name: sparsity for matrix in matrices}
    for name, value in (given or {}).items():
        if name not in result:
            raise ImpossibleRequestError(
                f"layer_sparsity names {name!r}, which is not pruned; it takes names such as "
                f"{matrices[0].name!r}"
            )
        if not 0 <= value < 1:
            raise ImpossibleRequestError(
                f"layer_sparsity of {name!r} must lie in [0, 1), not {value!r}"
            )
        result[name] = value
    return result
