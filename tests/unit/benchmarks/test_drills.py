"""The drills of `benchmarks.reliability` that no other test runs in short."""

import torch
from small_networks import mlp

import qprune
from benchmarks.reliability.faults import failures, run, ways_of
from benchmarks.reliability.workloads import Workload


def test_the_fault_drill_in_short(tmp_path):
    inputs = torch.randn(64, 10, generator=torch.Generator().manual_seed(5))
    options = {
        "sparsity": 0.5,
        "method": qprune.Networkwise(stages=2, rounds=2, block_size=32),
        "compensate": qprune.Compensation(iterations=(2,), final_steps=1),
    }
    workload = Workload("mlp", mlp(), qprune.Calibration(inputs), options)
    report = run(workload, tmp_path / "noted", 2, 0, fallback="keep", time_limit=1.0)
    assert failures(report, tmp_path / "noted") == []
    assert len(ways_of(tmp_path / "noted")) > 3
