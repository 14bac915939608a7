"""One `qprune prune` of a language model: from settings to a folder that transformers loads."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.language.card import Card, Perplexity, layer_records
from qprune.language.evaluate import evaluate_perplexity
from qprune.language.models import checked_length, load_pretrained, load_tokenizer, stored_dtype
from qprune.language.save import save_model
from qprune.language.settings import LanguageSettings
from qprune.language.text import calibration_windows
from qprune.layerwise import METHODS, LayerObserver, Layerwise, prune_layerwise
from qprune.layerwise.methods import Method
from qprune.progress import Track, untracked
from qprune.threads import limited_threads


@dataclass(frozen=True, eq=False)
class LanguageOutcome:
    """A pruned language model and what became of it.

    Attributes:
        model: the pruned model, its weights rounded to what the checkpoint stores them in.
        layerwise: masks, and what was reached in every matrix.
        card: the same for the folder, with both perplexities.
        seconds, cpu_seconds: of everything, evaluation included.
        peak_memory: bytes, of the process or of the GPU where it ran there.
    """

    model: nn.Module
    layerwise: Layerwise
    card: Card
    seconds: float
    cpu_seconds: float
    peak_memory: int

    def summary(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        card = self.card
        return {
            "method": card.method,
            "asked_sparsity": card.asked_sparsity,
            "achieved_sparsity": card.achieved_sparsity,
            "mask_structure": card.mask_structure,
            "dense": card.dense and card.dense.value,
            "final": card.pruned and card.pruned.value,
            "max_seq_length": card.settings["max_seq_length"],
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "prune_seconds": self.layerwise.seconds,
            "prune_cpu_seconds": self.layerwise.cpu_seconds,
            "peak_memory": self.peak_memory,
            "seed": card.settings["seed"],
            "layers": [
                {"name": o.name, "shape": o.shape, "sparsity": o.sparsity, "error": o.error}
                for o in self.layerwise.layers
            ],
        }


def run_language_job(
    settings: LanguageSettings,
    output: Path | None = None,
    *,
    observe: LayerObserver | None = None,
    track: Track = untracked,
) -> LanguageOutcome:
    """Load, prune, evaluate and, with ``output``, save.

    Args:
        settings: what to do.
        output: new folder for what `save_pretrained` writes, the packed mask and the card.
        observe: called with every matrix that is done.
        track: wraps the windows that are evaluated, for a progress bar.

    Raises:
        QpruneError: the request is impossible, or failed; nothing is left behind.
    """
    began = time.perf_counter(), time.process_time()
    _refuse_occupied(output)
    with limited_threads(settings.threads):
        model = load_pretrained(settings.model, dtype=settings.dtype, device=settings.device)
        if getattr(model, "main_input_name", "") == "pixel_values":
            raise ImpossibleRequestError(
                f"{settings.model} is an image classifier, and --data is text; prune it in Python, "
                "by qprune.layerwise.prune_layerwise with images"
            )
        tokenizer = load_tokenizer(settings.model)
        length = checked_length(model, settings.max_seq_length)
        windows = calibration_windows(
            settings.data,
            tokenizer,
            num_samples=settings.num_calibration_samples,
            max_seq_length=length,
            seed=settings.seed,
        )

        def score() -> Perplexity | None:
            if not settings.evaluate:
                return None
            return evaluate_perplexity(
                model, tokenizer, settings.data, max_seq_length=length, track=track
            )

        dense = score()
        done = prune_layerwise(
            model,
            windows,
            method=_method(settings),
            sparsity=settings.asked_sparsity,
            mask_structure=settings.mask_structure,
            compensate=settings.compensate,
            targets=settings.targets,
            ignore=settings.ignore,
            offload=settings.offload,
            seed=settings.seed,
            observe=observe,
        )
        dtype = stored_dtype(settings.model)
        _round_to(model, dtype)
        card = Card(
            base_model=settings.model,
            method=settings.method,
            asked_sparsity=settings.asked_sparsity,
            layers=layer_records(done.mask),
            mask_structure=settings.mask_structure,
            dense=dense,
            pruned=score(),
            settings=settings.model_dump(mode="json") | {"max_seq_length": length},
        )
        if output is not None:
            save_model(output, model, done.mask, tokenizer=tokenizer, card=card, dtype=dtype)
    return LanguageOutcome(
        model=model,
        layerwise=done,
        card=card,
        seconds=time.perf_counter() - began[0],
        cpu_seconds=time.process_time() - began[1],
        peak_memory=_peak_memory(settings.device),
    )


def _method(settings: LanguageSettings) -> Method:
    method = METHODS[settings.method]
    return method if settings.budget is None else replace(method, scope=settings.budget)


@torch.no_grad()
def _round_to(model: nn.Module, dtype: torch.dtype) -> None:
    """Round weights to what they are stored in, so that the figures are those of the folder."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.copy_(parameter.to(dtype))


def _refuse_occupied(output: Path | None) -> None:
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(f"{output} is not empty; choose another --output")


def _peak_memory(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
