"""Folders import only from folders below them."""

import graph
import pytest

SOURCES = graph.Sources()
#: What lies directly in a folder, lowest first. Those of one level do not import one another.
ORDER = {
    "solvers": (
        ("errors",),
        ("host", "registry"),
        ("problem", "options"),
        ("sampler", "formats"),
        ("search",),
        ("foreign", "convex", "rows"),
        ("ask",),
        ("composites", "testing", "study"),
    ),
    "qprune": (
        ("errors",),
        ("results", "distributed", "data"),
        ("cost", "network"),
        ("objective",),
        ("steps", "moving", "models"),
        ("walk",),
        ("record",),
        ("prune",),
        ("jobs", "study"),
        ("cli",),
    ),
    "qprune.walk": (
        ("state", "journal"),
        ("run",),
        ("schedule",),
        ("streams", "sensitivity"),
        ("layer_cost", "network_cost"),
        ("networkwise", "layerwise"),
    ),
}


@pytest.mark.parametrize("folder", ORDER)
def test_everything_in_a_folder_has_its_level(folder):
    assert SOURCES.unplaced(folder, ORDER[folder]) == []


@pytest.mark.parametrize("folder", ORDER)
def test_imports_lead_to_lower_levels(folder):
    assert SOURCES.upward_imports(folder, ORDER[folder]) == []
