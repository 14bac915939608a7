"""Measured savings of pruning on this machine: bytes, memory, time."""

from qprune.measure.folder import Measured, measure_folder

__all__ = ["Measured", "measure_folder"]
