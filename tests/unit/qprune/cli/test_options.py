"""Options given as name=value."""

import pytest

from qprune.cli.options import parse_options
from qprune.errors import ImpossibleRequestError
from solvers.errors import StudyError
from solvers.study.budgets import Reads, Seconds, parse_budget


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


@pytest.mark.parametrize("value", ["1" * 30, str(2**63), "1e400", "nan", "-inf", "Infinity"])
def test_numbers_without_room_are_refused(value):
    with pytest.raises(ImpossibleRequestError, match=r"the sampler option n: .*(64 bits|finite)"):
        parse_options([f"n={value}"])


def test_only_plain_digits_are_numbers():
    found = parse_options(["a=\u00b2", "b=\u0663", "c=1_0", "d=0x10", f"e={2**63 - 1}", "f=.5"])
    expected = {"a": "\u00b2", "b": "\u0663", "c": "1_0", "d": "0x10", "e": 2**63 - 1, "f": 0.5}
    assert found == expected


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [("1 s", Seconds, 1.0), ("1e3reads", Reads, 1000.0), (" 2.5SECONDS ", Seconds, 2.5)],
)
def test_budgets_with_a_clear_meaning(text, kind, amount):
    assert parse_budget(text) == kind(amount)


@pytest.mark.parametrize(
    "text",
    [
        "1e-9s",
        "\uff11s",
        "1e400s",
        "0x10s",
        "-1s",
        "",
        "s",
        "5m",
        "1.5reads",
        "0reads",
        "1e30sweeps",
    ],
)
def test_budgets_without_one_are_refused_with_an_example(text):
    with pytest.raises(StudyError, match=r"like 0\.5s, 100reads or 1000sweeps"):
        parse_budget(text)
