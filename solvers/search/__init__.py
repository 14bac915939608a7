"""Heuristic samplers: descent, annealing, tabu search."""
