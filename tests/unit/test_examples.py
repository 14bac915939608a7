"""The examples in docstrings of `solvers` and `qprune` run as printed."""

import doctest
import importlib
import pkgutil

import pytest

import qprune
import solvers

MODULES = [f"solvers.{module.name}" for module in pkgutil.iter_modules(solvers.__path__)]
MODULES += [module.name for module in pkgutil.walk_packages(qprune.__path__, "qprune.")]


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
