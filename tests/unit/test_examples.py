"""The examples in docstrings of `solvers` run as printed."""

import doctest
import importlib
import pkgutil

import pytest

import solvers

MODULES = [module.name for module in pkgutil.walk_packages(solvers.__path__, "solvers.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("solvers"):
            raise
        pytest.skip(f"{name} needs {error.name}")
    failed, _ = doctest.testmod(module, verbose=False)
    assert failed == 0, f"{failed} examples of {name} do not run as printed"
