"""Drills: what a run survives, one command each."""
