"""Text that a language model writes itself: more sequences to fit on than were given.

The dense model goes on from pieces of the calibration sequences, one token after the other drawn
from its own distribution. No other text is seen, and no label: as with every augmentation, the
dense model says what the pruned one should answer (LLM-QAT, Liu et al., arXiv 2305.17888, makes
its training data in this way).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qprune.augment import check_copies
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.losses import draw_classes

# Tokens whose keys and values are cached at once.
_CACHED_TOKENS = 1 << 15


@dataclass(frozen=True)
class OwnText:
    """Continuations of pieces of the calibration sequences, at temperature 1.

    Args:
        model: causal language model with Hugging Face's interface (``past_key_values``), called
            while it is dense.
        copies: sequences written per calibration sequence.
        prefix: tokens of a calibration sequence, from a random place, that each begins with.

    Raises:
        ImpossibleRequestError: ``copies`` is negative, or ``prefix`` less than 1.
    """

    keeps_labels: ClassVar[bool] = False
    model: nn.Module = field(repr=False)
    copies: int = 4
    prefix: int = 32

    def __post_init__(self) -> None:
        check_copies(self.copies)
        if self.prefix < 1:
            raise ImpossibleRequestError(f"prefix must be at least 1 token, not {self.prefix!r}")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """See `Augmentation`; ``inputs`` are token ids (m, T).

        Raises:
            CalibrationError: the inputs are no sequences of tokens, or too short; or the model
                does not write text.
        """
        if inputs.ndim != 2 or inputs.is_floating_point() or inputs.shape[1] < 2:
            raise CalibrationError(
                f"OwnText goes on from token ids (m, T), not from inputs of shape "
                f"{tuple(inputs.shape)} and type {inputs.dtype}; use augment=None"
            )
        length = inputs.shape[1]
        prefix = min(self.prefix, length - 1)
        written = [inputs[:0]]
        for _ in range(self.copies):
            places = torch.randint(length - prefix + 1, (len(inputs), 1), generator=generator)
            pieces = inputs.gather(1, (places + torch.arange(prefix)).to(inputs.device))
            for batch in pieces.split(max(1, _CACHED_TOKENS // length)):
                written.append(self._continued(batch, length, generator))
        return torch.cat(written)

    @torch.no_grad()
    def _continued(self, tokens: Tensor, length: int, generator: torch.Generator) -> Tensor:
        """``tokens`` (m, t) and what the model writes after them, (m, length)."""
        sequences, cache = tokens, None
        while sequences.shape[1] < length:
            output = self._output(tokens, cache)
            cache = output.past_key_values
            tokens = draw_classes(output.logits[:, -1:].float(), generator).to(tokens)
            sequences = torch.cat([sequences, tokens], 1)
        return sequences

    def _output(self, tokens: Tensor, cache: Any) -> Any:
        try:
            output = self.model(tokens, past_key_values=cache, use_cache=True)
        except TypeError as error:
            raise CalibrationError(
                f"{type(self.model).__name__} cannot write text of its own (it takes no "
                f"past_key_values); use augment=None: {error}"
            ) from error
        if getattr(output, "past_key_values", None) is None:
            raise CalibrationError(
                f"{type(self.model).__name__} returns no past_key_values to go on from; use "
                "augment=None"
            )
        return output
