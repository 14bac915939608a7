"""A model that was pruned in Python, saved in the form of the command line."""

import pytest
import torch
from safetensors.torch import load_file

import qprune
from qprune.errors import RunFolderError
from qprune.network.mask_file import read_mask
from qprune.record.folder import MASK, MODEL, STEPS, read_checksums, read_report, read_steps

METHOD = qprune.Networkwise(stages=1, rounds=1, block_size=16)
INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def pruned(**options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return qprune.prune(model, INPUTS, sparsity=0.5, method=METHOD, sampler="greedy", **options)


@pytest.mark.parametrize("recorded", [False, True])
def test_weights_mask_report_and_journal_are_there(tmp_path, recorded):
    folder = tmp_path / "run"
    run = pruned(output_dir=folder) if recorded else pruned()
    run.save(folder)
    weights, mask = load_file(folder / MODEL), read_mask(folder / MASK)
    assert all(torch.equal(weights[n], t) for n, t in run.model.state_dict().items())
    assert all(torch.equal(mask[name], kept) for name, kept in run.mask.items())
    report, scores = read_report(folder)
    assert scores == ()
    assert [s.kind for s in report.steps] == [s.kind for s in run.report.steps]
    assert read_steps(folder) == report.steps
    assert {MODEL, MASK, STEPS, "report.json"} <= set(read_checksums(folder))
    fresh = pruned().model
    assert qprune.hold(fresh, folder).remove() is None


def test_another_outcome_is_not_overwritten(tmp_path):
    pruned().save(tmp_path / "one")
    with pytest.raises(RunFolderError, match="holds an outcome already"):
        pruned().save(tmp_path / "one")
    pruned(output_dir=tmp_path / "two", seed=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    with pytest.raises(RunFolderError, match="holds another run"):
        pruned().save(tmp_path / "two")
    assert {name: (tmp_path / "two" / name).read_bytes() for name in before} == before
