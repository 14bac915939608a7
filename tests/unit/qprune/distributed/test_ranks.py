"""Several processes give the bytes that one gives, and none of them waits for ever."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rank_programs
import torch
from safetensors.torch import load_file
from torch import nn

import qprune
from qprune.cli.main import app
from qprune.distributed.ranks import ALONE, DataParallel, joined
from qprune.errors import ImpossibleRequestError
from qprune.jobs.audit import check_run

ROOT = Path(__file__).parents[4]
TOGETHER = (
    "copies",
    "shards",
    "drawn",
    "resumed",
    "not_finite",
    "other_data",
    "refused",
    "taken",
    "layers",
    "uneven",
    "dies",
)


def torchrun(*command, number=2, cwd=ROOT):
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}"]
    launch += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return subprocess.run(
        [*launch, *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder of everything that two ranks can do in one go."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(ROOT / "tests" / "rank_programs.py", *TOGETHER, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process makes of the same."""
    folder = tmp_path_factory.mktemp("one")
    return {
        name: getattr(rank_programs, name)(ALONE, folder) for name in ("copies", "drawn", "layers")
    }


@pytest.mark.parametrize(
    ("program", "same_as"),
    [
        ("copies", "copies"),
        ("shards", "copies"),
        ("resumed", "copies"),
        ("drawn", "drawn"),
        ("layers", "layers"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_give_the_mask_and_weights_of_one(two_ranks, one, program, same_as, rank):
    found = load_file(two_ranks / f"{program}.{rank}.safetensors")
    assert found.keys() == one[same_as].keys()
    for name, tensor in one[same_as].items():
        assert torch.equal(found[name], tensor), name
    assert any(not mask.all() for name, mask in found.items() if name.startswith("m."))


def test_only_the_first_rank_writes_the_folder(two_ranks):
    lines = (two_ranks / "run" / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(len(lines)))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("not_finite", "NonFiniteError: the loss is NaN or Inf in calibration batch 0"),
        ("other_data", "ImpossibleRequestError: rank 1 has another calibration data set"),
        ("refused", "ImpossibleRequestError: compensate does not suit a sharded model"),
        ("taken", "RunFolderError: "),
        ("uneven", "ImpossibleRequestError: 3 batches of samples cannot be shared evenly among 2"),
    ],
)
def test_what_stops_one_rank_stops_all_with_the_same_line(two_ranks, program, message):
    told = [(two_ranks / f"{program}.{rank}.txt").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0].startswith(message)


def test_a_rank_that_dies_is_an_error_and_not_a_wait(two_ranks):
    told = (two_ranks / "dies.0.txt").read_text()
    assert told.startswith("LostRankError: rank 0 of 2 lost another rank")
    assert "resume" in told


@pytest.mark.slow
def test_a_rank_that_hangs_is_an_error_after_the_time_limit(tmp_path):
    torchrun(ROOT / "tests" / "rank_programs.py", "hangs", tmp_path)
    assert (tmp_path / "hangs.0.txt").read_text().startswith("LostRankError: rank 0 of 2 lost")


def test_torchrun_prunes_from_the_command_line_and_only_rank_0_speaks(tmp_path):
    options = ["prune", "--model", "digits-mlp", "--data", "digits", "--sparsity", "0.8"]
    options += ["--stages", "1", "--rounds", "1", "--num-calibration-samples", "200"]
    options += ["--mask-only", "--no-augment", "--seed", "3"]
    two = torchrun("-m", "qprune.cli.main", *options, "--output", tmp_path / "two", "--json")
    assert two.returncode == 0, two.stderr[-2000:]
    assert len(two.stdout.splitlines()) == 1
    assert json.loads(two.stdout)["achieved_sparsity"] == pytest.approx(0.8, abs=1e-4)
    with pytest.raises(SystemExit):
        app([*options, "--output", str(tmp_path / "one")])
    for name in ("mask.safetensors", "model.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not check_run(tmp_path / "two").contradictions


def test_ranks_need_a_process_group():
    with pytest.raises(ImpossibleRequestError, match="start with torchrun"):
        DataParallel()


def test_without_torchrun_there_is_one_rank():
    with joined() as ranks:
        assert ranks is ALONE
        assert (ranks.rank, ranks.size, ranks.any(True), ranks.any(False)) == (0, 1, True, False)


def test_one_rank_adds_parts_in_the_order_of_batches():
    first, second = torch.zeros(2), torch.zeros(1)
    parts = {0: [torch.tensor([[1e8, 1.0]]), None], 1: [torch.tensor([1.0, 2.0]), torch.ones(1)]}
    kept = ALONE.accumulate(lambda n, b: (b, parts[n]), ["a", "b"], [first, second])
    assert kept == {0: "a", 1: "b"}
    assert first.tolist() == [1e8, 3.0]
    assert second.tolist() == [1.0]


def test_a_batch_size_that_leaves_ranks_idle_is_said(caplog):
    class Two(type(ALONE)):
        size = 2

    method = qprune.Networkwise(stages=1, rounds=0)
    qprune.prune(nn.Linear(8, 4), torch.randn(40, 8), sparsity=0.5, method=method, ranks=Two())
    assert "some get none; pass a smaller batch_size" in caplog.text
