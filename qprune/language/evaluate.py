"""Evaluation of language models: perplexity on a text, accuracy on lm-eval's tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.language.card import Perplexity
from qprune.language.models import checked_length, optional
from qprune.language.perplexity import negative_log_likelihoods
from qprune.language.text import encode, read_text, refuse_unknown_ids
from qprune.progress import Track, untracked

# Windows per update of the progress bar.
_CHUNK = 16


def evaluate_perplexity(
    model: nn.Module,
    tokenizer: Any,
    data: str,
    *,
    max_seq_length: int | None = None,
    stride: int | None = None,
    track: Track = untracked,
) -> Perplexity:
    """Return the perplexity on the test split of a text, every token predicted once.

    Windows of ``max_seq_length`` tokens begin ``stride`` tokens apart, each run alone without a
    begin-of-text token; a last window that would be shorter is dropped. In the first window all
    tokens but the first are predicted. With a stride equal to the length, the same holds for
    every window; with a smaller one, windows overlap, and the later ones predict their last
    ``stride`` tokens, each of which then sees at least ``max_seq_length - stride`` tokens.

    Args:
        model: causal language model, in evaluation mode.
        tokenizer: of the model.
        data: as `qprune.language.text` names sources.
        max_seq_length: by default the model's own, up to 2048.
        stride: by default ``max_seq_length``.
        track: wraps the windows, for a progress bar.

    Raises:
        ImpossibleRequestError: no such text, or an impossible length or stride.
        CalibrationError: the text is shorter than one window.
        NonFiniteError: the logits are NaN or Inf.
    """
    length = checked_length(model, max_seq_length)
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise ImpossibleRequestError(
            f"the stride must be between 1 and the window's {length} tokens, not {stride}; "
            "a longer one would leave tokens out"
        )
    tokens = encode(read_text(data, "test"), tokenizer)
    refuse_unknown_ids(tokens, model)
    if len(tokens) < length:
        raise CalibrationError(
            f"the test text of {data} has {len(tokens)} tokens, less than one window of {length}; "
            "pass more text, or a smaller --max-seq-length"
        )
    windows = tokens.unfold(0, length, stride)
    total, predicted = _summed(model, windows, min(stride, length - 1), track)
    return Perplexity(math.exp(total / predicted), data, length, stride, len(windows), predicted)


def _summed(model: nn.Module, windows: Tensor, last: int, track: Track) -> tuple[float, int]:
    """Return the sum in nats over all predicted tokens, and their number."""
    first = negative_log_likelihoods(model, windows[:1])
    sums = math.fsum(first)
    for chunk in track(windows[1:].split(_CHUNK), "evaluating"):
        if len(chunk):
            sums += math.fsum(negative_log_likelihoods(model, chunk, last))
    return sums, windows.shape[1] - 1 + (len(windows) - 1) * last


def evaluate_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    task_folder: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return zero-shot results of EleutherAI's lm-eval, from its own `simple_evaluate`.

    Args:
        model: causal language model.
        tokenizer: of the model.
        tasks: lm-eval's names.
        task_folder: folder of the user's own tasks, as lm-eval's YAML files.
        limit: largest number of examples per task.
        batch_size: examples run together.
        seed: seed of all random choices in lm-eval.

    Returns:
        By task, lm-eval's metrics and their standard errors.

    Raises:
        ImpossibleRequestError: lm-eval is missing, there is no such task, or its data are not
            available.
    """
    lm_eval = optional("lm_eval", extra="eval")
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=str(task_folder) if task_folder else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ImpossibleRequestError(
            f"lm-eval has no task {unknown[0]!r}; `lm-eval ls tasks` lists them, and "
            "--task-folder adds your own"
        )
    wrapper: Any = HFLM  # Its type does not match its signature.
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        found = lm_eval.simple_evaluate(
            model=wrapper(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            num_fewshot=0,
            limit=limit,
            task_manager=manager,
            log_samples=False,
            **dict.fromkeys(seeds, seed),
        )
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise ImpossibleRequestError(
            f"lm-eval cannot get the data of {', '.join(tasks)} (is there a network?): {reason}"
        ) from error
    return {task: _numbers(found["results"][task]) for task in found["results"]}


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numeric metrics, such as "acc,none": 0.5, without lm-eval's texts."""
    return {name: float(value) for name, value in results.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def names_of(text: str) -> tuple[str, ...]:
    """Split ``"a, b"`` into ``("a", "b")``."""
    return tuple(name for part in text.split(",") if (name := part.strip()))
