"""Pruning layer by layer: each matrix keeps its outputs, block after block (stage 1)."""

from qprune.layerwise.methods import (
    METHODS,
    Magnitude,
    Method,
    Reconstruct,
    SampledRows,
    SparseGPT,
    Wanda,
)
from qprune.layerwise.outcome import LayerObserver, LayerOutcome, Layerwise
from qprune.layerwise.walk import prune_layerwise

__all__ = [
    "METHODS",
    "LayerObserver",
    "LayerOutcome",
    "Layerwise",
    "Magnitude",
    "Method",
    "Reconstruct",
    "SampledRows",
    "SparseGPT",
    "Wanda",
    "prune_layerwise",
]
