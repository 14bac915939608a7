"""Everything `qprune` raises, in one tree; each is also the builtin a caller would expect.

    QpruneError
    +-- ImpossibleRequestError (ValueError)   refused before any work: what, where, what to do
    +-- UnsupportedLayerError (TypeError)     a module without weights that can be pruned
    +-- CalibrationError (ValueError)         empty, mismatched or non-finite data: batch, layer
    +-- NonFiniteError (FloatingPointError)   NaN or Inf in weights, activations, loss, curvature
    +-- SamplerError (RuntimeError)           the sampler failed: carries problem and sampleset
    +-- RunFolderError (OSError)              the folder holds another run, or lies
    +-- LostRankError (RuntimeError)          another process of a distributed run is gone

A warning stands beside them: `LeftDenseWarning`, of tensors that a run does not prune though nobody
said so.

Errors of `solvers` (an unknown sampler, an unknown option) pass through unchanged.
"""

from __future__ import annotations


class QpruneError(Exception):
    """Base of all errors raised by `qprune`."""


class ImpossibleRequestError(QpruneError, ValueError):
    """The request cannot be met; nothing has been touched."""


class UnsupportedLayerError(QpruneError, TypeError):
    """A targeted module has no weight matrix that qprune knows how to prune."""


class CalibrationError(QpruneError, ValueError):
    """The calibration data are empty, mismatched, or not what the model takes."""


class NonFiniteError(QpruneError, FloatingPointError):
    """NaN or Inf where a number was needed; the message names layer and batch."""


class SamplerError(QpruneError, RuntimeError):
    """The sampler raised, or returned nothing, NaN, wrong variables or wrong counts.

    Attributes:
        problem: the `solvers.QuadraticProblem` that was asked.
        answer: what came back, if anything did.
    """

    def __init__(self, message: str, *, problem: object = None, answer: object = None) -> None:
        super().__init__(message)
        self.problem = problem
        self.answer = answer


class RunFolderError(QpruneError, OSError):
    """An output folder holds another run, cannot be written, or contradicts itself."""


class LostRankError(QpruneError, RuntimeError):
    """Another rank of a distributed run died, or did not answer in time."""


class LeftDenseWarning(UserWarning):
    """Tensors of the model stay dense though the request does not say so; they are named."""
