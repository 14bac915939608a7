"""Any value for any option: an answer, or a refusal in a line or a few; never a traceback.

In short: the long version is `benchmarks.reliability.command_line`.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.reliability.command_line import (
    BASES,
    ODD,
    called,
    drawn,
    fit_for_many,
    make_place,
    make_run,
    options_of,
)
from qprune.cli.main import app

#: What loads transformers, or prunes, takes seconds.
QUICK = ("solve", "compare", "prune", "check", "report", "samplers")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_place(folder)
    with fit_for_many(folder):
        make_run(folder)
        yield folder


def test_every_command_is_tried():
    assert sorted(BASES) == sorted(one.callback.__name__ for one in app.registered_commands)
    assert options_of("solve")["--seed"]
    assert not options_of("solve")["--json"]


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_odd_values_are_answered_or_refused(place, data):
    argv = drawn(lambda several: data.draw(st.sampled_from(list(several))), QUICK)
    assert called(argv).complaint == ""


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(options_of("compare"))), st.text(max_size=30))
def test_any_text_is_answered_or_refused(place, option, text):
    # A slash could make it a folder elsewhere.
    argv = ["compare", *BASES["compare"], option, text.replace("/", "_")]
    assert called(argv).complaint == ""


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_odd_values_of_every_command(place, data):
    argv = drawn(lambda several: data.draw(st.sampled_from(list(several))))
    assert called(argv).complaint == ""


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["solve", "problem.qubo", "--seed", str(2**63)], "from 0 to 9,223,372,036,854,775,807"),
        (["solve", "problem.qubo", "--seed", "-1"], "from 0 to 9,223,372,036,854,775,807, not -1"),
        (["solve", "problem.qubo", "--time-limit", "nan"], "at least 0 and at most 1e+09, not nan"),
        (["solve", "fifo"], "fifo is no regular file"),
        (["compare", *BASES["compare"], "--known", "fifo"], "fifo is no regular file"),
        (["solve", "problem.qubo", "--output", ""], "argument 4 ('') is empty"),
        (["solve", "problem.qubo", "--output="], "argument 3 ('--output=') is empty"),
        (["solve", "problem.qubo", "--output", "missing/x"], "there is no folder missing"),
        (["solve", "problem.qubo", "--output", "folder"], "it is a folder"),
        (["solve", "problem.qubo", "--output", "x" * 300], "File name too long"),
        (["solve", "problem.qubo", "--sampler-option", "num_reads=" + "1" * 5000], "64 bits"),
        (["solve", "problem.qubo", "--sampler-option", "beta=1e400"], "beta: '1e400' is no finite"),
        (["compare", "problem.qubo", "--threads", "100000"], "from 1 to 1,024, not 100000"),
        (["compare", "problem.qubo", "--repeats", "0"], "from 1 to 10,000, not 0"),
        (["compare", *BASES["compare"], "--budget", "1e-9s"], "at least 0.001"),
        (["compare", *BASES["compare"], "--generate", "fisher:n=\u00b2"], "'n=\u00b2' is not"),
        (["evaluate", "model", "--data", "text:file.txt", "--threads", "100000"], "to 1,024"),
        (["measure", "model", "--rounds", "2"], "from 3 to 10,000, not 2"),
        (["resume", "run", "--max-seconds", "nan"], "above 0 and at most 1e+09, not nan"),
        (["prune", *BASES["prune"], "--threads", "100000"], "from 1 to 1,024, not 100000"),
        (["prune", *BASES["prune"], "--stages", "100000000000"], "from 1 to 1,000,000"),
        (["prune", *BASES["prune"], "--stages", "1000000", "--rounds", "9"], "expansions; a run"),
        (["prune", *BASES["prune"], "--executor", "threads:\u00b2"], "1 to 1,024"),
        (["prune", *BASES["prune"], "--executor", "threads:1025"], "1 to 1,024"),
        (["prune", *BASES["prune"], "--targets", "re:("], "no regular expression"),
        (["prune", "--model", ".tiny:model", "--data", "tiny:data"], "--sparsity is missing"),
        (["prune", *BASES["prune"], "--model", ".tiny:model"], "the module's full name"),
        (["prune", *BASES["prune"], "--model", "broken:make"], "ZeroDivisionError"),
        (["prune", *BASES["prune"], "--model", "leaves:make"], "SystemExit(5)"),
        (["prune", *BASES["prune"], "--config", "bomb.yaml"], "line 2: the alias *a"),
        (["prune", *BASES["prune"], "--config", "deep.yaml"], "line 1: it is nested more than 16"),
        (["prune", *BASES["prune"], "--config", "date.yaml"], "line 2: 2024-02-30 is a timestamp"),
        (["prune", *BASES["prune"], "--config", "twice.yaml"], "line 2: seed is there twice"),
        (["prune", *BASES["prune"], "--config", "fifo"], "fifo: it is no regular file"),
        (["prune", *BASES["prune"], "--config", "binary"], "binary: line"),
        (["prune", "--config", "odd.yaml", "--model", "tiny:model", "--data", "tiny:data"],
         "--seed must be a whole number from 0 to 9,223,372,036,854,775,807, not True"),
    ],
)  # fmt: skip
def test_refusals_say_what_and_where(place, argv, told):
    done = called(argv)
    assert done.complaint == ""
    assert done.code == 2
    assert told in done.err.splitlines()[-1]


def test_odd_values_are_odd():
    """The list holds what once was a traceback, a segmentation fault or a run without an end."""
    for value in (
        "threads:\u00b2",
        "100000",
        "100000000000",
        "re:(",
        "1e-9s",
        "\udc80",
        "",
        "fifo",
    ):
        assert value in ODD
