"""Options given as name=value."""

import pytest

from qprune.cli_options import parse_options
from qprune.errors import ImpossibleRequestError


def test_values_get_the_type_they_look_like():
    given = ["num_sweeps=200", "beta=1e-3", "exact=true", "mode=fast", "time-limit=0.5", "note=a=b"]
    assert parse_options(given) == {
        "num_sweeps": 200,
        "beta": 0.001,
        "exact": True,
        "mode": "fast",
        "time_limit": 0.5,
        "note": "a=b",
    }
    assert isinstance(parse_options(["n=3"])["n"], int)


@pytest.mark.parametrize("given", [["num_sweeps"], ["=3"], ["a=1", "a=2"]])
def test_what_is_no_option_is_refused(given):
    with pytest.raises(ImpossibleRequestError, match="--sampler-option"):
        parse_options(given)
