"""One pruning run with sampler after sampler: equal time, paired seeds, failures as rows."""

import importlib
import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import qprune
from qprune import Networkwise
from qprune.cli.compare import SettingsTrial
from qprune.errors import ImpossibleRequestError
from qprune.jobs.settings import make_settings
from qprune.models.datasets import DataSet
from qprune.steps.solve import SolvedBlock
from qprune.study import ModelTrial, compare_pruning, read_pruning_study
from qprune.study.report import (
    link,
    paired,
    proposals,
    summary,
    summary_records,
    write_pruning_report,
)
from qprune.study.yardstick import Yardstick
from solvers import Answer, CountingSampler
from solvers.errors import StudyError, StudyFolderError, UnknownSamplerError
from solvers.study import compare as compare_samplers
from solvers.study.bench import Budgeted
from solvers.study.budgets import Reads, Seconds
from solvers.study.instances import generate
from solvers.study.plan import as_setting
from solvers.study.storage import ROWS, STUDY

#: The module that starts the worker; the package has a function of its name.
RUNNER = importlib.import_module("solvers.study.compare")
METHOD = Networkwise(stages=2, rounds=1, final_rounds=2, block_size=24)
QUICK = {"sparsity": 0.6, "method": METHOD}


def trial(**options):
    """A small classifier of four clouds, random weights."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (400,), generator=generator)
    centres = 1.3 * torch.randn(4, 10, generator=generator)
    inputs = centres[labels] + torch.randn(400, 10, generator=generator)
    data = DataSet(inputs[:240], labels[:240], inputs[240:], labels[240:])
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4))
    options = {"augment": None} | QUICK | options
    return ModelTrial(model, data.calibration(240, 0), data.score, options, "clouds")


class Raises(CountingSampler):
    """Fails in words."""

    def sample_problem(self, problem, **options):
        raise RuntimeError("no\nidea")


class Dies(CountingSampler):
    """Takes its process with it."""

    def sample_problem(self, problem, **options):
        os._exit(3)


class InProcess:
    """A worker without a process."""

    def __init__(self, factory, greet, clock):
        self._subject, self._greet, self._greeted = factory(), greet, False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ensure(self):
        if not self._greeted:
            self._greeted = True
            self._greet(self)

    def call(self, method, *arguments, limit=None):
        return getattr(self._subject, method)(*arguments)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(RUNNER, "Worker", InProcess)


def repeatable(rows):
    """What of rows no clock decides."""
    return [
        {n: v for n, v in row.items() if not n.endswith("seconds") and n != "started"}
        for row in rows
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """In processes of its own: two that work, one that fails, one that dies."""
    folder, seen = tmp_path_factory.mktemp("study") / "pruning", []
    samplers = ["relax", "greedy", "random", ("broken", Raises(), {}), ("fatal", Dies(), {})]
    found = compare_pruning(
        trial(),
        samplers,
        ["0.002s"],
        2,
        7,
        folder=folder,
        clock="cpu",
        observe=lambda row, done, total: seen.append((row["sampler"], done, total)),
    )
    return found, seen


def test_every_run_is_a_row_and_failures_have_their_reason(study):
    found, seen = study
    rows = found.rows
    assert found.complete
    assert [done for _, done, _ in seen] == list(range(1, 11))
    assert {total for _, _, total in seen} == {10}
    assert rows.sampler.tolist() == [
        n for n in ("relax", "greedy", "random", "broken", "fatal") for _ in "12"
    ]
    assert rows.seed.tolist() == [7, 8] * 5
    assert rows.status.tolist() == ["ok"] * 6 + ["crashed"] * 4
    reasons = rows[rows.status == "crashed"].reason.tolist()
    assert all("no idea" in reason for reason in reasons[:2])
    assert all("exit code 3" in reason for reason in reasons[2:])


def test_a_row_says_what_the_run_did(study):
    rows = study[0].rows
    for row in rows[rows.status == "ok"].to_dict("records"):
        assert row["sparsity"] == pytest.approx(0.6, abs=1 / 168)
        assert row["problem"] == "clouds pruned to 60 %"
        points = row["trace"]
        assert len(points) == row["steps"] >= 3
        taken = [point for point in points if point[2]]
        assert row["accepted"] == len(taken)
        assert row["predicted"] == pytest.approx(sum(point[3] for point in taken))
        assert row["real"] == pytest.approx(sum(point[4] for point in taken))
        assert 0 <= row["missed_median"] <= row["uncertain_median"] + 1e-9
        assert row["uncertain_median"] <= 1 + 1e-9
        assert row["blocks"] >= row["steps"]
        # Every call may end late by less than half a read.
        assert 0 < row["sampler_seconds"] < row["blocks"] * 0.02
        assert row["sampler_cpu_seconds"] < row["cpu_seconds"]


def test_runs_of_a_seed_share_their_start_and_nothing_decides_but_the_sampler(study):
    rows = study[0].rows
    done = rows[rows.status == "ok"]
    assert (done.groupby("seed").start_loss.nunique() == 1).all()
    assert done.start_loss.nunique() == 2
    assert done.dense_loss.nunique() == 1
    # The floor is lower than what looks for something.
    means = done.groupby("sampler").missed_mean.mean()
    assert means["random"] > means["greedy"]


def test_the_model_in_hand_is_left_alone(here):
    one = trial()
    before = [parameter.detach().clone() for parameter in one.model.parameters()]
    compare_pruning(one, ["greedy"], ["1reads"], 1)
    for old, new in zip(before, one.model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_killed_study_goes_on_with_the_missing_runs(here, tmp_path):
    whole = compare_pruning(trial(), ["greedy", "random"], ["3reads"], 2, folder=tmp_path / "a")

    class KilledError(Exception):
        pass

    def kill(row, done, total):
        if done == 2:
            raise KilledError

    arguments = (trial(), ["greedy", "random"], ["3reads"], 2)
    with pytest.raises(KilledError):
        compare_pruning(*arguments, folder=tmp_path / "b", observe=kill)
    with (tmp_path / "b" / ROWS).open("a") as torn:
        torn.write('{"problem": "clou')
    seen = []
    again = compare_pruning(
        *arguments, folder=tmp_path / "b", observe=lambda row, done, _: seen.append(done)
    )
    assert seen == [3, 4]
    assert repeatable(again.row_list) == repeatable(whole.row_list)
    assert len(read_pruning_study(tmp_path / "b").record["sessions"]) == 2


def test_a_damaged_row_is_named(here, tmp_path):
    compare_pruning(trial(), ["greedy"], ["1reads"], 1, folder=tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    (tmp_path / ROWS).write_text(json.dumps(row | {"final_accuracy": "good"}) + "\n")
    with pytest.raises(StudyFolderError, match="row 1 is damaged: final_accuracy is 'good'"):
        read_pruning_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"options": {"sparsity": 0.7}}, "pruned to 60 %', not 'clouds pruned to 70 %'"),
        ({"options": {"method": replace(METHOD, block_size=32)}}, "block_size=24"),
        ({"samplers": ["greedy", "sa"]}, "samplers"),
        ({"budgets": ["2reads"]}, "amount is 1.0, not 2.0"),
        ({"seed": 1}, "seed is 0, not 1"),
    ],
)
def test_a_folder_of_another_study_is_refused_by_name(here, tmp_path, change, difference):
    def run(options=None, samplers=("greedy",), budgets=("1reads",), seed=0):
        return compare_pruning(trial(**options or {}), samplers, budgets, 1, seed, folder=tmp_path)

    run()
    before = (tmp_path / ROWS).read_bytes()
    with pytest.raises(StudyFolderError, match="holds another study") as refused:
        run(**change)
    assert difference in str(refused.value)
    assert (tmp_path / ROWS).read_bytes() == before


def test_the_two_kinds_of_study_do_not_share_a_folder(here, tmp_path):
    compare_samplers([generate("fisher:n=8")], ["greedy"], ["1reads"], 1, folder=tmp_path)
    with pytest.raises(StudyFolderError, match="holds another study"):
        compare_pruning(trial(), ["greedy"], ["1reads"], 1, folder=tmp_path)
    with pytest.raises(StudyError, match="not of pruning"):
        read_pruning_study(tmp_path)


def test_impossible_studies_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(RUNNER, "Worker", None)

    def run(one=None, samplers=("greedy",), budgets=("1reads",), **options):
        compare_pruning(one or trial(), samplers, budgets, folder=tmp_path / "new", **options)

    for error, message, asked in (
        (StudyError, "at least one sampler", {"samplers": []}),
        (StudyError, "at least one budget", {"budgets": []}),
        (StudyError, "two samplers have the label", {"samplers": ["greedy", "greedy"]}),
        (StudyError, "no common budget: greedy", {"budgets": ["9sweeps"]}),
        (StudyError, "repeats must be a whole number from 1 to 10,000, not 0", {"repeats": 0}),
        (
            StudyError,
            "time_limit must be a number that is above 0 and at most 1e.09, not 0.0",
            {"time_limit": 0.0},
        ),
        (StudyError, "the clock is one of wall, cpu", {"clock": "sun"}),
        (UnknownSamplerError, "no sampler is called 'sa2'", {"samplers": ["sa2"]}),
    ):
        with pytest.raises(error, match=message):
            run(**asked)
    assert not (tmp_path / "new").exists()


def test_options_that_are_the_study_s_or_nobody_s_are_refused():
    with pytest.raises(ImpossibleRequestError, match="seed is the study's to choose"):
        trial(seed=3)
    with pytest.raises(ImpossibleRequestError, match="no option 'stagse'; it has: augment"):
        trial(stagse=3)
    given = {"model": "digits-mlp", "data": "digits", "sparsity": 0.9, "max_seconds": 9}
    with pytest.raises(ImpossibleRequestError, match="max_seconds"):
        SettingsTrial(make_settings(given))
    with pytest.raises(StudyError, match=r"is no trial; .*SettingsTrial"):
        compare_pruning(make_settings(given), ["greedy"], ["1reads"])


def test_a_model_that_cannot_be_had_leaves_no_folder(here, tmp_path):
    given = {"model": "mlpnet", "data": "digits", "sparsity": 0.9}
    with pytest.raises(qprune.errors.QpruneError):
        compare_pruning(
            SettingsTrial(make_settings(given)), ["greedy"], ["1reads"], folder=tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()


def test_settings_of_a_run_are_its_identity_but_for_sampler_and_seed(tmp_path):
    given = {"model": "digits-mlp", "data": "digits", "sparsity": 0.9}
    one = SettingsTrial(make_settings(given))
    other = SettingsTrial(make_settings(given | {"sampler": "sa", "seed": 4}))
    assert one.to_json() == other.to_json()
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    held = SettingsTrial(make_settings(given | {"weights": weights})).to_json()
    weights.write_bytes(b"two")
    assert SettingsTrial(make_settings(given | {"weights": weights})).to_json() != held


# -- a sampler that spends a budget -------------------------------------------------------


@pytest.mark.parametrize("name", ["greedy", "sa", "swap-anneal"])
def test_a_budgeted_sampler_answers_as_the_study_of_samplers_does(name):
    instance = generate("fisher:n=24,samples=12,seed=3")
    study = compare_samplers([instance], [name], ["5reads"], repeats=1)
    (row,) = study.row_list
    answer = Budgeted(as_setting(name), Reads(5)).sample_problem(instance.problem, seed=row["seed"])
    # The trial that chooses the penalty's strength is seeded by the problem's name.
    if name != "sa":
        assert answer.energy == pytest.approx(row["energy"], rel=1e-12)
    assert instance.problem.feasible(answer.samples).all()
    assert answer.energy == instance.problem.energy(answer.sample)
    assert answer.info["num_reads"] == 5


def test_a_budgeted_sampler_keeps_its_time_and_forgets_one_problem_for_the_next():
    sampler = Budgeted(as_setting("greedy"), Seconds(0.05), "cpu")
    one, other = (generate(f"fisher:n=40,seed={seed}").problem for seed in (1, 2))
    sampler.sample_problem(one)
    for problem in (one, other):
        answer = sampler.sample_problem(problem, seed=1)
        assert 0.03 < answer.info["sampler_seconds"] < 0.08
        assert answer.energy == problem.energy(answer.sample)


# -- measures -----------------------------------------------------------------------------


def solved(energy, problem=None):
    problem = generate("fisher:n=12,samples=6").problem if problem is None else problem
    present = np.zeros(12, np.int8)
    present[:6] = 1
    energies, info = np.array([energy]), {"sampler_seconds": 0.25}
    answer = Answer(present[None], energies, info=info, seconds=0.5)
    return SolvedBlock(0, 0, 0, 0, "x", {}, 0.0, problem, present, 0, answer, 0.0)


def test_what_was_missed_is_measured_from_staying_as_it_is():
    problem = generate("fisher:n=12,samples=6").problem
    shift = problem.energy(solved(0.0).present)
    problem = problem.with_linear(problem.linear, problem.offset - shift)
    yardstick = Yardstick()
    yardstick(solved(0.0, problem))
    best = compare_samplers_optimum(problem)
    assert best < 0
    yardstick(solved(best / 4, problem))
    yardstick(solved(best, problem))
    assert yardstick.missed == pytest.approx([1, 0.75, 0], abs=1e-9)
    assert all(a <= b + 1e-12 for a, b in zip(yardstick.missed, yardstick.uncertain, strict=True))
    assert yardstick.sampler_seconds == 0.75


def compare_samplers_optimum(problem):
    from solvers.ask import counting

    return counting("exact").sample_problem(problem).energy


def made_up(sampler, seed, accuracy, missed, **more):
    fields = {
        "sampler": sampler,
        "budget_kind": "seconds",
        "budget": 0.1,
        "seed": seed,
        "status": "ok",
        "reason": "",
        "final_accuracy": accuracy,
        "missed_mean": missed,
        "trace": [[0, 0, 1, -0.2, -0.1, 0.5]],
    }
    numbers = (
        "missed_median",
        "uncertain_median",
        "predicted",
        "real",
        "accepted_share",
        "accept_loss",
    )
    numbers += ("final_loss", "sampler_seconds", "cpu_seconds")
    return dict.fromkeys(numbers, -1.0) | fields | more


ROWS_MADE_UP = pd.DataFrame(
    [
        made_up("good", 0, 0.9, 0.0, predicted=-2.0),
        made_up("good", 1, 0.7, 0.2, predicted=-2.0),
        made_up("bad", 0, 0.8, 0.5),
        made_up("bad", 1, 0.6, 0.5),
        made_up("worst", 0, 0.1, 0.9),
        made_up("worst", 1, None, None, status="crashed", reason="boom", trace=None),
    ]
)


def test_the_summary_has_means_and_counts_failures():
    cells = summary(ROWS_MADE_UP).set_index("label")
    assert cells.index.tolist() == ["good", "bad", "worst"]
    assert cells.failed.tolist() == [0, 0, 1]
    assert cells.final_accuracy.tolist() == pytest.approx([0.8, 0.7, 0.1])
    assert cells.accuracy_low.tolist() == pytest.approx([0.7, 0.6, 0.1])
    assert cells.missed.tolist() == pytest.approx([0.1, 0.5, 0.9])
    assert cells.kept_promise["good"] == pytest.approx(0.5)


def test_seeds_are_compared_in_pairs():
    table = paired(ROWS_MADE_UP, "final_accuracy").set_index("sampler")
    assert table.difference["good"] == 0
    assert table.difference["bad"] == pytest.approx(0.1)
    assert table.error["bad"] == pytest.approx(0, abs=1e-12)  # though seeds differ by 0.2
    assert table.pairs["worst"] == 1
    assert np.isnan(table.error["worst"])


def test_the_best_is_chosen_on_seeds_that_all_have():
    lucky = made_up("bad", 2, 1.0, 0.5)  # a seed on which nobody else has run yet
    rows = pd.concat([ROWS_MADE_UP, pd.DataFrame([lucky])])
    table = paired(rows, "final_accuracy").set_index("sampler")
    assert table.difference["good"] == 0
    assert table.pairs["bad"] == 2


def test_the_link_is_spearman_s_and_silent_without_enough():
    cells = summary(ROWS_MADE_UP)
    assert link(cells, "missed", "final_accuracy").correlation == pytest.approx(-1)
    assert np.isnan(link(cells[:2], "missed", "final_accuracy").correlation)


def test_proposals_are_one_line_each():
    points = proposals(ROWS_MADE_UP)
    assert len(points) == 5
    assert points.real.tolist() == [-0.1] * 5


# -- report -------------------------------------------------------------------------------


def test_the_report_shows_everything_and_fetches_nothing(study):
    found, _ = study
    page = write_pruning_report(found.folder)
    text = page.read_text(encoding="utf-8")
    for shown in (
        "clouds pruned to 60 %, by sampler",
        "no idea",
        "exit code 3",
        "random",
        "Spearman",
    ):
        assert shown in text
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl", "").replace(
        "https://matplotlib", ""
    ).replace("http://creativecommons", "")
    drawn = {path.stem for path in (page.parent / "figures").iterdir()}
    assert drawn == {
        "accuracy",
        "energy_and_accept_loss",
        "energy_and_final_accuracy",
        "predicted_against_real",
        "loss_along_the_way",
    }
    table = pd.read_csv(page.parent / "tables" / "runs.csv")
    assert len(table) == 10


def test_a_report_comes_out_of_a_study_without_scores_or_without_answers(here, tmp_path):
    blind = ModelTrial(trial().model, trial().calibration, None, trial().options)
    compare_pruning(blind, ["greedy", "random"], ["1reads"], 1, folder=tmp_path / "blind")
    assert "accuracy" not in {
        path.stem
        for path in (write_pruning_report(tmp_path / "blind").parent / "figures").iterdir()
    }
    compare_pruning(trial(), [("x", Raises(), {})], ["1s"], 1, folder=tmp_path / "none")
    assert "no\nidea" not in write_pruning_report(tmp_path / "none").read_text()


def test_the_printed_summary_is_json(study):
    records = summary_records(study[0])
    assert records[0]["test accuracy"] >= records[2]["test accuracy"]
    assert records[-1]["test accuracy"] is None
    json.dumps(records, allow_nan=False)
    assert (study[0].folder / STUDY).is_file()
