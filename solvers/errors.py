"""The errors that `solvers` raises, in one tree; each is also the usual builtin error.

SolverError
+-- InvalidProblemError (ValueError)     coefficients, groups, counts, labels or a file
+-- InvalidOptionError (ValueError)      an option's value; an unknown option is a TypeError
|   +-- UnknownOptionError (TypeError)   an option the sampler does not have
+-- UnknownSamplerError (LookupError)    no sampler of that name
+-- MissingPackageError (ImportError)    the sampler's package is not installed
+-- ProblemTooLargeError (ValueError)    needs more memory, or variables, than there are
+-- SamplerFailedError (RuntimeError)    a foreign sampler raised or answered nonsense
+-- ChargeRefusedError (RuntimeError)    a paid call was declined, or is past the budget
+-- StudyError (ValueError)              a comparison of samplers that cannot be made as asked
+-- StorageError (OSError)               a file cannot be written, or another process is at it
|   +-- StudyFolderError                 the folder holds another study, or cannot be used
+-- WorkerDiedError (RuntimeError)       the process that runs samplers ended, or was ended
"""

from __future__ import annotations


class SolverError(Exception):
    """Base of all errors raised by `solvers`."""


class InvalidProblemError(SolverError, ValueError):
    """The problem is invalid; the message says what, where, and what to pass instead."""


class FileWarning(UserWarning):
    """A file is ambiguous about its problem; the message says how it was read."""


class InvalidOptionError(SolverError, ValueError):
    """An option has a value that no sampler can work with."""


class UnknownOptionError(InvalidOptionError, TypeError):
    """An option that the sampler does not have; the message lists those it has."""


class UnknownSamplerError(SolverError, LookupError):
    """No sampler is registered under that name; the message lists those that are."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingPackageError(SolverError, ImportError):
    """The sampler's package is not installed; the message has the command that installs it."""


class ProblemTooLargeError(SolverError, ValueError):
    """The problem does not fit; the message says what is needed and the way out.

    It is no `MemoryError`: a retry, or a smaller batch, does not help.
    """


class ChargeRefusedError(SolverError, RuntimeError):
    """A paid call was not made: over budget or declined; the message has its cost."""


class StudyError(SolverError, ValueError):
    """A study is invalid as asked; the message says what, and what to pass instead."""


class StorageError(SolverError, OSError):
    """A file or folder cannot be used: not writable, in use, or no regular file."""


class StudyFolderError(StorageError):
    """The folder of results holds another study, or cannot be read or written."""


class WorkerDiedError(SolverError, RuntimeError):
    """The process that runs samplers crashed, or was killed at its time limit.

    Attributes:
        timed_out: True after the time limit.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class SamplerFailedError(SolverError, RuntimeError):
    """A sampler raised, or returned something that cannot be an answer.

    Attributes:
        problem: the problem that was asked, if known.
        answer: the invalid answer, if there is one.
    """

    def __init__(self, message: str, *, problem: object = None, answer: object = None) -> None:
        super().__init__(message)
        self.problem = problem
        self.answer = answer
