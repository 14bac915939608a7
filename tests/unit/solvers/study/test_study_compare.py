"""Comparing samplers: every run a row, judged by the problem, in a fair order, kept on disk."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import odd_samplers as odd
import pandas as pd
import pytest

from solvers import QuadraticProblem
from solvers.convex.exact import Exact
from solvers.errors import (
    InvalidProblemError,
    StudyError,
    StudyFolderError,
    UnknownOptionError,
    UnknownSamplerError,
)
from solvers.host.disk import bits_of
from solvers.host.worker import Worker
from solvers.problem.repair import repair
from solvers.study import Instance, compare, generate, read_instances, read_study
from solvers.study.bench import Judged, judgement
from solvers.study.budgets import Call, Reads, Seconds
from solvers.study.compare import ANSWERED, UNREADY, untimed
from solvers.study.plan import ordered_runs
from solvers.study.storage import ROWS, STUDY

BLOCK = generate("fisher:n=16,samples=8,seed=1")
OPTIMUM = Exact().sample_problem(BLOCK.problem).energy


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Samplers on a problem whose known value is too high, on one where it is too low, or right."""
    samplers = [
        ("greedy", "greedy", {}),
        ("sa, short", "sa", {"num_sweeps": 5}),
        ("sa, long", "sa", {"num_sweeps": 50}),
        *((kind.__name__, kind, {}) for kind in (odd.Raise, odd.Liar, odd.SlowStart)),
        ("TellsThreads", odd.TellsThreads, {}),
        ("tabu", "tabu", {"num_restarts": 1}),
    ]
    problems = [
        replace(BLOCK, known=OPTIMUM + 1.0, name="easy"),
        replace(BLOCK, known=OPTIMUM - 1.0, name="boasted"),
        replace(BLOCK, known=OPTIMUM, name="right"),
    ]
    folder = tmp_path_factory.mktemp("studies") / "study"
    return compare(problems, samplers, ["4reads"], 2, 5, folder=folder)


def of(study, sampler):
    return study.rows[study.rows.sampler == sampler]


def test_every_run_is_a_row(study):
    assert study.complete
    assert len(study.rows) == 3 * 8 * 2
    assert not study.rows.duplicated(["problem", "sampler", "repeat"]).any()
    for sampler in ("greedy", "sa, short", "sa, long", "Liar", "SlowStart", "tabu"):
        assert set(of(study, sampler).status) == {"ok"}, sampler
    assert set(of(study, "Raise").status) == {"crashed"}
    assert of(study, "Raise").reason.str.contains("boom").all()


def test_what_gives_no_answer_is_a_row_with_its_reason():
    samplers = [odd.Crash, odd.Hang, "greedy"]
    study = compare([BLOCK], samplers, ["0.1s", "20sweeps"], 1, 4, time_limit=1.5)
    rows = study.rows[study.rows.budget_kind == "seconds"].set_index("sampler")
    assert rows.order["greedy"] == rows.order.max()  # after the others, and none the worse
    assert rows.status.to_dict() == {"Crash": "crashed", "Hang": "timeout", "greedy": "ok"}
    assert "exit code 3" in rows.reason["Crash"]
    assert "killed after 1.5 s" in rows.reason["Hang"]
    sweeps = study.rows[study.rows.budget_kind == "sweeps"]
    assert set(sweeps.status) == {"incompatible"}
    assert sweeps.reason.str.contains("no option among num_sweeps").all()
    failed = study.rows[study.rows.status != "ok"]
    assert failed[list(ANSWERED)].isna().all(axis=None)


def test_the_problem_judges_and_not_the_sampler(study):
    rows = of(study, "Liar")
    assert (rows.energy >= OPTIMUM - 1e-9).all()
    assert (rows.feasible_share == 0).all()
    assert rows.energy_raw_best.isna().all()
    for reads in rows["energies"]:
        assert len(reads) == 4
        assert min(reads) >= OPTIMUM - 1e-9
    assert (of(study, "greedy").feasible_share == 1).all()


def test_only_sampling_is_timed(study):
    rows = of(study, "SlowStart")
    assert rows.warmup_seconds.max() >= 0.6
    assert rows.seconds.max() < 0.5


def test_samplers_have_one_thread(study):
    assert of(study, "TellsThreads").reason.str.contains("threads 1").all()


def test_a_beaten_value_is_told_and_can_be_verified(study):
    found = study.problems.set_index("problem")
    assert found.beaten.to_dict() == {"easy": True, "boasted": False, "right": False}
    assert found.best_known["easy"] == pytest.approx(OPTIMUM)
    assert found.best_known["boasted"] == pytest.approx(OPTIMUM - 1)
    assert found.best_seen["boasted"] == pytest.approx(OPTIMUM)
    for row in study.row_list:
        if row["beaten"]:
            state = bits_of(row["state"], 16)
            assert BLOCK.problem.feasible(state)[0]
            assert BLOCK.problem.energy(state) == pytest.approx(row["energy"])
            assert row["energy"] < OPTIMUM + 1.0
        else:
            assert row["state"] is None


def test_rows_read_straight_into_pandas_with_all_that_made_them(study):
    rows = pd.read_json(study.folder / ROWS, lines=True)
    assert rows.sampler.tolist() == study.rows.sampler.tolist()
    np.testing.assert_allclose(rows.energy.astype(float), study.rows.energy, equal_nan=True)
    assert rows.seed.nunique() == len(rows)
    assert rows[rows.sampler == "sa, long"].settings.iloc[0]["num_sweeps"] == 50
    record = json.loads((study.folder / STUDY).read_text())
    session = record["sessions"][0]
    assert {"qprune", "numpy", "dimod", "python"} <= session["versions"].keys()
    assert {"commit", "cpu", "gpu", "cores", "threads", "system", "started"} <= session.keys()
    assert session["cpu"]
    assert record["seed"] == 5
    assert {"label": "sa, short", "name": "sa", "options": {"num_sweeps": 5}} in record["samplers"]
    assert all(len(problem["fingerprint"]) == 16 for problem in record["problems"])


def test_a_finished_study_runs_nothing_again(study):
    before = (study.folder / ROWS).read_bytes()
    rows = list(read_study(study.folder).row_list)
    assert rows == study.row_list
    assert (study.folder / ROWS).read_bytes() == before


# -- the order ----------------------------------------------------------------------------


def test_rivals_are_interleaved_in_a_seeded_order():
    names, labels = ["p", "q", "r"], [f"s{i}" for i in range(6)]
    budgets = [Seconds(0.1), Reads(3)]
    runs = ordered_runs(names, labels, budgets, 2, 0)
    assert len({run.key for run in runs}) == len(runs) == 3 * 6 * 2 * 2
    assert runs == ordered_runs(names, labels, budgets, 2, 0)
    other = ordered_runs(names, labels, budgets, 2, 1)
    assert [run.key for run in runs] != [run.key for run in other]
    orders = {
        tuple(run.label for run in runs if (run.problem, run.repeat) == (name, repeat))
        for name in names
        for repeat in range(2)
    }
    assert len(orders) == 6  # no sampler always has the first turn
    places = {label: [run.order for run in runs if run.label == label] for label in labels}
    assert all(min(turns) < 36 and max(turns) >= 36 for turns in places.values())
    # A run's seed is what it was, whoever else takes part.
    alone = ordered_runs(["q"], ["s3"], budgets, 2, 0)
    seeds = {run.key: run.seed for run in runs}
    assert all(seeds[run.key] == run.seed for run in alone)


# -- resuming -----------------------------------------------------------------------------

SHORT = {"samplers": ["greedy", ("sa", {"num_sweeps": 5})], "budgets": ["2reads"]}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return compare([BLOCK], **SHORT, repeats=2, folder=tmp_path_factory.mktemp("short") / "study")


def test_what_is_missing_is_run_and_nothing_else(short, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(short.folder, folder)
    lines = (folder / ROWS).read_bytes().splitlines(keepends=True)
    # Killed while it wrote its third row.
    (folder / ROWS).write_bytes(lines[0] + lines[1] + lines[2][:40])
    assert len(read_study(folder).row_list) == 2
    told = []
    again = compare(
        [BLOCK],
        **SHORT,
        repeats=2,
        folder=folder,
        observe=lambda row, done, total: told.append((row["order"], done, total)),
    )
    assert told == [(2, 3, 4), (3, 4, 4)]
    assert untimed(again.row_list) == untimed(short.row_list)
    assert (folder / ROWS).read_bytes().splitlines(keepends=True)[:2] == lines[:2]
    assert len(again.record["sessions"]) == 2


def test_a_damaged_row_is_named_and_nothing_is_lost(short, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(short.folder, folder)
    lines = (folder / ROWS).read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], b"{broken\n", *lines[2:]])
    (folder / ROWS).write_bytes(damaged)
    with pytest.raises(StudyFolderError, match=r"rows\.jsonl, line 2 is damaged"):
        compare([BLOCK], **SHORT, repeats=2, folder=folder)
    assert (folder / ROWS).read_bytes() == damaged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": "low"}, "energy is 'low'"),
        ({"energy": None}, "energy is None"),
        ({"repeat": True}, "repeat is True"),
        ({"n": 2.5}, "n is 2.5"),
        ({"beaten": 1}, "beaten is 1"),
        ({"sampler": 3}, "sampler is 3"),
    ],
)
def test_a_row_of_wrong_types_is_named(short, tmp_path, change, message):
    shutil.copytree(short.folder, tmp_path / "study")
    rows = [json.loads(line) for line in (short.folder / ROWS).read_text().splitlines()]
    rows[1] |= change
    (tmp_path / "study" / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for read in (read_study, lambda folder: compare([BLOCK], **SHORT, repeats=2, folder=folder)):
        with pytest.raises(StudyFolderError, match=rf"row 2 is damaged: {message}"):
            read(tmp_path / "study")


def test_a_record_of_wrong_types_is_named(short, tmp_path):
    record = json.loads((short.folder / STUDY).read_text())
    record["samplers"][1]["label"] = None
    (tmp_path / STUDY).write_text(json.dumps(record))
    with pytest.raises(StudyFolderError, match=r"study\.json is damaged: samplers label is None"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"repeats": 3}, "its repeats is 2, not 3"),
        ({"budgets": ["3reads"]}, "its budgets reads amount is 2.0, not 3.0"),
        ({"samplers": ["greedy", ("sa", {"num_sweeps": 6})]}, "samplers"),
        ({"samplers": ["greedy"]}, "its samplers is 2: greedy, sa"),
        ({"problems": [generate("fisher:n=16,samples=8,seed=2")]}, "problems"),
        ({"problems": [replace(BLOCK, known=3.0)]}, f"its problems {BLOCK.name} known is None"),
        ({"clock": "cpu"}, "its clock is 'wall', not 'cpu'"),
    ],
)
def test_another_studys_folder_is_refused_by_the_difference(short, change, message):
    before = {path.name: path.read_bytes() for path in short.folder.iterdir()}
    asked = {"problems": [BLOCK], **SHORT, "repeats": 2, **change}
    with pytest.raises(StudyFolderError, match="holds another study") as caught:
        compare(**asked, folder=short.folder)
    assert message in str(caught.value)
    assert {path.name: path.read_bytes() for path in short.folder.iterdir()} == before


def test_equal_names_with_other_coefficients_are_another_study(short):
    linear = BLOCK.problem.linear.copy()
    linear[3] += 1e-6
    other = QuadraticProblem(linear, BLOCK.problem.quadratic, counts=BLOCK.problem.counts)
    with pytest.raises(StudyFolderError, match="fingerprint"):
        compare([replace(BLOCK, problem=other)], **SHORT, repeats=2, folder=short.folder)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StudyFolderError, match="is not empty and holds no study"):
        compare([BLOCK], **SHORT, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_write_to_one_study(short):
    code = f"""
from filelock import FileLock
lock = FileLock({str(short.folder / ".lock")!r})
lock.acquire()
print("locked", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(StudyFolderError, match="another process works on the study"):
            compare([BLOCK], **SHORT, repeats=2, folder=short.folder)
        other.communicate("\n")
    assert compare([BLOCK], **SHORT, repeats=2, folder=short.folder).complete


def test_a_pair_that_is_never_ready_is_tried_once(tmp_path):
    asked = {"samplers": [odd.NeverReady], "budgets": ["1reads"], "repeats": 3}
    asked |= {"folder": tmp_path / "study", "prepare_limit": 0.7}
    began = time.monotonic()
    study = compare([BLOCK], **asked)
    assert time.monotonic() - began < 30
    assert set(study.rows.status) == {"timeout"}
    assert study.rows.reason.str.startswith(UNREADY + "killed after 0.7 s").all()
    kept = (tmp_path / "study" / ROWS).read_bytes().splitlines(keepends=True)
    (tmp_path / "study" / ROWS).write_bytes(kept[0])
    assert untimed(compare([BLOCK], **asked).row_list) == untimed(study.row_list)


# -- what cannot be compared --------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"problems": []}, StudyError, "at least one problem"),
        ({"samplers": []}, StudyError, "at least one sampler"),
        ({"budgets": []}, StudyError, "at least one budget"),
        ({"budgets": ["2"]}, StudyError, "0.5s, 100reads or 1000sweeps, not '2'"),
        ({"budgets": ["0s"]}, StudyError, "at least 0.001 and at most 1e+09, not 0.0"),
        ({"budgets": ["1.5reads"]}, StudyError, "whole number"),
        ({"budgets": ["1s", "1.0s"]}, StudyError, "given twice"),
        ({"samplers": ["nope"]}, UnknownSamplerError, "no sampler is called 'nope'"),
        ({"samplers": [("greedy", {"x": 1})]}, UnknownOptionError, "no option 'x'"),
        ({"samplers": ["greedy", "greedy"]}, StudyError, "two samplers have the label 'greedy'"),
        ({"samplers": [("sa", {"num_reads": 3})]}, StudyError, "num_reads is set by the budget"),
        (
            {"samplers": ["greedy", "sa"], "budgets": ["20sweeps"]},
            StudyError,
            "no common budget: greedy has no budget in sweeps",
        ),
        ({"problems": [BLOCK, BLOCK]}, StudyError, "two problems are called"),
        (
            {"problems": [Instance("none", QuadraticProblem(np.zeros(0), np.zeros((0, 0))))]},
            StudyError,
            "problem 'none' is empty",
        ),
        ({"repeats": 0}, StudyError, "repeats must be a whole number from 1 to 10,000, not 0"),
        ({"clock": "sun"}, StudyError, "the clock is one of wall, cpu"),
        ({"time_limit": 0.5, "budgets": ["1s"]}, StudyError, "must exceed the longest budget"),
        (
            {"prepare_limit": 0},
            StudyError,
            "prepare_limit must be a number that is above 0 and at most 1e+09, not 0",
        ),
    ],
)
def test_what_makes_no_study_is_refused_before_anything_is_written(
    tmp_path, change, error, message
):
    asked = {"problems": [BLOCK], "samplers": ["greedy"], "budgets": ["2reads"], **change}
    with pytest.raises(error) as caught:
        compare(**asked, folder=tmp_path / "study")
    assert message in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_a_sampler_that_cannot_be_sent_says_so(tmp_path):
    class Local(odd.Odd):
        pass

    with pytest.raises(StudyError, match="define it in a module that can be imported"):
        compare([BLOCK], [Local()], ["2reads"], repeats=1)


@pytest.mark.parametrize("content", ["", "p qubo 0 2 1 1\n0 2 1\n", "nonsense"])
def test_an_unreadable_instance_is_named(tmp_path, content):
    path = tmp_path / "bad.qubo"
    path.write_text(content)
    with pytest.raises(InvalidProblemError, match=r"bad\.qubo"):
        read_instances(path)


def test_what_was_chosen_for_a_pair_holds_in_a_new_process(tmp_path):
    block = generate("fisher:n=200,samples=20,seed=3")
    asked = {"samplers": ["sa", "swap-anneal"], "budgets": ["0.002s"], "folder": tmp_path / "study"}
    study = compare([block], **asked, repeats=2)
    rows = [json.loads(line) for line in (tmp_path / "study" / ROWS).read_text().splitlines()]
    # What no process would choose by itself shows that nothing is chosen anew.
    kept = [row for row in rows if row["repeat"] == 0]
    for row in kept:
        row["settings"]["num_sweeps"] = 7
        row["settings"] |= {"beta_range": [0.5, 3.0]} if row["sampler"] == "sa" else {}
    text = "".join(json.dumps(row) + "\n" for row in kept)
    (tmp_path / "study" / ROWS).write_text(text)
    again = compare([block], **asked, repeats=2).rows
    assert len(again) == len(study.rows) == 4
    after = again[again.repeat == 1].set_index("sampler").settings
    assert after["sa"]["num_sweeps"] == after["swap-anneal"]["num_sweeps"] == 7
    assert after["sa"]["beta_range"] == [0.5, 3.0]
    assert after["sa"]["strength"] == kept[0]["settings"].get("strength", after["sa"]["strength"])


def test_a_limit_by_cpu_time_ends_work_and_not_waiting():
    samplers = [("works", odd.Takes, {"work": 30.0}), ("waits", odd.Takes, {"wait": 2.5})]
    study = compare([BLOCK], samplers, ["1reads"], 1, time_limit=1.0, clock="cpu")
    rows = study.rows.set_index("sampler")
    assert rows.status.to_dict() == {"works": "timeout", "waits": "ok"}
    assert rows.cpu_seconds["waits"] < 1.0


class Told:
    """Answers that are states, as they are."""

    def judged(self, answer):
        return Judged(answer)


@pytest.mark.parametrize("n", [16, 70])
def test_states_found_again_and_again_are_judged_like_any(n):
    problem = generate(f"fisher:n={n},samples=8,count=6").problem
    rng = np.random.default_rng(0)
    few = (rng.random((5, n)).argsort(axis=1) < 6).astype(np.int8)
    few[0, :] = 1  # not feasible
    states = few[rng.integers(0, 5, 200)]
    calls = [Call(0.1, states[:50]), Call(0.2, states[50:])]
    found = judgement(problem, Told(), calls, 0, 1000)
    energies = problem.energies(repair(problem, states))
    np.testing.assert_allclose(found["energies"], energies)
    assert found["energy"] == pytest.approx(energies.min())
    assert found["num_reads"] == 200
    assert found["num_best"] == (energies <= energies.min() + 1e-9).sum()
    assert found["feasible_share"] == pytest.approx(problem.feasible(states).mean())
    assert found["energy_raw_best"] == pytest.approx(energies[problem.feasible(states)].min())
    assert problem.energy(bits_of(found["state"], n)) == pytest.approx(found["energy"])
    assert found["trace"][-1][1] == pytest.approx(found["energy"])


def test_of_states_that_are_equally_good_the_first_is_kept():
    problem = QuadraticProblem([-1.0, 0.0, 0.0], np.zeros((3, 3)))
    calls = [Call(0.1, np.array([[0, 1, 1], [1, 0, 1], [1, 0, 0]], np.int8))]
    assert bits_of(judgement(problem, Told(), calls, 0, 10)["state"], 3).tolist() == [1, 0, 1]


def test_a_worker_that_is_done_ends_by_itself():
    """Killed, it would leave locks of its libraries behind, and a warning of the interpreter's."""
    with Worker(dict) as worker:
        worker.ensure()
        process = worker._process
    assert process.exitcode == 0


def test_a_worker_is_killed_when_the_study_fails():
    processes = []

    def fail():
        with Worker(dict) as worker:
            worker.ensure()
            processes.append(worker._process)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert processes[0].exitcode == -signal.SIGKILL
