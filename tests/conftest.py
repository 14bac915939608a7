"""What every test runs under."""

import os

import array_types
import pytest
import torch
from hypothesis import HealthCheck, settings

# Before anything imports the packages.
array_types.install()


def pytest_configure(config):
    """Processes that tests start run the code that is tested, whatever else is installed.

    Many networks of the tests have embeddings; tests of the warning ask for it.
    """
    paths = [str(config.rootpath), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    config.addinivalue_line("filterwarnings", "ignore::qprune.errors.LeftDenseWarning")


# The first example of a test may compile kernels for seconds; later ones take a millisecond.
settings.register_profile("qprune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qprune")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """Small networks are slower on many threads, and the tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
