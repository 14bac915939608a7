"""Inner loops of the searches, compiled by numba."""
