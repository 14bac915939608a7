"""Metrics: accuracy and loss on data, and correlation of predictions with outcomes.

Perplexity of a causal language model on windows of tokens.

Evaluation of language models: perplexity on a text, accuracy on lm-eval's tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qprune.data.calibration import Calibration
from qprune.errors import CalibrationError, ImpossibleRequestError, NonFiniteError
from qprune.models.card import Perplexity
from qprune.models.pretrained import checked_length, optional
from qprune.models.text import encode, read_text, refuse_unknown_ids
from qprune.network.layouts import evaluation_mode
from qprune.objective.loss_names import as_loss
from qprune.objective.losses import DenseOutputs, Labels, Loss
from qprune.objective.samples import counted_samples, loss_for
from qprune.objective.trace.recorder import forward
from qprune.results import Score

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Iteration with a progress display: (items, description of the work)."""


def untracked(items: Sequence[Any], description: str) -> Iterable[Any]:
    """Return the items unchanged: the `Track` without a display."""
    return items


@torch.no_grad()
def score(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    loss: Loss | str = "dense",
    batch_size: int = 500,
) -> Score:
    """Return accuracy and mean loss against labels (cross entropy in nats), in evaluation mode.

    Args:
        model: returns logits, shape (batch, classes), or outputs that ``loss`` takes. Its mode is
            restored afterwards.
        inputs: shape (samples, ...).
        labels: shape (samples, ...), class indices or numbers.
        loss: as in `qprune.prune`; a loss against dense outputs only gives the kind of
            outputs. An open kind is recognised (`qprune.objective.recognise`).
        batch_size: samples per forward pass.

    Returns:
        Accuracy is the share of right labels, None where numbers are predicted.

    Raises:
        CalibrationError: no samples, or numbers of labels and inputs differ.
    """
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise CalibrationError(
            f"cannot score a network on {len(inputs)} inputs with {len(labels)} labels; "
            "pass one label for each input, and at least one"
        )
    asked = as_loss(loss)
    measure: Loss = Labels(asked.kind) if isinstance(asked, DenseOutputs) else asked
    total, right, told = 0.0, 0, 0
    with evaluation_mode(model):
        measure = loss_for(measure, model, Calibration(inputs, labels))
        data = counted_samples(Calibration(inputs, labels), measure)
        assert data.labels is not None
        parts = zip(data.inputs.split(batch_size), data.labels.split(batch_size), strict=True)
        for batch, target in parts:
            outputs = forward(model, batch).double()
            total += float(measure.per_sample(outputs, target).sum())
            correct = measure.right(outputs, target) if isinstance(measure, Labels) else None
            if correct is not None:
                right, told = right + int(correct.sum()), told + len(correct)
    return Score(accuracy=right / told if told else None, loss=total / len(data))


# Largest number of logits at once; it limits the windows of a batch.
_LOGITS = 1 << 24


def perplexity(model: nn.Module, windows: Tensor) -> float:
    """Return the exponential of the mean negative log-likelihood of the predicted tokens.

    Each window is run alone, without a begin-of-text token: with windows of ``T`` tokens, ``T - 1``
    of them are predicted.

    Args:
        model: causal language model, run in evaluation mode; device and mode stay as they were.
        windows: token ids, shape (windows, T).

    Raises:
        NonFiniteError: the model's logits are NaN or Inf.
    """
    total = sum(negative_log_likelihoods(model, windows))
    return math.exp(total / (len(windows) * (windows.shape[1] - 1)))


@torch.no_grad()
def negative_log_likelihoods(
    model: nn.Module, windows: Tensor, last: int | None = None
) -> list[float]:
    """Return sums over each window's predicted tokens, or its ``last`` ones, in nats."""
    device = next(model.parameters()).device
    # float32 or better: half precision loses the tail of a large vocabulary.
    dtype = torch.promote_types(model_dtype(model), torch.float32)
    sums: list[float] = []
    size = 1
    with evaluation_mode(model):
        while len(sums) < len(windows):
            batch = windows[len(sums) : len(sums) + size].to(device)
            logits = model(batch).logits[:, :-1].to(dtype)
            size = max(1, _LOGITS // logits[0].numel())
            losses = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
            if not torch.isfinite(losses).all():
                raise NonFiniteError(
                    f"the logits of window {len(sums)} or one of the next {len(batch) - 1} are "
                    f"NaN or Inf{_first_broken(model, batch)}; the model is broken, or its dtype "
                    "too narrow"
                )
            losses = losses.view(len(batch), -1)
            sums += losses[:, -(last or losses.shape[1]) :].double().sum(1).tolist()
    return sums


def _first_broken(model: nn.Module, batch: Tensor) -> str:
    """Return words for the first module with NaN or Inf; empty where there is none."""
    broken: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                broken.append(name)

        return look

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return f" (first the outputs of {broken[0]!r} hold them)" if broken else ""


def model_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's first parameter."""
    return next(model.parameters()).dtype


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
        data: as `qprune.models.text` names sources.
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
        with evaluation_mode(model):
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
