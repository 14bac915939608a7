"""Assignment of a batch's tensors to a model's arguments and to labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from qprune.data.batches import Gathered, NoTensor
from qprune.data.inputs import AnyInputs, Call, Inputs
from qprune.data.padding import IGNORED
from qprune.data.signature import Signature, inside
from qprune.errors import CalibrationError

logger = logging.getLogger(__name__)

#: Keys of labels; the first one present is used.
LABELS = ("labels", "label", "targets", "target", "y")
# As optional arguments these can be inputs too, such as the class of an image to generate.
_LABELS_OR_INPUTS = ("label", "y")
_WAYS_OUT = (
    "pass a dict by the argument names, qprune.Calibration(inputs, labels), or "
    "forward=lambda model, batch: ..."
)
# Arguments with one number per token, and parts of the names of those with one per sample.
_BY_TOKEN = ("token_type_ids", "position_ids", "segment_ids", "decoder_input_ids", "input_ids")
_BY_SAMPLE = ("len", "size", "time", "step", "index", "idx", "id", "pos", "class", "cond", "group")


@dataclass(frozen=True, eq=False)
class Bound:
    """Samples split into inputs and labels.

    Attributes:
        inputs: arguments of the model.
        labels: shape (m, ...), or None.
    """

    inputs: AnyInputs
    labels: Tensor | None = None


class Binding(Protocol):
    """Protocol that separates inputs from labels."""

    def __call__(self, gathered: Gathered) -> Bound:
        """Return the inputs and the labels of ``gathered``."""
        ...


@dataclass(frozen=True, eq=False)
class ByCall:
    """Binding of whole batches, labels included, for the caller's own ``forward``."""

    forward: Call

    def __call__(self, gathered: Gathered) -> Bound:
        """Return the whole batch as inputs; labels are the last of a tuple, or the label key."""
        batch, labels = gathered.batch, None
        if isinstance(batch, dict):
            labels = next((batch[k] for k in LABELS if isinstance(batch.get(k), Tensor)), None)
        elif isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[-1], Tensor):
            labels = batch[-1]
        missing = {leaf.kind for leaf in tree_leaves(batch) if isinstance(leaf, NoTensor)}
        if missing - {"NoneType"}:
            logger.warning(
                "values that are no tensors are None in the batches of forward: %s",
                ", ".join(sorted(missing)),
            )
        tree = tree_map(lambda leaf: None if isinstance(leaf, NoTensor) else leaf, batch)
        call = self.forward if gathered.kind is None else Rebuilding(self.forward, gathered.kind)
        return Bound(Inputs(tree, call), labels)


@dataclass(frozen=True)
class Rebuilding:
    """Wrapper of the caller's ``forward`` that rebuilds batches of the caller's own type.

    Attributes:
        forward: (model, batch) -> outputs.
        kind: makes such a batch from a dict.
    """

    forward: Call
    kind: Callable[[dict[str, Any]], Any]

    def __call__(self, model: nn.Module, tree: Any) -> Any:
        """Return what ``forward`` returns for the rebuilt batch."""
        return self.forward(model, self.kind(tree))


@dataclass(frozen=True, eq=False)
class BySignature:
    """Binding by the signature of the model's forward: by name where there are names.

    Attributes:
        signature: arguments of the module inside any wrapper.
        model: that module; None where nothing is known of it.
    """

    signature: Signature
    model: nn.Module | None = None

    @classmethod
    def of(cls, model: nn.Module | None) -> BySignature:
        """Return the binding for ``model``."""
        module = None if model is None else inside(model)
        return cls(Signature.of(module), module)

    def __call__(self, gathered: Gathered) -> Bound:
        """Return the inputs and the labels of ``gathered``.

        Raises:
            CalibrationError: inputs and labels cannot be told apart, or an argument is missing.
        """
        return self._bound(gathered.batch)

    def _bound(self, batch: Any) -> Bound:
        if isinstance(batch, Tensor):
            return Bound(batch)
        if isinstance(batch, dict):
            return self._by_keyword(batch)
        if isinstance(batch, tuple | list):
            fields = getattr(batch, "_fields", ())
            if fields and all(name in (*LABELS, *self.signature.names) for name in fields):
                return self._by_keyword(dict(zip(fields, batch, strict=True)))
            return self._by_position(batch)
        raise CalibrationError(f"a calibration batch is {_kind(batch)}; {_WAYS_OUT}")

    def _by_keyword(self, batch: Mapping[str, Any]) -> Bound:
        labels, key = None, next((k for k in LABELS if self._is_label(k, batch)), None)
        given = {k: v for k, v in batch.items() if k == key or not self._is_label(k, batch)}
        left = [k for k in batch if k not in given]
        if key is not None:
            labels = given.pop(key)
            logger.info("the labels are the calibration batches' %r", key)
        taken = {}
        for name, value in given.items():
            odd = [leaf for leaf in tree_leaves(value) if not isinstance(leaf, Tensor)]
            if not self.signature.takes(name) or (odd and name not in self.signature.names):
                left.append(name)
            elif odd and _is_none(value) and name in self.signature.optional:
                continue
            elif odd:
                raise CalibrationError(
                    f"the batch's {name!r} is {_kind(odd[0])} and {self.signature} takes it; pass "
                    "a tensor, or forward=lambda model, batch: ..."
                )
            else:
                taken[name] = value
        if left:
            logger.warning(
                "left out of the calibration batches, since %s does not take them: %s",
                self.signature,
                ", ".join(map(str, left)),
            )
        missing = [n for n in self.signature.required if n not in taken]
        if missing or not taken:
            raise CalibrationError(
                f"{self.signature} needs {', '.join(missing) or 'an input'}, the calibration "
                f"batch has {', '.join(map(str, batch)) or 'none'}; name its keys after the "
                "arguments, or pass forward=lambda model, batch: ..."
            )
        if isinstance(labels, Tensor):
            taken, labels = self._with_labels(taken, key or "", labels)
        return Bound(self._inputs(taken), _tensor_labels(labels))

    def _is_label(self, key: str, batch: Mapping[str, Any]) -> bool:
        """Return True for a label key that is no required argument of forward."""
        if key not in LABELS or key not in batch or key in self.signature.required:
            return False
        if key in _LABELS_OR_INPUTS and key in self.signature.names and len(batch) > 1:
            raise CalibrationError(
                f"{key!r} is the label in most batches, and {self.signature} takes it; pass "
                "qprune.Calibration(inputs, labels), where all inputs are passed"
            )
        return True

    def _with_labels(
        self, taken: dict[str, Any], key: str, labels: Tensor
    ) -> tuple[dict[str, Any], Tensor]:
        """Return the inputs and labels with those adapted that decoders read or models shift."""
        config = getattr(self.model, "config", None)
        if labels.ndim > 1 and getattr(config, "is_encoder_decoder", False):
            if not {"decoder_input_ids", "decoder_inputs_embeds"} & taken.keys():
                taken = taken | ({key: labels} if self.signature.takes(key) else {})
            return taken, labels
        return taken, self._of_next_tokens(labels, taken.get("input_ids"))

    def _of_next_tokens(self, labels: Tensor, ids: Any) -> Tensor:
        """Return labels shifted by one token, as a language model shifts them itself."""
        name = type(self.model).__name__
        causal = "CausalLM" in name or "LMHead" in name
        if not causal or not isinstance(ids, Tensor) or ids.shape != labels.shape:
            return labels
        logger.info("the labels are those of the next token, as %s shifts them", name)
        return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)

    def _inputs(self, taken: dict[str, Any]) -> AnyInputs:
        """Return the single first argument as a plain tensor, else all arguments as `Inputs`."""
        name, value = next(iter(taken.items()))
        positional = self.signature.positional
        first = (not positional and self.model is None) or positional[:1] == (name,)
        return value if len(taken) == 1 and first and isinstance(value, Tensor) else Inputs(taken)

    def _by_position(self, batch: Sequence[Any]) -> Bound:
        items = [x for x in batch if any(isinstance(leaf, Tensor) for leaf in tree_leaves(x))]
        left = [_kind(x) for x in batch if all(x is not item for item in items)]
        packed = len(items) == 2 and not isinstance(items[0], Tensor)
        number = 1 if packed else self._number_of_inputs(items)
        if left:
            logger.warning("left out of the calibration batches: %s", ", ".join(map(str, left)))
        labels = items[number] if number < len(items) else None
        if number > 1:
            inputs = self._arguments(items[:number])
        else:
            inner = self._bound_alone(items[0])
            inputs, labels = inner.inputs, inner.labels if labels is None else labels
            if isinstance(labels, Tensor) and _same_tokens(labels, inputs):
                labels = self._of_next_tokens(labels, inputs)
        return Bound(inputs, _tensor_labels(labels))

    def _bound_alone(self, item: Any) -> Bound:
        """Return the arguments of one input, which may be a dict or a tuple of them."""
        if isinstance(item, tuple | list):
            self._refuse_odd(item)
            if len(self.signature.positional) == 1 and not self.signature.any_positional:
                return Bound(Inputs((item,)))
            # With fewer it may be one argument that is a list, such as images of many sizes.
            if len(item) < 2 or len(item) != self.signature.required_positional:
                raise CalibrationError(
                    f"the inputs of a calibration batch are {len(item)} tensors and the model "
                    f"takes {self.signature}; {_WAYS_OUT}"
                )
            return Bound(self._arguments(item))
        return self._bound(item)

    def _arguments(self, items: Sequence[Any]) -> Inputs:
        """Return the arguments by name where there are names, so that masks are recognised."""
        self._refuse_odd(items)
        names = self.signature.positional[: len(items)]
        if self.signature.by_position or len(names) < len(items):
            return Inputs(tuple(items))
        return Inputs(dict(zip(names, items, strict=True)))

    def _refuse_odd(self, items: Any) -> None:
        odd = [leaf for leaf in tree_leaves(items) if not isinstance(leaf, Tensor)]
        if odd:
            raise CalibrationError(
                f"the inputs of a calibration batch hold {_kind(odd[0])}; {_WAYS_OUT}"
            )

    def _number_of_inputs(self, items: Sequence[Any]) -> int:
        """Return the number of inputs among a tuple's tensors; a further tensor holds labels.

        Raises:
            CalibrationError: the tuple is ambiguous.
        """
        number, low = len(items), self.signature.required_positional
        high = len(self.signature.positional)
        if number < 2 and low <= number:
            if number:
                return number
            raise CalibrationError("the calibration data hold no tensors")
        if self.signature.any_positional and not high:
            # A pair is inputs and labels, and a model that needs both says so when it is called.
            if number == 2:
                return 1
        else:
            high = number if self.signature.any_positional else high
            all_fit, last_apart = low <= number <= high, low <= number - 1 <= high
            if all_fit != last_apart:
                return number if all_fit else number - 1
            if all_fit and self._is_labels(items[-1], items[0], number - 1):
                return number - 1
        raise CalibrationError(
            f"a calibration batch holds {number} tensors, and {self.signature} does not say which "
            f"are inputs and which are labels; {_WAYS_OUT}"
        )

    def _is_labels(self, last: Any, first: Any, position: int) -> bool:
        """Return True if the last tensor looks like labels rather than like the next argument."""
        names = self.signature.positional
        name = names[position] if position < len(names) else ""
        if name in LABELS and name not in _LABELS_OR_INPUTS:
            return True
        if not isinstance(last, Tensor) or name in _LABELS_OR_INPUTS:
            return False
        if last.ndim == 1 or (
            last.ndim == 2 and last.shape[1] == 1 and not last.is_floating_point()
        ):
            return name in _BY_TOKEN or not any(word in name for word in _BY_SAMPLE)
        if "mask" not in name and name not in _BY_TOKEN:
            return False
        if last.is_floating_point():
            return last.shape[:2] != first.shape[:2]
        # Masks and token types are excluded: their values are 0 and 1.
        return not bool(((last == 0) | (last == 1)).all())


def _same_tokens(labels: Tensor, inputs: AnyInputs) -> bool:
    if not isinstance(inputs, Tensor) or labels.shape != inputs.shape or labels.ndim < 2:
        return False
    return bool(((labels == inputs) | (labels == IGNORED)).all())


def _kind(value: Any) -> str:
    if isinstance(value, NoTensor):
        return f"{value.kind} (no tensor)"
    return f"{type(value).__name__} (no tensor)"


def _is_none(value: Any) -> bool:
    return isinstance(value, NoTensor) and value.kind == "NoneType"


def _tensor_labels(labels: Any) -> Tensor | None:
    if labels is None or isinstance(labels, Tensor):
        return labels
    logger.warning("the labels are no tensor and are left out: %s", _kind(labels))
    return None
