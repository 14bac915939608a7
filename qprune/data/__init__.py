"""Calibration data: what a run may see, in every form it can come in."""
