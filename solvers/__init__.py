# pyright: standard
"""Binary quadratic problems with exact counts: problems, samplers, bounds. Knows no networks.

The public names are listed in `__init__.pyi`; each is imported when it is first used.
"""

import lazy_loader

#: Lets `qprune` tell this package from a `solvers.py` of the user's own.
QPRUNE_SOLVERS = True

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
