"""Prune neural networks by solving restore-or-prune choices as binary quadratic models."""

import solvers

if not getattr(solvers, "QPRUNE_SOLVERS", False):
    raise ImportError(
        f"qprune needs its own package `solvers`, but Python found {solvers.__file__} first; "
        "rename that file, or run from another folder"
    )
