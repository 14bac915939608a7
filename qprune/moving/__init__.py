"""Movers of kept weights, and what puts them back after an error."""
