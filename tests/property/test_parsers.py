"""Parsers of files that may come from elsewhere: in order, or an error of the project's own.

In short: the long version, guided by coverage, is `benchmarks.reliability.fuzz`.
"""

import random
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.reliability.fuzz import SLOW, changed, make_seeds, targets
from qprune.errors import QpruneError
from solvers.errors import FileWarning, SolverError
from solvers.formats.table import FORMATS

pytestmark = pytest.mark.filterwarnings(f"ignore::{FileWarning.__module__}.FileWarning")

NAMES = ["settings", "run settings", "journal", "scores", "report"]
NAMES += ["run mask", "mask"]
NAMES += ["fingerprint", "checkpoint", "facts", "answer", "study", "rows", "blocks", "known"]
NAMES += ["problem", "problem txt", "problem gset"]
NAMES += [f"problem as {one.name}" for one in FORMATS]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    make_seeds(folder)
    return folder


@pytest.fixture(scope="module")
def parsers(seeds, tmp_path_factory):
    return targets(seeds, tmp_path_factory.mktemp("scratch"))


def in_order(parser, data):
    with suppress(QpruneError, SolverError):
        parser(data)


def test_every_parser_is_here(parsers):
    assert sorted(parsers) == sorted([*NAMES, *SLOW])


@pytest.mark.parametrize("name", [*NAMES, *SLOW])
def test_real_files_are_read(name, seeds, parsers):
    for path in sorted((seeds / name).iterdir()):
        parsers[name](path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 2**32), raw=st.binary(max_size=200))
def test_any_file_is_read_or_refused(name, seeds, parsers, number, raw):
    rng = random.Random(number)
    known = sorted((seeds / name).iterdir())
    in_order(parsers[name], changed(rng.choice(known).read_bytes(), rng))
    in_order(parsers[name], raw)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_any_record_that_is_read_can_be_shown(name, seeds, parsers):
    rng = random.Random(0)
    known = sorted((seeds / name).iterdir())
    for _ in range(20):
        in_order(parsers[name], changed(rng.choice(known).read_bytes(), rng))
