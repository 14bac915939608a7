"""The examples in docstrings of `solvers` and `qprune` run as printed."""

import doctest
import importlib
import pkgutil

import pytest

import qprune
import solvers

MODULES = [
    module.name
    for package in (solvers, qprune)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(("solvers", "qprune")):
            raise
        pytest.skip(f"{name} needs {error.name}")
    failed, _ = doctest.testmod(module, verbose=False)
    assert failed == 0, f"{failed} examples of {name} do not run as printed"
