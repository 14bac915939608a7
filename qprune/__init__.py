# pyright: standard
"""Prune neural networks by solving restore-or-prune choices as binary quadratic models.

The public names are listed in `__init__.pyi`; each is imported when it is first used.
"""

import lazy_loader

import solvers

if not hasattr(solvers, "QPRUNE_SOLVERS"):
    raise ImportError(
        f"qprune needs its own package `solvers`, but Python found {solvers.__file__} first; "
        "rename that file, or run from another folder"
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
