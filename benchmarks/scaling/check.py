"""The simulator's CPU seconds against those of real runs on this machine, one rank and two.

    OMP_NUM_THREADS=1 nice -n 10 python -m benchmarks.scaling.check --data DATA

About three CPU minutes. Coefficients are from the synthetic networks of ``measured.json``; of the
networks that are predicted here only the forward pass was measured, just before the run, since the
load on a shared machine changes what a CPU second is worth. The counts of steps are the run's own:
how many steps are taken is the network's affair. Writes ``checked.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.scaling.cluster import Cluster, Device, Link
from benchmarks.scaling.costs import Costs
from benchmarks.scaling.events import simulate
from benchmarks.scaling.plans import Counts, Subject, walk
from benchmarks.scaling.rank_program import launch

CHECKED = Path(__file__).with_name("checked.json")
#: The workloads' names, samples of a micro-batch, whether layers see several positions.
RUNS = (("MLPNet", 64, False), ("ResNet-20", 4, True), ("small LLaMA", 2, True))


def this_machine(ranks: int, costs: Costs) -> Cluster:
    """So many single-core ranks, exchanging through the machine's own memory."""
    core = Device("one core", costs.flops, costs.flops, costs.stream, 24e9, costs.stream)
    link = Link(*costs.exchange)
    return Cluster(
        f"{ranks} ranks", core, nodes=1, devices=ranks, inside=link, between=link, cores=1,
        core_speed=1.0, host_bandwidth=costs.stream * ranks, host_memory=24e9, price=0.0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="checkpoints and data sets")
    given = parser.parse_args()
    costs = Costs.load()
    found = []
    sizes = [str(batch_size) for _, batch_size, _ in RUNS]
    for ranks in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            launch(["runs", str(given.data), folder, *sizes], ranks)
            for number, (name, batch_size, positions) in enumerate(RUNS):
                facts = json.loads(Path(folder, f"{number}.{ranks}.json").read_text())
                subject = Subject(
                    facts["forward"], facts["weights"], facts["layers"], positions, batch_size
                )
                counts = Counts(**facts["counts"])
                outcome = simulate(walk(subject, counts, costs), this_machine(ranks, costs))
                record = {"network": name, "ranks": ranks, "measured": facts["seconds"]}
                found.append(record | {"predicted": outcome.processor} | facts)
    CHECKED.write_text(json.dumps(found, indent=1) + "\n")
    Console(width=100).print(checked_table(found))


def checked_table(found: list[dict]) -> Table:
    """Predicted and measured side by side."""
    table = Table(title="CPU seconds of rank 0")
    for name in ("network", "ranks", "measured", "predicted", "error"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for row in found:
        error = row["predicted"] / row["measured"] - 1
        table.add_row(
            row["network"], str(row["ranks"]), f"{row['measured']:.2f}",
            f"{row['predicted']:.2f}", f"{100 * error:+.0f} %",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
