"""A small run on scikit-learn's digits, which drills tell again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

import qprune.jobs.job
from qprune.jobs.settings import Settings
from qprune.models.zoo import load_model
from qprune.record.checkpoint import Checkpoints


def small_settings(scratch: Path, final_rounds: int) -> Settings:
    """Settings of a small run; the dense weights are written into ``scratch``."""
    weights = scratch / "dense.safetensors"
    save_file(load_model("digits-mlp").state_dict(), weights)
    asked = {"model": "digits-mlp", "data": "digits", "sparsity": 0.9, "weights": weights}
    asked |= {"stages": 1, "rounds": 1, "final_rounds": final_rounds, "block_size": 64}
    return Settings(**asked, augment=False, num_calibration_samples=60, samples_per_step=40)


def stop_after(calls: int) -> Callable[[], bool]:
    """A `should_stop` that says no so many times, then yes."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


def every_step() -> None:
    """A checkpoint between any two steps, and pages without figures, which would take longest."""
    Checkpoints.offer = Checkpoints.write
    qprune.jobs.job.render_html = lambda report, **more: "<html>"
