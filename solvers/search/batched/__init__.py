"""Searches that move many reads at once, on torch."""
