"""Heads of checkpoints: calibration data, loss and quality for each task.

One strategy for each task of `qprune.models.pretrained`:

==================  ============================================  =============================
head                calibration data                              figure
==================  ============================================  =============================
causal              windows of text                               perplexity
sequence classes    labelled rows, or windows of text             divergence, accuracy of rows
token classes       windows of text                               divergence
masked              windows of text, 15 % of the tokens masked    divergence and accuracy there
encoder-decoder     text in, the text that follows it out         divergence
image classes       a data set of images, as other jobs take it   divergence, accuracy
==================  ============================================  =============================

The divergence is the run's own loss against the dense model, on held-out data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qprune.data.augment import Augmentation, OwnText, cache_name
from qprune.data.calibration import Calibration
from qprune.data.inputs import Inputs, mapped
from qprune.data.outputs import Bernoulli, Real
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.models.card import Divergence, Quality
from qprune.models.datasets import load_data
from qprune.models.evaluate import Track, evaluate_perplexity
from qprune.models.pretrained import (
    CAUSAL,
    ENCODER_DECODER,
    IMAGES,
    IN_PYTHON,
    MASKED,
    SEQUENCES,
    TOKENS,
    Loaded,
    Task,
    checked_length,
    load_tokenizer,
    optional,
    task_of,
)
from qprune.models.text import (
    Corpus,
    consecutive_windows,
    encode,
    is_text,
    random_windows,
    read_corpus,
    refuse_unknown_ids,
)
from qprune.objective.losses import DenseOutputs, Loss
from qprune.objective.trace.recorder import forward

# Share of the tokens that are masked, as BERT was trained (Devlin et al., arXiv 1810.04805).
_MASKED_SHARE = 0.15
# Outputs compared at once are of so many samples, and have so many numbers at most.
_SAMPLES, _OUTPUTS = 16, 1 << 24
#: What says how an image is to be prepared; it goes with the checkpoint.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Criterion:
    """Loss of a head, and the unit of its mean."""

    loss: Loss
    unit: str


_PER_SAMPLE = Criterion(DenseOutputs(fit_scale=False), "nats per sample")
_PER_TOKEN = Criterion(DenseOutputs(fit_scale=False), "nats per token")


@dataclass(frozen=True)
class Samples:
    """The samples that are asked of a checkpoint's data.

    Attributes:
        data: name of the data.
        number: of calibration samples.
        max_seq_length: tokens in each; None = the model's own, up to 2048.
        normalization: of images; None = the data's own.
        seed: of the choice of samples.
        held_out: True if samples to score on are needed too.
    """

    data: str
    number: int = 128
    max_seq_length: int | None = None
    normalization: str | None = None
    seed: int = 0
    held_out: bool = True


@dataclass(frozen=True, eq=False)
class Subject:
    """Dense model of a run, with its data.

    Attributes:
        model: dense, in evaluation mode.
        data: name of the data.
        head: strategy for the model's task.
        calibration: the only data that pruning uses.
        held_out: data for the divergence; None where it is not measured.
        tokenizer: tokenizer of the model; None for images.
        length: tokens per sample; None for images.
        unused: weights of the checkpoint that the model has no place for.
        beside: files of the checkpoint to copy beside the pruned one.
        augment: augmentation for such samples; None where there is none.
    """

    model: nn.Module
    data: str
    head: Head
    calibration: Calibration
    held_out: Calibration | None = None
    tokenizer: Any = None
    length: int | None = None
    unused: tuple[str, ...] = ()
    beside: tuple[Path, ...] = ()
    augment: Augmentation | None = None


class Head(ABC):
    """Strategy for the models of one task; `useless` names settings of other tasks' data."""

    task: ClassVar[Task]
    useless: ClassVar[tuple[str, ...]] = ("normalization",)

    @abstractmethod
    def subject(self, asked: Samples, loaded: Loaded) -> Subject:
        """Return the model with its data.

        Raises:
            QpruneError: the data are missing, or do not fit such a model.
        """

    def criterion(self, model: nn.Module) -> Criterion:
        """Return the loss of the head."""
        return _PER_TOKEN

    def own_text(
        self,
        model: nn.Module,
        observe: Callable[[int, int], None] | None,
        enough: Callable[[], bool],
    ) -> Augmentation | None:
        """Return the augmentation by text that the model writes itself; None where it cannot."""
        return None

    def quality(
        self,
        subject: Subject,
        model: nn.Module,
        dense: Callable[[], nn.Module],
        track: Track,
    ) -> Quality:
        """Return the quality of ``model`` on held-out data; ``dense`` loads the dense model."""
        assert subject.held_out is not None
        criterion = self.criterion(model)
        value, accuracy = compared(dense(), model, subject.held_out, criterion.loss, track)
        return Divergence(
            value,
            criterion.unit,
            subject.data,
            len(subject.held_out),
            subject.length,
            accuracy,
        )


class Causal(Head):
    """Head that predicts the next token."""

    task = CAUSAL

    def subject(self, asked: Samples, loaded: Loaded) -> Subject:
        tokenizer = load_tokenizer(loaded.source)
        length = checked_length(loaded.model, asked.max_seq_length)
        tokens = encode(read_corpus(asked.data, "train").text, tokenizer)
        refuse_unknown_ids(tokens, loaded.model)
        windows = random_windows(tokens, asked.number, length, asked.seed)
        return Subject(
            loaded.model,
            asked.data,
            self,
            Calibration(windows),
            tokenizer=tokenizer,
            length=length,
            unused=loaded.unused,
        )

    def own_text(
        self,
        model: nn.Module,
        observe: Callable[[int, int], None] | None,
        enough: Callable[[], bool],
    ) -> Augmentation | None:
        return OwnText(model, observe=observe, enough=enough) if cache_name(model) else None

    def quality(
        self,
        subject: Subject,
        model: nn.Module,
        dense: Callable[[], nn.Module],
        track: Track,
    ) -> Quality:
        return evaluate_perplexity(
            model, subject.tokenizer, subject.data, max_seq_length=subject.length, track=track
        )


@dataclass(frozen=True)
class Frame:
    """Special tokens that a tokenizer puts before and after a text."""

    before: tuple[int, ...]
    behind: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, text: str) -> Frame:
        """Return the frame that ``tokenizer`` puts around the beginning of ``text``."""
        start = text[:200]
        bare = tokenizer(start, add_special_tokens=False)["input_ids"]
        full = tokenizer(start)["input_ids"]
        for first in range(len(full) - len(bare) + 1):
            if full[first : first + len(bare)] == bare:
                return cls(tuple(full[:first]), tuple(full[first + len(bare) :]))
        return cls((), ())

    def __len__(self) -> int:
        return len(self.before) + len(self.behind)

    def around(self, windows: Tensor) -> Tensor:
        """Return windows (m, n) with the special tokens, (m, n + len)."""
        before, behind = (
            windows.new_tensor(ids).expand(len(windows), -1) for ids in (self.before, self.behind)
        )
        return torch.cat([before, windows, behind], dim=1)


class TextHead(Head):
    """Base of heads whose model reads text with special tokens around it."""

    def subject(self, asked: Samples, loaded: Loaded) -> Subject:
        model = loaded.model
        if getattr(model, "main_input_name", "input_ids") != "input_ids":
            raise ImpossibleRequestError(
                f"{loaded.source}, a {type(model).__name__}, reads {model.main_input_name}, and "
                f"--data is text; {IN_PYTHON}"
            )
        tokenizer = load_tokenizer(loaded.source)
        length = checked_length(model, asked.max_seq_length)
        parts = {
            split: self.samples(asked, model, tokenizer, length, split)
            for split in (("train", "test") if asked.held_out else ("train",))
        }
        return Subject(
            model,
            asked.data,
            self,
            parts["train"],
            parts.get("test"),
            tokenizer=tokenizer,
            length=length,
            unused=loaded.unused,
        )

    def samples(
        self, asked: Samples, model: nn.Module, tokenizer: Any, length: int, split: str
    ) -> Calibration:
        """Return windows of the text: random to calibrate on, all consecutive to score on."""
        text = read_corpus(asked.data, split).text
        tokens, frame = encode(text, tokenizer), Frame.of(tokenizer, text)
        refuse_unknown_ids(frame.around(tokens[None]), model)
        size = self.num_tokens(length, frame)
        if size < 1:
            raise ImpossibleRequestError(
                f"max_seq_length {length} has no room beside {len(frame)} special tokens"
            )
        if split == "test":
            return self.made(consecutive_windows(tokens, size), frame, model, tokenizer, 0)
        windows = random_windows(tokens, asked.number, size, asked.seed)
        return self.made(windows, frame, model, tokenizer, asked.seed)

    def num_tokens(self, length: int, frame: Frame) -> int:
        """Return the tokens of text in one sample."""
        return length - len(frame)

    @abstractmethod
    def made(
        self, windows: Tensor, frame: Frame, model: nn.Module, tokenizer: Any, seed: int
    ) -> Calibration:
        """Make samples from windows of plain text, token ids (m, num_tokens)."""


class SequenceClasses(TextHead):
    """Head that classifies, or rewards, a whole text."""

    task = SEQUENCES

    def criterion(self, model: nn.Module) -> Criterion:
        return classification_criterion(model.config)

    def samples(
        self, asked: Samples, model: nn.Module, tokenizer: Any, length: int, split: str
    ) -> Calibration:
        """Return labelled rows where the data have them, else windows of the text."""
        corpus = read_corpus(asked.data, split)
        if corpus.labels is None:
            return super().samples(asked, model, tokenizer, length, split)
        if split == "train" and len(corpus.texts) > asked.number:
            generator = torch.Generator().manual_seed(asked.seed)
            order = torch.randperm(len(corpus.texts), generator=generator)
            drawn = order[: asked.number].sort().values.tolist()
            corpus = corpus.take(drawn)
        return _padded_rows(corpus, model, tokenizer, length)

    def made(
        self, windows: Tensor, frame: Frame, model: nn.Module, tokenizer: Any, seed: int
    ) -> Calibration:
        return Calibration(Inputs(_read(frame.around(windows)), _to_the_last_token))


class TokenClasses(TextHead):
    """Head that classifies every token."""

    task = TOKENS

    def made(
        self, windows: Tensor, frame: Frame, model: nn.Module, tokenizer: Any, seed: int
    ) -> Calibration:
        return Calibration(Inputs(_read(frame.around(windows))))


class MaskedTokens(TextHead):
    """Head that predicts masked tokens; the loss is over these alone, as in training."""

    task = MASKED

    def made(
        self, windows: Tensor, frame: Frame, model: nn.Module, tokenizer: Any, seed: int
    ) -> Calibration:
        if tokenizer.mask_token_id is None:
            raise ImpossibleRequestError(
                f"a {type(model).__name__} predicts masked tokens, and its tokenizer has no mask "
                "token; add the one that it was trained with (mask_token)"
            )
        mark = torch.tensor([tokenizer.mask_token_id])
        refuse_unknown_ids(mark, model)
        number = max(1, round(_MASKED_SHARE * windows.shape[1]))
        generator = torch.Generator().manual_seed(seed)
        places = torch.rand(windows.shape, generator=generator).argsort(1)[:, :number]
        places = places.sort(1).values
        masked = frame.around(windows.scatter(1, places, int(mark)))
        tree = _read(masked) | {"masked": places + len(frame.before)}
        return Calibration(Inputs(tree, _at_masked), windows.gather(1, places))


class EncoderDecoder(TextHead):
    """Head that reads a text and predicts the text that follows."""

    task = ENCODER_DECODER

    def num_tokens(self, length: int, frame: Frame) -> int:
        return max(0, length - len(frame)) and 2 * length - len(frame)

    def made(
        self, windows: Tensor, frame: Frame, model: nn.Module, tokenizer: Any, seed: int
    ) -> Calibration:
        length = (windows.shape[1] + len(frame)) // 2
        given, following = windows.split([length - len(frame), length], dim=1)
        shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shifted is None or not getattr(model.config, "is_encoder_decoder", False):
            raise ImpossibleRequestError(
                f"a {type(model).__name__} is no encoder-decoder that reads and writes text alone; "
                f"{IN_PYTHON}"
            )
        try:
            ahead = shifted(labels=following.contiguous())
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ImpossibleRequestError(
                f"the decoder of a {type(model).__name__} cannot begin: {reason}; set it in "
                "config.json"
            ) from error
        return Calibration(Inputs(_read(frame.around(given)) | {"decoder_input_ids": ahead}))


class ImageClasses(Head):
    """Head that classifies images."""

    task = IMAGES
    useless = ("max_seq_length",)

    def criterion(self, model: nn.Module) -> Criterion:
        return classification_criterion(model.config)

    def subject(self, asked: Samples, loaded: Loaded) -> Subject:
        if is_text(asked.data):
            raise ImpossibleRequestError(
                f"{loaded.source} is an image classifier, and --data is text; give images "
                "(cifar10:FILE.npz, mnist:FILE.npz, or package.module:factory that returns a "
                f"qprune.models.datasets.DataSet), or {IN_PYTHON}"
            )
        data = load_data(asked.data, asked.normalization)
        folder = Path(loaded.source)
        return Subject(
            loaded.model,
            asked.data,
            self,
            data.calibration(asked.number, asked.seed),
            Calibration(data.test_inputs, data.test_labels) if asked.held_out else None,
            unused=loaded.unused,
            beside=tuple(folder / n for n in _PROCESSORS if (folder / n).is_file()),
            augment=None if isinstance(data.augment, str) else data.augment,
        )


HEADS: Mapping[Task, Head] = {
    head.task: head
    for head in (
        Causal(),
        SequenceClasses(),
        TokenClasses(),
        MaskedTokens(),
        EncoderDecoder(),
        ImageClasses(),
    )
}


def head_of(model: nn.Module) -> Head:
    """Return the head of a model from `load_pretrained`."""
    task = task_of(type(model).__name__, optional("transformers"))
    assert task is not None
    return HEADS[task]


def require_causal(source: str, model: nn.Module, what: str) -> None:
    """Refuse a request that is for causal language models alone.

    Raises:
        ImpossibleRequestError: ``model`` is not causal.
    """
    task = head_of(model).task
    if task is not CAUSAL:
        raise ImpossibleRequestError(
            f"{what}, and {source} is {task.described} ({type(model).__name__}); `qprune prune` "
            "and `qprune verify` measure its divergence from the dense model"
        )


def classification_criterion(config: Any) -> Criterion:
    """Return the loss of a classifier by the problem type of its config."""
    if config.problem_type == "multi_label_classification":
        return Criterion(DenseOutputs(kind=Bernoulli(logits=True)), "nats per label")
    if config.problem_type == "regression" or config.num_labels == 1:
        return Criterion(DenseOutputs(kind=Real()), "squared distance per output")
    return _PER_SAMPLE


@torch.no_grad()
def compared(
    dense: nn.Module, model: nn.Module, data: Calibration, loss: Loss, track: Track
) -> tuple[float, float | None]:
    """Return (mean loss of ``model`` against ``dense``, accuracy, or None without labels).

    Raises:
        CalibrationError: a model does not take the data.
    """
    made = forward(dense, _on(data.inputs[:1], dense)).numel()
    size = max(1, min(_SAMPLES, _OUTPUTS // made))
    batches = torch.arange(len(data)).split(size)
    total, right, marked = 0.0, 0, 0
    for indices in track(batches, "comparing"):
        batch = data.take(indices)
        inputs = _on(batch.inputs, model)
        outputs = forward(model, inputs).double()
        targets = outputs if dense is model else forward(dense, inputs).double()
        total += float(loss.per_sample(outputs, targets).sum())
        if batch.labels is not None:
            right += int((outputs.argmax(-1).cpu() == batch.labels).sum())
            marked += batch.labels.numel()
    return total / len(data), right / marked if marked else None


def _on(inputs: Any, model: nn.Module) -> Any:
    device = next(model.parameters()).device
    return mapped(inputs, lambda tensor: tensor.to(device))


def _read(ids: Tensor) -> dict[str, Tensor]:
    """Return the inputs of a model that reads whole windows."""
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _at_masked(model: nn.Module, tree: Mapping[str, Tensor]) -> Tensor:
    """Return the logits at the masked tokens, (m, masked, vocabulary)."""
    rest = {name: tensor for name, tensor in tree.items() if name != "masked"}
    logits = model(**rest).logits
    return logits.gather(1, tree["masked"][..., None].expand(-1, -1, logits.shape[-1]))


def _to_the_last_token(model: nn.Module, tree: Mapping[str, Tensor]) -> Any:
    """Return the outputs for whole windows, with no token treated as padding."""
    with _no_padding(model):
        return model(**tree)


@contextmanager
def _no_padding(model: nn.Module) -> Generator[None]:
    """Treat no token as padding within the context.

    A decoder with a classifier finds the end of a text by the padding after it, and refuses
    batches where its config names no such token.
    """
    config: Any = model.config
    config = config.get_text_config()
    before = getattr(config, "pad_token_id", None)
    config.pad_token_id = -1
    try:
        yield
    finally:
        config.pad_token_id = before


def _padded_rows(corpus: Corpus, model: nn.Module, tokenizer: Any, length: int) -> Calibration:
    """Return rows cut to ``length`` tokens and padded at the end to the longest.

    Raises:
        ImpossibleRequestError: they cannot be padded.
        CalibrationError: there are no rows, or labels that are no classes of the model.
    """
    if not corpus.texts:
        raise CalibrationError("the data have no rows in a split that is needed; pass more")
    found = tokenizer(list(corpus.texts), truncation=True, max_length=length)["input_ids"]
    config: Any = model.config
    padding = getattr(config.get_text_config(), "pad_token_id", None)
    if padding is None:
        raise ImpossibleRequestError(
            "rows of different lengths are padded, and the model's config names no pad_token_id; "
            "set it there, or give text without labels"
        )
    longest = max(map(len, found))
    ids = torch.full((len(found), longest), padding)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(found):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    refuse_unknown_ids(ids, model)
    return Calibration(
        Inputs({"input_ids": ids, "attention_mask": mask}), _classes(corpus.labels or (), config)
    )


def _classes(labels: Sequence[Any], config: Any) -> Tensor | None:
    """Return labels as class numbers; None where accuracy cannot be measured.

    Raises:
        CalibrationError: the model has no such class.
    """
    if classification_criterion(config) is not _PER_SAMPLE:
        return None
    numbers = [config.label2id.get(label) if isinstance(label, str) else label for label in labels]
    if all(isinstance(number, int) and number < 0 for number in numbers):
        return None  # Hidden, as in the test splits of GLUE.
    for label, number in zip(labels, numbers, strict=True):
        if not isinstance(number, int) or not 0 <= number < config.num_labels:
            raise CalibrationError(
                f"the label {label!r} is none of the model's {config.num_labels} classes; give "
                "numbers from 0, or the names in its config.json (label2id)"
            )
    return torch.tensor(numbers)
