"""Folders import only from folders below them."""

import graph
import pytest

SOURCES = graph.Sources()
#: What lies directly in a folder, lowest first. Those of one level do not import one another.
ORDER = {
    "solvers": (
        ("errors",),
        ("host", "registry"),
        ("problem",),
        ("sampler",),
        ("formats",),
        ("search", "rows", "foreign"),
        ("convex",),
        ("ask",),
        ("composites", "testing", "study"),
    ),
    "qprune": (
        ("errors",),
        ("distributed", "cost"),
        ("network", "data", "results"),
        ("objective",),
        ("steps", "models", "plots"),
        ("walk",),
        ("record",),
        ("prune",),
        ("jobs", "study", "board"),
        ("cli",),
    ),
    "qprune.walk.schedule": (
        ("state",),
        ("run",),
        ("schedule",),
        ("streams", "sensitivity"),
        ("networkwise", "layerwise"),
        ("estimate",),
    ),
}


@pytest.mark.parametrize("folder", ORDER)
def test_everything_in_a_folder_has_its_level(folder):
    assert SOURCES.unplaced(folder, ORDER[folder]) == []


@pytest.mark.parametrize("folder", ORDER)
def test_imports_lead_to_lower_levels(folder):
    assert SOURCES.upward_imports(folder, ORDER[folder]) == []
