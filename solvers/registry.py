"""Samplers by name: ours, everyone else's, and those that third parties register.

A third party registers a name through the entry-point group ``qprune.samplers``.
"""

from __future__ import annotations
