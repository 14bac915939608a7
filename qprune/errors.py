"""Exceptions of `qprune` in one tree; each is also the builtin a caller would expect.

    QpruneError
    +-- ImpossibleRequestError (ValueError)   refused before any work: what, where, what to do
    +-- UnsupportedLayerError (TypeError)     a module without weights that can be pruned
    +-- CalibrationError (ValueError)         empty, mismatched or non-finite data: batch, layer
    +-- NonFiniteError (FloatingPointError)   NaN or Inf in weights, activations, loss, curvature
    +-- SamplerError (RuntimeError)           the sampler failed: carries problem and sampleset
    +-- RunFolderError (OSError)              the folder holds another run, or is inconsistent
    +-- LostRankError (RuntimeError)          another process of a distributed run is gone

The one warning is `LeftDenseWarning`: tensors that a run does not prune without being told so.

Errors of `solvers` (an unknown sampler, an unknown option) pass through unchanged.
"""

from __future__ import annotations

from solvers.errors import SamplerFailedError, StorageError
from solvers.host.disk import Disk


class QpruneError(Exception):
    """Base of all errors raised by `qprune`."""


class ImpossibleRequestError(QpruneError, ValueError):
    """Request that cannot be met; nothing has been changed."""


class UnsupportedLayerError(QpruneError, TypeError):
    """Targeted module without a weight matrix that qprune can prune."""


class CalibrationError(QpruneError, ValueError):
    """Calibration data that are empty, mismatched, or not what the model takes."""


class NonFiniteError(QpruneError, FloatingPointError):
    """NaN or Inf in place of a finite number; the message names layer and batch."""


class SamplerError(QpruneError, SamplerFailedError):
    """Failure of a sampler: it raised, or returned nothing, NaN, wrong variables or counts.

    Attributes:
        problem: the `solvers.QuadraticProblem` that was asked.
        answer: the sampler's answer, if there was one.
    """


class RunFolderError(QpruneError, StorageError):
    """Output folder that holds another run, cannot be written, or is inconsistent."""


#: Files and locks of runs and models; what fails is a `RunFolderError`.
DISK = Disk(RunFolderError, "free space or grant access, then resume")


class LostRankError(QpruneError, RuntimeError):
    """Loss of another rank of a distributed run: it died, or did not answer in time."""


class LeftDenseWarning(UserWarning):
    """Warning of tensors that stay dense without having been left out; they are named."""
