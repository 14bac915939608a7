"""Convex relaxation, bounds and proofs."""
