"""Measured savings of pruning on this machine: bytes, memory, time."""

from qprune.models.measure.folder import Measured, measure_folder

__all__ = ["Measured", "measure_folder"]
