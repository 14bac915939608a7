"""Problems recorded in a pruning run: the very ones, and the run is as it was without."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import qprune
from qprune.errors import RunFolderError
from qprune.record.blocks import BlockFolder
from solvers.errors import StudyError
from solvers.host.disk import bits_of
from solvers.study import compare, read_instances
from solvers.study.instances import BLOCKS

QUICK = {"sampler": "greedy", "augment": None}
METHOD = {"stages": 2, "rounds": 2, "block_size": 32}


def prune(**options):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4))
    inputs = torch.randn(240, 10, generator=torch.Generator().manual_seed(5))
    own = METHOD | {name: options.pop(name) for name in ("num_blocks", "rounds") if name in options}
    method = qprune.Networkwise(**own)
    return qprune.prune(model, inputs, **(QUICK | {"sparsity": 0.6, "method": method} | options))


def lines_of(folder):
    return [json.loads(line) for line in (folder / BLOCKS).read_text().splitlines()]


@pytest.mark.parametrize("options", [{}, {"budget": "layer"}, {"num_blocks": 2}])
def test_what_is_recorded_is_what_the_sampler_was_asked(tmp_path, options):
    seen = []
    folder = BlockFolder(tmp_path / "blocks", {"model": "two layers"})
    pruned = prune(observe_blocks=[seen.append, folder], **options)
    found = read_instances(tmp_path / "blocks")
    assert len(found) == len(seen) == folder.num_blocks > 4
    rng = np.random.default_rng(0)
    for instance, block, line in zip(found, seen, lines_of(folder.path), strict=True):
        n = block.problem.num_variables
        states = rng.integers(0, 2, (20, n)).astype(np.int8)
        energies = block.problem.energies(states)
        assert instance.problem.energies(states) == pytest.approx(energies, rel=1e-12, abs=1e-15)
        assert np.array_equal(instance.problem.counts, block.problem.counts)
        assert np.array_equal(instance.problem.groups, block.problem.groups)
        assert instance.kind == "recorded"
        answer, present = (bits_of(line[name], n) for name in ("answer", "present"))
        assert np.array_equal(answer, block.answer.sample)
        assert instance.problem.energy(present) == pytest.approx(0, abs=1e-12)
        assert instance.problem.energy(answer) == pytest.approx(line["energy"], abs=1e-12)
        assert instance.about["model"] == "two layers"
        assert sum(line["layers"].values()) == n
        assert (line["stage"], line["round"]) == (block.stage, block.round)
    numbers = {step.index for step in pruned.report.steps if step.kind == "blocks"}
    assert numbers <= {line["step"] for line in lines_of(folder.path)}


def test_the_answer_that_was_taken_is_the_last_of_its_step():
    seen = []
    pruned = prune(observe_blocks=seen.append)
    taken = [step for step in pruned.report.steps if step.kind == "blocks" and step.accepted]
    assert taken
    for step in taken:
        block = [block for block in seen if block.step == step.index][-1]
        assert step.predicted == pytest.approx(block.predicted)
        assert (step.stage, step.round) == (block.stage, block.round)
        assert step.flips == (block.answer.sample != block.present).sum()


def test_recording_changes_nothing(tmp_path):
    plain, recorded = prune(), prune(observe_blocks=BlockFolder(tmp_path / "blocks"))
    assert all(torch.equal(plain.mask[name], recorded.mask[name]) for name in plain.mask)
    for one, other in zip(plain.model.parameters(), recorded.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_curvature_of_many_samples_is_stored_as_a_matrix(tmp_path):
    prune(observe_blocks=BlockFolder(tmp_path))
    with np.load(next(tmp_path.glob("*.npz"))) as arrays:
        assert arrays["Q"].shape == (32, 32)


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is not empty; choose a new folder"):
        BlockFolder(tmp_path)
    with pytest.raises(RunFolderError, match="is not empty"):
        BlockFolder(tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_two_runs_do_not_mix_in_one_new_folder(tmp_path):
    one, other = BlockFolder(tmp_path / "new"), BlockFolder(tmp_path / "new")
    prune(observe_blocks=one)
    before = sorted(path.name for path in one.path.iterdir())
    with pytest.raises(RunFolderError, match="another run records its blocks"):
        prune(observe_blocks=other)
    assert sorted(path.name for path in one.path.iterdir()) == before


def test_a_folder_that_grows_too_large_keeps_blocks_from_all_of_the_run(tmp_path):
    seen = []
    prune(observe_blocks=[seen.append, BlockFolder(tmp_path / "all")])
    size = max(path.stat().st_size for path in (tmp_path / "all").glob("*.npz"))
    folder = BlockFolder(tmp_path / "few", max_bytes=int(3.5 * size))
    prune(observe_blocks=folder)
    names = [line["file"] for line in lines_of(folder.path)]
    assert sorted(path.name for path in folder.path.glob("*.npz")) == names
    assert 1 < len(names) == folder.num_blocks <= 4 < len(seen)
    assert folder.num_bytes <= 3.5 * size
    numbers = [int(name[:4]) for name in names]
    (gap,) = set(np.diff(numbers))
    assert numbers[0] == 0
    assert numbers[-1] + gap >= len(seen)
    assert len(read_instances(folder.path)) == len(names)


def test_a_run_without_blocks_leaves_no_folder(tmp_path):
    prune(rounds=0, observe_blocks=BlockFolder(tmp_path / "blocks"))
    assert not (tmp_path / "blocks").exists()


def test_a_line_torn_by_a_kill_is_left_out_and_a_damaged_one_named(tmp_path):
    prune(observe_blocks=BlockFolder(tmp_path))
    whole = (tmp_path / BLOCKS).read_text()
    (tmp_path / BLOCKS).write_text(whole + '{"file": "00')
    assert len(read_instances(tmp_path)) == whole.count("\n")
    (tmp_path / BLOCKS).write_text('{"file": \n' + whole)
    with pytest.raises(StudyError, match="line 1: not a recorded block"):
        read_instances(tmp_path)


def test_recorded_blocks_are_compared_and_never_solved_worse_than_their_run(tmp_path):
    prune(observe_blocks=BlockFolder(tmp_path))
    instances = read_instances(tmp_path)[:3]
    study = compare(instances, ["exact"], ["0.2s"], repeats=1)
    assert study.rows.status.tolist() == ["ok"] * 3
    for row in study.row_list:
        about = next(one.about for one in instances if one.name == row["problem"])
        assert row["energy"] <= about["energy"] + 1e-12
