"""`qprune evaluate`, `measure` and `hold`: commands on the folder of a pruned model."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from qprune.cli.options import inside
from qprune.cli.terminal import say, terminal
from solvers.host.ranges import Number, Pair, Threads, Timings

if TYPE_CHECKING:
    from qprune.models.measure import Measured

Model = Annotated[str, typer.Argument(help="folder with config.json, or hf:ID")]
Json = Annotated[bool, typer.Option("--json", help="print the outcome as JSON")]
ThreadsOption = Annotated[
    int, typer.Option(callback=inside(Threads), help="threads of the arithmetic")
]


def evaluate(
    model: Model,
    data: Annotated[
        str | None, typer.Option(help="wikitext2:DIR, text:FILE or hf:NAME; its test split")
    ] = None,
    max_seq_length: Annotated[
        int | None,
        typer.Option(
            callback=inside(Pair),
            help="tokens in a window; the model's own up to 2048 by default",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            callback=inside(Number), help="tokens between windows; smaller than a window overlaps"
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="also lm-eval's tasks, zero-shot, with commas between")
    ] = None,
    task_folder: Annotated[
        Path | None, typer.Option(help="lm-eval tasks of your own, as YAML files")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(callback=inside(Number), help="largest number of examples per task"),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(callback=inside(Number), help="examples of a task run together")
    ] = 8,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto for the stored one")
    ] = "float32",
    device: Annotated[str, typer.Option(help="device, as torch names it")] = "cpu",
    threads: ThreadsOption = 1,
    json: Json = False,
) -> None:
    """Perplexity of a language model on a text, and its accuracy on lm-eval's tasks."""
    from qprune.cli.bars import tracked
    from qprune.distributed.workers import limited_threads
    from qprune.errors import ImpossibleRequestError
    from qprune.models.evaluate import evaluate_perplexity, evaluate_tasks, names_of
    from qprune.models.heads import require_causal
    from qprune.models.pretrained import load_pretrained, load_tokenizer, optional
    from solvers.host.disk import strict_json

    if data is None and tasks is None:
        raise ImpossibleRequestError("nothing to evaluate on; give --data, --tasks, or both")
    if tasks is not None:
        optional("lm_eval", extra="eval")  # Refused here, not after the perplexity.
    began = time.perf_counter()
    outcome: dict[str, Any] = {"model": model, "dtype": dtype, "device": device}
    with limited_threads(threads):
        network = load_pretrained(model, dtype=dtype, device=device)
        require_causal(model, network, "`qprune evaluate` is for causal language models")
        tokenizer = load_tokenizer(model)
        if data is not None:
            outcome["perplexity"] = asdict(
                evaluate_perplexity(
                    network,
                    tokenizer,
                    data,
                    max_seq_length=max_seq_length,
                    stride=stride,
                    track=tracked(terminal(stderr=True)),
                )
            )
        if tasks is not None:
            outcome["tasks"] = evaluate_tasks(
                network,
                tokenizer,
                names_of(tasks),
                task_folder=task_folder,
                limit=limit,
                batch_size=batch_size,
            )
    outcome["seconds"] = time.perf_counter() - began
    typer.echo(strict_json(outcome)) if json else terminal().print(_evaluation_table(outcome))


def measure(
    folder: Annotated[Path, typer.Argument(help="folder of a pruned model")],
    against: Annotated[
        str | None,
        typer.Option(help="the dense model; by default the pruned one with its zeros filled"),
    ] = None,
    max_seq_length: Annotated[
        int | None,
        typer.Option(
            callback=inside(Pair), help="tokens in the timed prompt; the model's own up to 2048"
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(callback=inside(Timings), help="timings of each model")
    ] = 15,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto for the stored one")
    ] = "auto",
    device: Annotated[str, typer.Option(help="device, as torch names it")] = "cpu",
    threads: ThreadsOption = 1,
    json: Json = False,
) -> None:
    """Size, memory and time of a pruned model on this machine, against the dense one."""
    from qprune.cli.bars import tracked
    from qprune.distributed.workers import limited_threads
    from qprune.models.measure import measure_folder
    from solvers.host.disk import strict_json

    with limited_threads(threads):
        measured = measure_folder(
            folder,
            against,
            dtype=dtype,
            device=device,
            max_seq_length=max_seq_length,
            rounds=rounds,
            threads=threads,
            track=tracked(terminal(stderr=True)),
        )
    if json:
        typer.echo(strict_json(measured.to_json()))
        return
    terminal().print(_measured_table(measured))
    for verdict in measured.verdicts():
        say(verdict)


def hold(
    folder: Annotated[Path, typer.Argument(help="the fine-tuned or merged checkpoint")],
    mask: Annotated[Path, typer.Option(help="mask.safetensors, or the pruned folder that has it")],
    output: Annotated[Path, typer.Option(help="new folder for the checkpoint with the mask")],
    overwrite: Annotated[bool, typer.Option(help="allow an existing --output")] = False,
    json: Json = False,
) -> None:
    """Apply a mask again to a checkpoint that was fine-tuned or merged since it was pruned."""
    from qprune.models.save import reapply_mask
    from solvers.host.disk import strict_json

    done = reapply_mask(folder, mask, output, overwrite=overwrite)
    if json:
        typer.echo(strict_json(asdict(done)))
        return
    say(
        f"{output}: {done.num_pruned} of {done.num_weights} weights are exactly zero; "
        f"{done.num_filled} of them were not before"
    )


def _measured_table(measured: Measured) -> Table:
    machine = measured.machine
    table = Table(
        title=f"{measured.folder}: {100 * measured.sparsity:.2f} % of masked weights are zero",
        caption=f"{machine['name']}, {machine['threads']} threads, {machine['dtype']}, "
        f"torch {machine['torch']}",
    )
    table.add_column("")
    for name in ("dense", "pruned"):
        table.add_column(name, justify="right")
    labels = {
        "disk": "files, MB",
        "memory": "in memory, MB",
        "zipped": "zipped (estimate), MB",
        "packed": "values and packed mask, MB",
    }
    before, after = asdict(measured.dense_sizes), asdict(measured.sizes)
    rows = [
        (label, before[name] / 1e6, after[name] / 1e6)
        for name, label in labels.items()
        if before[name] is not None
    ]
    if measured.peak_memory is not None:
        dense, pruned = measured.peak_memory
        rows.append(("peak GPU memory, MB", dense / 1e6, pruned / 1e6))
    rows += [
        (f"{one.work}, ms", 1e3 * one.dense.median, 1e3 * one.pruned.median)
        for one in measured.latency
    ]
    rows += [
        (f"{one.work}, 2:4 kernels, ms", 1e3 * one.dense.median, 1e3 * one.pruned.median)
        for one in measured.sparse_kernels
    ]
    for name, dense, pruned in rows:
        table.add_row(name, f"{dense:.4g}", f"{pruned:.4g}")
    return table


def _evaluation_table(outcome: dict[str, Any]) -> Table:
    table = Table(title=outcome["model"])
    for name in ("on", "metric"):
        table.add_column(name)
    table.add_column("value", justify="right")
    at = outcome.get("perplexity")
    if at is not None:
        table.add_row(at["data"], "perplexity", f"{at['value']:.4f}")
        table.caption = (
            f"{at['windows']} windows of {at['max_seq_length']} tokens, stride {at['stride']}, "
            f"{at['predicted_tokens']} predicted tokens, {outcome['dtype']}"
        )
    for task, metrics in outcome.get("tasks", {}).items():
        for metric, value in metrics.items():
            table.add_row(task, metric, f"{value:.4f}")
    return table
