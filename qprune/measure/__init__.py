"""What pruning saves on this machine: bytes, memory, time; and whether it does at all."""

from qprune.measure.folder import Measured, measure_folder

__all__ = ["Measured", "measure_folder"]
