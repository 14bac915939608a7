"""A run killed between two blocks of stage 1 goes on in another process, to the same bytes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qprune
from qprune.moving.distill import Distillation
from qprune.record.checkpoint import Checkpoints

pytest.importorskip("transformers")

import tiny_heads
import tiny_models

SHORT = qprune.Networkwise(
    start=None, rounds=1, num_blocks=2, block_size=32, samples_per_step=8, accept_share=0.25
)
BOTH = {
    "method": (qprune.Layerwise(), SHORT),
    "compensate": Distillation(4, final_steps=1, at_end=True),
    "augment": None,
}
ALONE = {"method": qprune.Layerwise(shares=None)}
#: Model, options, and the step at which the run is killed: never the first, never the last.
RUNS = {
    "llama": ("llama", ALONE, 1),
    "llama, mask alone": ("llama", ALONE | {"compensate": False}, 1),
    "llama, both stages": ("llama", BOTH, 1),
    "gpt2, both stages": ("gpt2", BOTH, 1),
    "a mixture of experts": ("mixtral", ALONE | {"mask_structure": "2:4"}, 1),
    "an encoder and a decoder": ("bart", ALONE, 2),
    "in files": ("gemma3", {"method": qprune.Layerwise("sparsegpt", offload="FILES")}, 1),
}


class KilledError(Exception):
    """Raised where a real run would be killed."""


def made(name):
    """The model and its samples."""
    if name == "bart":
        model = tiny_heads.make(name)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 28, (2, 12, 9), generator=generator)
        return model, {"input_ids": ids[0], "decoder_input_ids": ids[1]}
    model = tiny_models.make(name)
    return model, tiny_models.samples(model, 12)


def run(case, folder, **more):
    name, options, _ = RUNS[case]
    model, samples = made(name)
    method = options["method"]
    if getattr(method, "offload", None) == "FILES":
        (folder / "files").mkdir(parents=True, exist_ok=True)
        options = options | {"method": qprune.Layerwise(method.rows, offload=folder / "files")}
    options = {"sparsity": None if "mask_structure" in options else 0.5} | options | more
    return qprune.prune(model, samples, batch_size=4, seed=7, **options)


def kill_all(folder):
    """Every run until it is killed, each into a folder of its own; a process of its own."""
    torch.set_num_threads(1)
    Checkpoints.offer = Checkpoints.write

    for case, (_, _, at) in RUNS.items():

        def observe(step, at=at):
            if step.index == at:
                raise KilledError

        try:
            run(case, folder / case, output_dir=folder / case / "run", observe=observe)
        except KilledError:
            continue
        raise AssertionError(f"{case}: it ended before step {at}")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    here = Path(__file__)
    paths = [str(here.parent), str(here.parents[3])]
    code = f"import sys; sys.path[:0] = {paths!r}\nfrom pathlib import Path\n"
    code += f"import {here.stem} as runs\nruns.kill_all(Path({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", RUNS)
def test_killed_after_a_block_it_ends_as_if_never_killed(case, killed):
    at = RUNS[case][2]
    snapshot = Checkpoints(killed / case / "run").load()
    assert [step.kind for step in snapshot.steps] == ["block"] * at
    assert snapshot.progress.position == at
    begun = []
    again = run(case, killed / case, resume_from=killed / case / "run", observe=begun.append)
    # What was done is not done again, and what was not is.
    assert [step.index for step in begun] == list(range(at, len(again.report.steps)))
    whole = run(case, killed / case)
    assert len(whole.report.steps) == len(again.report.steps)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    for name, kept in whole.mask.items():
        assert torch.equal(again.mask[name], kept), name
    layers = [[(o.name, o.num_pruned, o.error) for o in r.report.layers] for r in (whole, again)]
    assert layers[0] == layers[1]
    assert not all(kept.all() for kept in whole.mask.values())
