"""Small runs whose results are kept: `python same_bytes_runs.py FOLDER TREE [NAME ...]`.

`same_bytes.py` runs it once for each revision that is compared. It takes `qprune` and `solvers`
from TREE, which stands first in PYTHONPATH. A run is data, in the words of
``prune(method=Networkwise(...))``, and is carried out by the interface that the revision has. Of
the tree that this file is in, it needs nothing but the golden problems.

FOLDER then has NAME.npz, the arrays, and NAME.json: steps, layers, seconds, or what went wrong.
Runs whose NAME.json is there are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

GOLDEN = Path(__file__).parent / "golden" / "problems"

#: Where public classes are, by revision: the names that users import, then today's and the coming
#: homes. A module that a revision does not have is passed over.
HOMES = (
    "qprune",
    "qprune.scores",
    "qprune.steps.start",
    "qprune.blocks",
    "qprune.steps.select",
    "qprune.distill",
    "qprune.moving.distill",
    "qprune.layerwise",
    "qprune.layerwise.start",
    "qprune.layerwise.sensitivity",
    "qprune.steps.reconstruct",
    "qprune.walk.layerwise",
    "qprune.walk.layerwise_start",
    "qprune.walk.networkwise",
    "qprune.walk.journal",
    "qprune.walk.sensitivity",
    "qprune.ranks",
    "qprune.distributed.ranks",
    "qprune.language.twins",
    "qprune.models.twins",
    "qprune.network.twins",
    "qprune.packed",
    "qprune.network.mask_file",
)


def found(name: str) -> Any:
    """What a revision calls ``name``, wherever it is."""
    for home in HOMES:
        try:
            module = importlib.import_module(home)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("qprune"):
                raise
            continue
        if hasattr(module, name):
            return getattr(module, name)
    raise LookupError(f"no {name} in {', '.join(HOMES)}")


# -- runs as data ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Make:
    """An object of the revision's own: the name of its class, and the arguments."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pruning:
    """One call of ``prune``.

    Attributes:
        model, data: names in `MODELS` and `DATA`.
        shared: arguments of ``prune`` for every method.
        networkwise: fields of ``Networkwise``; None = no such method.
        layerwise: fields of ``Layerwise``, which goes first; None = no such method.
        ranks: processes.
        stopped_after: the run is stopped after so many steps, and resumed; None = never.
    """

    model: str
    data: str
    shared: Mapping[str, Any]
    networkwise: Mapping[str, Any] | None = field(default_factory=dict)
    layerwise: Mapping[str, Any] | None = None
    ranks: int = 1
    stopped_after: int | None = None


@dataclass(frozen=True)
class CommandLine:
    """One ``qprune prune`` with these arguments."""

    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Sampling:
    """All of `problems` put to one sampler."""

    sampler: str
    options: Mapping[str, Any]


SHORT = {"stages": 3, "rounds": 2, "final_rounds": 3, "samples_per_step": 100}
GAUSS_NEWTON = Make("Compensation", {"iterations": (2, 4), "final_steps": 1})
BLOCKS = {
    "sparsity": 0.5,
    "targets": [r"re:.*\.(\w+_proj|c_attn|c_fc)"],
    "seed": 3,
    "batch_size": 4,
}
# As a language model is pruned by the command line, in small.
ACROSS = {
    "stages": 1,
    "rounds": 1,
    "final_rounds": 1,
    "num_blocks": 4,
    "block_size": 64,
    "damping": 10.0,
    "samples_per_step": 16,
    "accept_share": 0.25,
}
DISTILLED = Make("Distillation", {"steps": 12, "final_steps": 1, "at_end": True})

RUNS: dict[str, Pruning | CommandLine | Sampling] = {
    "default": Pruning("small-mlp", "vectors", {"sparsity": 0.6}),
    "magnitude-labels": Pruning(
        "images",
        "labelled-images",
        {"sparsity": 0.8, "seed": 1, "loss": Make("Labels"), "compensate": GAUSS_NEWTON},
        SHORT | {"start": Make("Magnitude")},
    ),
    "two-blocks": Pruning(
        "images",
        "images",
        {"sparsity": 0.8, "compensate": GAUSS_NEWTON, "sampler": "swap-anneal"},
        SHORT | {"num_blocks": 2, "block_size": 128},
    ),
    "mask-only": Pruning("images", "images", {"sparsity": 0.7, "compensate": False}, SHORT),
    "2:4": Pruning("mlp", "vectors", {"mask_structure": "2:4"}, SHORT),
    "by-row": Pruning("images", "images", {"sparsity": 0.5, "budget": "row"}, SHORT),
    "cross-entropy": Pruning(
        "mlp", "labelled-vectors", {"sparsity": 0.7, "loss": "cross-entropy", "seed": 2}, SHORT
    ),
    "sampled-curvature": Pruning(
        "mlp", "vectors", {"sparsity": 0.7}, SHORT | {"curvature": Make("SampledFisher")}
    ),
    "exact-curvature": Pruning(
        "small-mlp", "vectors", {"sparsity": 0.7}, SHORT | {"curvature": Make("ExactHessian")}
    ),
    "distillation": Pruning(
        "images",
        "images",
        {"sparsity": 0.8, "compensate": Make("Distillation", {"steps": 6, "final_steps": 1})},
        SHORT,
    ),
    "llama-one-stage": Pruning(
        "llama", "tokens", BLOCKS | {"budget": "layer"}, None, {"rows": Make("Reconstruct")}
    ),
    "llama-two-stages": Pruning(
        "llama",
        "tokens",
        BLOCKS | {"compensate": DISTILLED, "augment": None},
        ACROSS,
        {"rows": Make("Reconstruct"), "shares": Make("Sensitivity")},
    ),
    "gpt2": Pruning(
        "gpt2",
        "tokens",
        BLOCKS | {"compensate": DISTILLED, "augment": None},
        ACROSS,
        {"rows": Make("Reconstruct"), "shares": Make("Sensitivity")},
    ),
    "sampled-rows": Pruning(
        "llama",
        "tokens",
        BLOCKS | {"budget": "layer"},
        None,
        {"rows": Make("SampledRows", {"sampler": "relax"})},
    ),
    "two-ranks": Pruning(
        "images",
        "images",
        {"sparsity": 0.8, "augment": None, "compensate": GAUSS_NEWTON, "batch_size": 7},
        SHORT | {"stages": 2, "num_blocks": 2, "block_size": 128, "samples_per_step": 66},
        ranks=2,
    ),
    "resumed": Pruning("mlp", "vectors", {"sparsity": 0.8, "seed": 4}, SHORT, stopped_after=6),
    "command-line": CommandLine(
        (
            *("--model", "same_bytes_runs:digits_mlp", "--data", "digits", "--sparsity", "0.8"),
            *("--stages", "2", "--rounds", "1", "--num-calibration-samples", "100", "--seed", "3"),
        )
    ),
    "sampler-relax": Sampling("relax", {"seed": 1}),
    "sampler-exact": Sampling("exact", {"seed": 1}),
    "sampler-swap-anneal": Sampling("swap-anneal", {"seed": 2, "num_reads": 3, "num_sweeps": 50}),
    "sampler-swap-tabu": Sampling("swap-tabu", {"seed": 3, "num_reads": 3}),
    "sampler-bifurcation": Sampling("bifurcation", {"seed": 4, "num_reads": 3}),
    "sampler-sa": Sampling("sa", {"seed": 5, "num_reads": 3}),
}


# -- networks, samples and problems ---------------------------------------------------------------


def mlp(width: int = 24) -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)
    )


def digits_mlp() -> nn.Module:
    """What the command line is given by this name; it is not trained, which takes seconds."""
    return model_of("digits-mlp")


def images() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU()),
        nn.Linear(24, 5),
    )


def llama() -> nn.Module:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
    }
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    }
    config = transformers.LlamaConfig(**sizes, **heads, initializer_range=0.2)
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 32,
    }
    ends: dict[str, Any] = {"initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "small-mlp": lambda: mlp(8),
    "images": images,
    "digits-mlp": lambda: nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
    "llama": llama,
    "gpt2": gpt2,
}


def model_of(name: str) -> nn.Module:
    """The network, in evaluation mode, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]().eval()


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


DATA: dict[str, Callable[[], Any]] = {
    "vectors": lambda: random(96, 16),
    "labelled-vectors": lambda: (random(96, 16), torch.arange(96) % 4),
    "images": lambda: random(110, 1, 8, 8),
    "labelled-images": lambda: (random(110, 1, 8, 8), torch.arange(110) % 5),
    "tokens": lambda: torch.randint(64, (24, 12), generator=torch.Generator().manual_seed(1)),
}


def problems() -> dict[str, Any]:
    """The golden problems, and two that are like the blocks of a pruning run."""
    import solvers

    files = sorted(path for path in GOLDEN.iterdir() if path.is_file())
    if not files:
        raise FileNotFoundError(f"no problems in {GOLDEN}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A file that does not say whether it is maximised.
        read = {path.name: solvers.read_problem(path) for path in files}
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(24, 24))
    read["dense, two counts"] = solvers.QuadraticProblem(
        generator.normal(size=24), matrix + matrix.T, 0.5, np.arange(24) % 2, [5, 7]
    )
    factor = generator.normal(size=(12, 60))
    read["low rank, one count"] = solvers.QuadraticProblem(
        -(factor**2).sum(0), solvers.LowRank(factor), counts=30
    )
    return read


# -- carrying them out ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Result:
    """What a run made.

    Attributes:
        arrays: by ``kind/name``: mask, weights, samples, energies, bounds.
        steps: kind, stage, round, accepted, loss to the bit.
        layers: name, number of pruned weights, error to the bit; of layer-wise runs.
    """

    arrays: dict[str, np.ndarray]
    steps: list[list[Any]] = field(default_factory=list)
    layers: list[list[Any]] = field(default_factory=list)

    def write(self, folder: Path, name: str, seconds: float) -> None:
        np.savez(folder / f"{name}.npz", allow_pickle=False, **self.arrays)
        facts = {"steps": self.steps, "layers": self.layers, "seconds": seconds}
        write(folder, name, facts)


def write(folder: Path, name: str, facts: dict[str, Any]) -> None:
    """Whole or not there: a run counts as done once this file is there."""
    unfinished = folder / f"{name}.json.unfinished"
    unfinished.write_text(json.dumps(facts))
    unfinished.rename(folder / f"{name}.json")


def made(value: Any) -> Any:
    return found(value.name)(**value.options) if isinstance(value, Make) else value


def all_made(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: made(value) for name, value in options.items()}


def result_of(model: nn.Module, mask: Mapping[str, torch.Tensor], *rest: Any) -> Result:
    arrays = {f"mask/{name}": kept.numpy() for name, kept in mask.items()}
    arrays |= {f"weights/{n}": tensor.numpy() for n, tensor in model.state_dict().items()}
    return Result(arrays, *rest)


def bits(number: float | None) -> str | None:
    return None if number is None else float(number).hex()


def steps_of(steps: Any, layer_by_layer: bool) -> list[list[Any]]:
    """The steps that every revision has.

    Of a layer-wise method's own steps, today there is one, later one for each block; what they
    did is in the layers.
    """
    skipped = ("start", "block") if layer_by_layer else ()
    return [
        [step.kind, step.stage, step.round, step.accepted, bits(step.loss)]
        for step in steps
        if step.kind not in skipped
    ]


class Today:
    """The interface of `qprune.prune(start=..., stages=...)` and `prune_layerwise`."""

    def prune(self, run: Pruning, **more: Any) -> Result:
        model, data = model_of(run.model), DATA[run.data]()
        shared = all_made(run.shared) | more
        layers: list[list[Any]] = []

        def observe(outcome: Any, done: int, total: int) -> None:
            layers.append([outcome.name, outcome.num_pruned, bits(outcome.error)])

        if run.layerwise is None:
            pruned = found("prune")(model, data, **shared, **all_made(run.networkwise or {}))
            return result_of(model, pruned.mask, steps_of(pruned.report.steps, False))
        layerwise = all_made(run.layerwise)
        if run.networkwise is None:
            shared.pop("budget")  # It is the method's own.
            pruned = found("prune_layerwise")(
                model, data, method=layerwise["rows"], observe=observe, **shared
            )
            return result_of(model, pruned.mask, [], layers)
        start = found("LayerwiseStart")(
            method=layerwise["rows"],
            mask_structure=shared.get("mask_structure"),
            compensate=bool(shared.get("compensate", True)),
            budgets=layerwise["shares"],
            observe=observe,
        )
        # GPT-2's matrices are stored the other way round, which this interface does not take.
        with found("linear_twins")(model) as twins:
            pruned = found("prune")(model, data, start=start, **shared, **all_made(run.networkwise))
        mask = {n: kept.T.contiguous() if n in twins else kept for n, kept in pruned.mask.items()}
        return result_of(model, mask, steps_of(pruned.report.steps, True), layers)

    def stopping(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        return {"should_stop": should_stop}


class Coming:
    """The interface of `qprune.prune(method=(Layerwise(...), Networkwise(...)))`."""

    def prune(self, run: Pruning, **more: Any) -> Result:
        model, data = model_of(run.model), DATA[run.data]()
        method = []
        if run.layerwise is not None:
            method.append(found("Layerwise")(**{"shares": None} | all_made(run.layerwise)))
        if run.networkwise is not None:
            after = {} if run.layerwise is None else {"start": None}
            method.append(found("Networkwise")(**after | all_made(run.networkwise)))
        pruned = found("prune")(model, data, method=tuple(method), **all_made(run.shared) | more)
        layers = [
            [layer.name, layer.num_pruned, bits(layer.error)]
            for step in pruned.report.steps
            for layer in step.layers
        ]
        steps = steps_of(pruned.report.steps, run.layerwise is not None)
        return result_of(model, pruned.mask, steps, layers)

    def stopping(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        return {"limits": found("Limits")(should_stop=should_stop)}


def interface() -> Today | Coming:
    import qprune

    return Coming() if hasattr(qprune, "Networkwise") else Today()


def pruned(run: Pruning) -> Result:
    enough = run.stopped_after
    if enough is None:
        return interface().prune(run)
    # As a user's interrupt stops it: with max_steps it would be another run than the one resumed.
    seen: list[Any] = []
    stopping = interface().stopping(lambda: len(seen) >= enough)
    with tempfile.TemporaryDirectory() as folder:
        stopped = interface().prune(run, output_dir=folder, observe=seen.append, **stopping)
        resumed = interface().prune(run, resume_from=folder)
    if len(stopped.steps) >= len(resumed.steps):
        raise AssertionError(f"{len(stopped.steps)} steps: it was not stopped in the middle")
    return resumed


def together(name: str, number: int, tree: Path) -> None:
    """The same run in ``number`` processes, each of which runs this file; rank 0 writes."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    ended = subprocess.run(
        [*command, __file__, ".", str(tree), name],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr[-2000:])


def commanded(run: CommandLine) -> Result:
    from safetensors.numpy import load_file

    try:
        main = importlib.import_module("qprune.cli.main").main
    except ModuleNotFoundError:  # Before the command line was a package.
        main = importlib.import_module("qprune.cli").main
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        sys.argv = ["qprune", "prune", *run.arguments, "--output", str(folder)]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                main()
            except SystemExit as end:
                if end.code:
                    raise RuntimeError(f"qprune ended with {end.code}: {said.getvalue()}") from end
        weights = load_file(folder / "model.safetensors")
        mask = found("read_mask")(folder / "mask.safetensors")
        lines = (folder / "steps.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    arrays = {f"mask/{name}": kept.numpy() for name, kept in mask.items()}
    return Result(
        arrays | {f"weights/{name}": tensor for name, tensor in weights.items()},
        [[s["kind"], s["stage"], s["round"], s["accepted"], bits(s["loss"])] for s in steps],
    )


def sampled(run: Sampling) -> Result:
    import solvers

    arrays = {}
    for name, problem in problems().items():
        answer: Any = solvers.solve(problem, run.sampler, **run.options)
        states = answer.samples if hasattr(answer, "samples") else answer.states
        arrays[f"samples/{name}"] = np.asarray(states)
        arrays[f"energies/{name}"] = np.asarray(answer.energies)
        arrays[f"bounds/{name}"] = np.asarray(answer.lower_bound)
    return Result(arrays)


def carried_out(run: Pruning | CommandLine | Sampling) -> Result:
    if isinstance(run, Pruning):
        return pruned(run)
    return commanded(run) if isinstance(run, CommandLine) else sampled(run)


def one_rank(name: str) -> None:
    """The part of one process of `together`."""
    run = RUNS[name]
    assert isinstance(run, Pruning)
    with found("joined")() as ranks:
        began = time.perf_counter()
        result = interface().prune(run, ranks=ranks)
        if ranks.rank == 0:
            result.write(Path(), name, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tree", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in RUNS]
    if unknown:
        parser.error(f"no run is called {unknown[0]!r}; there are: {', '.join(RUNS)}")
    for package in ("qprune", "solvers"):
        origin = importlib.import_module(package).__file__ or ""
        if not Path(origin).is_relative_to(asked.tree):
            parser.error(f"{package} would be imported from {origin}, not from {asked.tree}")
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parent))  # For the factory of the command line.
    os.chdir(asked.folder)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return one_rank(*asked.names)
    for name in asked.names or RUNS:
        if Path(f"{name}.json").exists():
            continue
        run, began = RUNS[name], time.perf_counter()
        try:
            if isinstance(run, Pruning) and run.ranks > 1:
                together(name, run.ranks, asked.tree)
            else:
                carried_out(run).write(Path(), name, time.perf_counter() - began)
        except Exception as error:
            traceback.print_exc()
            write(Path(), name, {"error": f"{type(error).__name__}: {error}"})
        print(f"  {name}: {time.perf_counter() - began:.1f} s", flush=True)
    return None


if __name__ == "__main__":
    main()
