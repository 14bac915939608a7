"""Programs that the ranks of `test_ranks.py` run: `torchrun rank_programs.py NAME ... FOLDER`."""

import os
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import qprune
from qprune.distributed.ranks import joined
from qprune.distributed.sharding import whole
from qprune.moving.compensate import Compensation

METHOD = qprune.Networkwise(
    stages=2, rounds=1, final_rounds=2, num_blocks=2, block_size=128, samples_per_step=66
)


def images():
    """A small network of both kinds of layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU()),
        nn.Linear(24, 5),
    )


def inputs(number=110):
    return torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def pruned(model, ranks, data=None, method=None, **options):
    """Two stages and some rounds, seven samples a batch, so that the last turn has idle ranks."""
    return qprune.prune(
        model,
        inputs() if data is None else data,
        sparsity=0.8,
        method=METHOD if method is None else method,
        batch_size=7,
        augment=None,
        ranks=ranks,
        **{"compensate": Compensation(iterations=(2, 4), final_steps=1)} | options,
    )


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    for block in model:
        fully_shard(block)
    return fully_shard(model)


def outcome(run):
    """Weights and mask."""
    weights = {f"w.{name}": whole(w.detach()).clone() for name, w in run.model.state_dict().items()}
    return weights | {f"m.{name}": mask for name, mask in run.mask.items()}


def copies(ranks, folder):
    model = images()
    run = pruned(model, ranks, output_dir=folder / "run")
    return outcome(run)


def shards(ranks, folder):
    model = sharded(images())
    run = pruned(model, ranks)
    local = model[1][1].weight.to_local()
    assert len(local) < 24
    return outcome(run)


def drawn(ranks, folder):
    """Curvature from labels drawn from the outputs."""
    labels = torch.arange(110) % 5
    method = replace(METHOD, curvature="sampled")
    run = pruned(images(), ranks, (inputs(), labels), method, loss=qprune.Labels())
    return outcome(run)


def layers(ranks, folder):
    """Layer by layer: second moments of every rank's samples."""
    from tiny_models import make, samples

    model = make("llama")
    run = layerwise(model, samples(model, 12), 3, ranks)
    weights = {f"w.{name}": w.detach().clone() for name, w in model.state_dict().items()}
    return weights | {f"m.{name}": mask for name, mask in run.mask.items()}


def layerwise(model, data, batch_size, ranks):
    method, budget = qprune.Layerwise(shares=None), qprune.PerLayer(alone=True)
    return qprune.prune(
        model, data, sparsity=0.5, method=method, budget=budget, batch_size=batch_size, ranks=ranks
    )


def uneven(ranks, folder):
    from tiny_models import make, samples

    model = make("llama")
    layerwise(model, samples(model, 12), 4, ranks)


def taken(ranks, folder):
    """A folder that holds another run; only rank 0 looks."""
    pruned(images(), ranks, output_dir=folder / "run")


def refused(ranks, folder):
    """What does not work on a sharded model is said before anything is touched."""
    from qprune.moving.distill import Distillation

    pruned(sharded(images()), ranks, compensate=Distillation())


def resumed(ranks, folder):
    """Stopped after four steps, and gone on with."""
    limits = qprune.Limits(should_stop=_after(4))
    pruned(images(), ranks, output_dir=folder / "half", limits=limits)
    return outcome(pruned(images(), ranks, resume_from=folder / "half"))


def _after(number):
    from qprune.record.checkpoint import Checkpoints

    Checkpoints.offer = Checkpoints.write
    asked = iter(range(10**6))
    return lambda: next(asked) > 6 * number


def other_data(ranks, folder):
    pruned(images(), ranks, inputs() + ranks.rank)
    raise AssertionError("not refused")


def not_finite(ranks, folder):
    """NaN in one rank's batch is every rank's error."""

    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = images()

        def forward(self, x):
            return torch.where(x[:, :1, 0, 0] > 5, torch.nan, self.inner(x))

    data = inputs()
    data[8, 0, 0, 0] = 6.0
    pruned(Bad(), ranks, data)


def dies(ranks, folder):
    """Rank 1 is gone in the middle of a run."""

    def observe(step):
        if ranks.rank == 1 and step.index == 2:
            os._exit(0)  # Not torchrun is to notice it, but the other rank.

    pruned(images(), ranks, observe=observe)


def hangs(ranks, folder):
    def observe(step):
        if ranks.rank == 1 and step.index == 2:
            time.sleep(60)

    pruned(images(), ranks, observe=observe)


def main():
    *names, folder = sys.argv[1:]
    folder = Path(folder)
    torch.set_num_threads(1)
    with joined(timedelta(seconds=5 if "hangs" in names else 60)) as ranks:
        for name in names:
            try:
                tensors = globals()[name](ranks, folder)
            except qprune.errors.LostRankError as error:
                _tell(folder, name, ranks, error)
                os._exit(0)
            except qprune.errors.QpruneError as error:
                _tell(folder, name, ranks, error)
            else:
                save_file(tensors, folder / f"{name}.{ranks.rank}.safetensors")


def _tell(folder, name, ranks, error):
    (folder / f"{name}.{ranks.rank}.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
