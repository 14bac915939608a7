"""What is run: samplers at three efforts each, and settings for a night, an hour and minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from solvers.registry import find_entry

Options = Mapping[str, Any]


def _sweeps(*numbers: int) -> tuple[Options, ...]:
    return tuple({"num_reads": 1, "num_sweeps": number} for number in numbers)


def _reads(*numbers: int) -> tuple[Options, ...]:
    return tuple({"num_reads": number} for number in numbers)


def _moves(*numbers: int) -> tuple[Options, ...]:
    # D-Wave's tabu search by moves a variable; its usual least number of moves would level them.
    names = ("coefficient_z_first", "coefficient_z_restart")
    return tuple(
        {"num_reads": 1, "lower_bound_z": 1, names[0]: number, names[1]: max(1, number // 4)}
        for number in numbers
    )


#: Registered name -> options at three times, all by count, so that a run can be had again.
SAMPLERS: dict[str, tuple[Options, ...]] = {
    "random": _reads(1, 10, 100),
    "greedy": _reads(1, 4, 16),
    "sa": _sweeps(10, 100, 1000),
    "tabu": _moves(2, 20, 200),
    "openjij-sa": _sweeps(10, 100, 1000),
    "swap-anneal": _sweeps(10, 100, 1000),
    "relax": ({"num_sweeps": 0}, {"num_sweeps": 200}, {"num_sweeps": 200, "num_reads": 8}),
    "exact": tuple({"max_nodes": number} for number in (1, 30, 300)),
}
#: Of those, the ones that are run where kept weights move, too.
MOVING = ("random", "greedy", "swap-anneal", "relax")
Cell = tuple[str, int]
ALL: tuple[Cell, ...] = tuple(product(SAMPLERS, range(3)))


def absent() -> dict[str, str]:
    """Return the samplers that cannot be run here, and why."""
    entries = {name: find_entry(name) for name in SAMPLERS}
    return {name: entry.missing for name, entry in entries.items() if entry.missing}


@dataclass(frozen=True)
class Run:
    """One run: a line of the results.

    Attributes:
        setting: name in `SETTINGS`.
        part: "rows", "text", "mlpnet" or "resnet20".
        sparsity: a share of zeros, or a structure such as "2:4".
        schedule: "one shot" or "staged" of the network form, "" of the layer form.
        moves: True if kept weights move.
        sampler, level: a cell of `SAMPLERS`.
        seed: of the samples, the rows and the sampler.
    """

    setting: str
    part: str
    sparsity: str
    schedule: str
    moves: bool
    sampler: str
    level: int
    seed: int

    @property
    def options(self) -> Options:
        """Return what the sampler is called with."""
        return SAMPLERS[self.sampler][self.level]


@dataclass(frozen=True)
class Layers:
    """The layer form.

    Attributes:
        blocks: decoder blocks that rows are taken of.
        rows: of each of their matrices, for each seed others.
        nodes: of the branch and bound that certifies a row's bound.
        windows: of the text, for energies; as many others for the loss on unseen data.
        pruned: decoder blocks that are pruned, all rows, for the perplexity.
        test_windows: of the test split.
        cells: for the perplexity.
        row_cells, row_seeds: for the energies.
        seeds: of the perplexity; with all rows, one differs little from another.
    """

    blocks: tuple[int, ...] = (1, 4)
    rows: int = 26
    row_cells: tuple[Cell, ...] = ALL
    row_seeds: int = 5
    nodes: int = 300
    windows: int = 128
    pruned: tuple[int, ...] = tuple(range(6))
    test_windows: int = 1284
    cells: tuple[Cell, ...] = (
        *(("random", 0), ("random", 2), ("greedy", 0), ("greedy", 2), ("swap-anneal", 0)),
        *(("swap-anneal", 1), ("swap-anneal", 2), ("relax", 0), ("relax", 1), ("exact", 0)),
        *(("tabu", 0), ("openjij-sa", 0)),
    )
    seeds: int = 1
    sparsities: tuple[str, ...] = ("0.6", "0.7", "0.8", "2:4")


@dataclass(frozen=True)
class Network:
    """The network form, of one network.

    Attributes:
        weights, images: files in the data folder.
        data: name of the images' format.
        normalization: of `qprune.models.datasets.load_data`.
        calibration: samples, a fifth of which judge steps.
        samples: of an expansion, at most.
        block_size: variables.
        one_shot, staged: arguments of `qprune.Networkwise`.
        sparsities: of the runs; where kept weights move, the last one.
        cells, staged_cells, moving, seeds: what is run, mask only in one shot, in stages, and in
            stages while kept weights move.
    """

    weights: str
    images: str
    data: str
    normalization: str | None
    calibration: int
    samples: int
    one_shot: Options
    staged: Options
    sparsities: tuple[str, ...]
    block_size: int = 2048
    cells: tuple[Cell, ...] = ALL
    staged_cells: tuple[Cell, ...] = ALL
    moving: tuple[Cell, ...] = tuple((name, 1) for name in MOVING)
    seeds: int = 5


@dataclass(frozen=True)
class Setting:
    """How much of it is run."""

    layers: Layers
    networks: Mapping[str, Network]

    @property
    def seeds(self) -> int:
        """The largest number of seeds of any part."""
        numbers = [network.seeds for network in self.networks.values()]
        return max(self.layers.row_seeds, self.layers.seeds, *numbers)

    def runs(self, name: str) -> Iterator[Run]:
        """All runs, seed by seed, so that an end before the last one leaves whole tables."""
        for seed in range(self.seeds):
            if seed < self.layers.row_seeds:
                for sparsity, cell in product(self.layers.sparsities, self.layers.row_cells):
                    yield Run(name, "rows", sparsity, "", False, *cell, seed)
            if seed < self.layers.seeds:
                for sparsity, cell in product(self.layers.sparsities, self.layers.cells):
                    yield Run(name, "text", sparsity, "", False, *cell, seed)
            for part, network in self.networks.items():
                if seed >= network.seeds:
                    continue
                for sparsity in network.sparsities:
                    for cell in network.cells:
                        yield Run(name, part, sparsity, "one shot", False, *cell, seed)
                    for cell in network.staged_cells:
                        yield Run(name, part, sparsity, "staged", False, *cell, seed)
                for cell in network.moving:
                    yield Run(name, part, network.sparsities[-1], "staged", True, *cell, seed)


def _mlpnet(**less: Any) -> Network:
    usual: dict[str, Any] = {
        "calibration": 5000,
        "samples": 4000,
        "one_shot": {"stages": 1, "final_rounds": 4},
        "staged": {"stages": 8, "rounds": 1, "final_rounds": 4},
        "sparsities": ("0.9", "0.95"),
    }
    files = ("mlpnet_mnist.safetensors", "mnist.npz", "mnist", None)
    return Network(*files, **usual | less)


def _resnet20(**less: Any) -> Network:
    usual: dict[str, Any] = {
        "calibration": 4000,
        "samples": 1600,
        "one_shot": {"stages": 1, "final_rounds": 2},
        "staged": {"stages": 4, "rounds": 1, "final_rounds": 2},
        "sparsities": ("0.6", "0.7"),
        "cells": tuple((name, 1) for name in SAMPLERS),
        "staged_cells": tuple((name, 1) for name in SAMPLERS),
        "seeds": 3,
    }
    files = ("resnet20_cifar10_bn.safetensors", "cifar10_subset.npz", "cifar10", None)
    return Network(*files, **usual | less)


_FEW: tuple[Cell, ...] = tuple((name, 0) for name in ("random", "greedy", "relax"))
_FOUR: tuple[Cell, ...] = tuple((name, 1) for name in MOVING)
# Those that need few seconds for a block of 2,048.
_QUICK: tuple[Cell, ...] = (
    *(("random", 1), ("greedy", 0), ("greedy", 1), ("swap-anneal", 0), ("swap-anneal", 1)),
    *(("relax", 0), ("relax", 1), ("exact", 0), ("tabu", 0)),
)

SETTINGS = {
    "full": Setting(Layers(), {"mlpnet": _mlpnet(), "resnet20": _resnet20()}),
    "reduced": Setting(
        Layers(
            rows=1,
            # OpenJij builds its model in Python, seconds for a row, whatever the number of sweeps.
            row_cells=tuple(cell for cell in ALL if cell[0] != "openjij-sa" or cell[1] == 2),
            row_seeds=2,
            windows=64,
            pruned=(1, 4),
            test_windows=100,
            cells=(("random", 0), ("greedy", 0), ("greedy", 1), ("swap-anneal", 0), ("relax", 0)),
        ),
        {
            "mlpnet": _mlpnet(
                calibration=4000,
                samples=3200,
                one_shot={"stages": 1, "final_rounds": 3},
                staged={"stages": 6, "rounds": 1, "final_rounds": 2},
                sparsities=("0.95",),
                cells=_QUICK,
                staged_cells=_FOUR,
                seeds=5,
            ),
            "resnet20": _resnet20(
                calibration=1500,
                samples=800,
                sparsities=("0.6",),
                cells=_FOUR,
                staged_cells=(),
                moving=(),
                seeds=1,
            ),
        },
    ),
    "short": Setting(
        Layers(
            blocks=(1,),
            rows=1,
            row_cells=tuple((name, 0) for name in SAMPLERS),
            row_seeds=1,
            nodes=30,
            windows=8,
            pruned=(1,),
            test_windows=50,
            cells=_FEW,
            sparsities=("0.7", "2:4"),
        ),
        {
            "mlpnet": _mlpnet(
                calibration=1000,
                samples=800,
                block_size=512,
                sparsities=("0.95",),
                cells=_FEW,
                staged_cells=(),
                moving=(),
                seeds=1,
            )
        },
    ),
}
