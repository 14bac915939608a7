"""Time, memory, network and cost of large runs, simulated; the tables of docs/scaling.md.

python -m benchmarks.scaling.simulate             # seconds of work; reads measured.json
python -m benchmarks.scaling.simulate --figure docs/scaling.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scaling.cluster import EIGHT_GPUS, ONE_GPU, RAY_CLUSTER, Cluster
from benchmarks.scaling.costs import Costs
from benchmarks.scaling.events import Outcome, simulate
from benchmarks.scaling.language import (
    MIXTURE,
    SEVEN,
    SEVENTY,
    Language,
    Memory,
    memory,
    stage_1,
    stage_2,
)

CASES: tuple[tuple[Language, Cluster], ...] = (
    (SEVEN, ONE_GPU),
    (SEVENTY, EIGHT_GPUS),
    (MIXTURE, RAY_CLUSTER),
)


@dataclass(frozen=True)
class Case:
    """One model on one cluster.

    Attributes:
        model: that is pruned.
        cluster: where.
        first, second: outcomes of the stages.
        split: of the first, if a matrix' rows were shared among the devices.
        needs: memory.
    """

    model: Language
    cluster: Cluster
    first: Outcome
    second: Outcome
    split: Outcome
    needs: Memory

    def price(self, outcome: Outcome) -> float:
        """Dollars."""
        return outcome.total / 3600 * self.cluster.price * self.cluster.nodes


def cases(costs: Costs) -> list[Case]:
    """All of them, simulated."""
    return [
        Case(
            model,
            cluster,
            simulate(stage_1(model, cluster), cluster).repeated(model.blocks),
            simulate(stage_2(model, cluster, costs), cluster),
            simulate(stage_1(model, cluster, split=True), cluster).repeated(model.blocks),
            memory(model, cluster),
        )
        for model, cluster in CASES
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def summary(found: Sequence[Case]) -> str:
    """Time, network, cost and memory of both stages."""
    head = ["", *(f"{c.model.name}, {c.cluster.name}" for c in found)]
    rows = [["targeted weights", *(f"{c.model.weights / 1e9:.1f} G" for c in found)]]
    for name, outcomes in (
        ("stage 1", [c.first for c in found]),
        ("stage 1, rows split", [c.split for c in found]),
        ("stage 2", [c.second for c in found]),
    ):
        pairs = list(zip(found, outcomes, strict=True))
        rows += [
            [f"{name}, hours", *(f"{o.total / 3600:.2f}" for o in outcomes)],
            [f"{name}, devices busy", *(_share(c, o) for c, o in pairs)],
            [f"{name}, sent in all", *(_bytes(o.network) for o in outcomes)],
            [f"{name}, dollars", *(f"{c.price(o):.2f}" for c, o in pairs)],
        ]
    rows += [
        ["stage 1, a device", *(_fits(c.needs.device_1, c.cluster.device.memory) for c in found)],
        ["stage 1, a host", *(_fits(c.needs.host_1, c.cluster.host_memory) for c in found)],
        ["stage 2, a device", *(_fits(c.needs.device_2, c.cluster.device.memory) for c in found)],
        [
            "stage 2, a host as built",
            *(_fits(c.needs.host_2, c.cluster.host_memory) for c in found),
        ],
        [
            "stage 2, a host, vectors spread",
            *(_fits(c.needs.host_spread, c.cluster.host_memory) for c in found),
        ],
    ]
    return markdown(head, rows)


def by_phase(found: Sequence[Case]) -> str:
    """Minutes of every phase."""
    names = list(dict.fromkeys(n for c in found for o in (c.first, c.second) for n in o.seconds))
    rows = [
        [n, *(f"{(c.first.seconds | c.second.seconds).get(n, 0) / 60:.2f}" for c in found)]
        for n in names
    ]
    return markdown(["minutes", *(c.model.name for c in found)], rows)


def _share(case: Case, outcome: Outcome) -> str:
    return f"{100 * outcome.busy / outcome.total / case.cluster.size:.0f} %"


def _fits(need: float, there: float) -> str:
    return f"{_bytes(need)} of {_bytes(there)}{'' if need <= there else ': **too little**'}"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} PB"


def draw(costs: Costs, path: Path) -> None:
    """Time by phase as a dense model grows, on eight devices."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    sizes = [SEVEN, _scaled(13, 40, 5120, 13824), _scaled(33, 60, 6656, 17920), SEVENTY]
    times: dict[str, list[float]] = {}
    for number, model in enumerate(sizes):
        block, across = stage_1(model, EIGHT_GPUS), stage_2(model, EIGHT_GPUS, costs)
        for work, repeats in ((block, model.blocks), (across, 1)):
            outcome = simulate(work, EIGHT_GPUS).repeated(repeats)
            for name, seconds in outcome.seconds.items():
                times.setdefault(name, [0.0] * len(sizes))[number] = seconds / 60
    figure, axis = plt.subplots(figsize=(8, 4.5))
    axis.stackplot(
        [model.weights / 1e9 for model in sizes], list(times.values()), labels=list(times),
        colors=plt.get_cmap("tab20").colors,
    )  # fmt: skip
    axis.set(xlabel="targeted weights, 10$^9$", ylabel="minutes on eight H100, simulated")
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="upper left", fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _scaled(billions: int, blocks: int, hidden: int, inner: int) -> Language:
    groups = ((hidden, 3 * hidden, 1.0), (hidden, hidden, 1.0), (hidden, 2 * inner, 1.0))
    return Language(f"{billions}B", blocks, (*groups, (inner, hidden, 1.0)), 1.0, hidden, 32000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="draw time by phase into this SVG file")
    given = parser.parse_args()
    costs = Costs.load()
    found = cases(costs)
    print(summary(found))
    print()
    print(by_phase(found))
    if given.figure:
        draw(costs, given.figure)


if __name__ == "__main__":
    main()
