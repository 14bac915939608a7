"""Stored answers of samplers that cannot be had again: paid for, or without a seed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solvers.ask.answer import Answer, Fault
from solvers.host.disk import (
    Disk,
    bits_of,
    half_written,
    hex_of,
    make_folder,
    read_json,
    strict_json,
)
from solvers.problem.problem import QuadraticProblem

logger = logging.getLogger(__name__)

#: Of the files; those of version 1, which have no number, hold one state.
VERSION = 2


@dataclass(frozen=True)
class AnswerStore:
    """Store of sampler answers, one file each, named by the digest of the question.

    Attributes:
        folder: a path, as text too; made with the first answer.
        disk: writes the files.
    """

    folder: Path
    disk: Disk = Disk()

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    def find(self, key: str, problem: QuadraticProblem) -> Answer | None:
        """Return the answer stored under ``key``; None if missing or not fitting ``problem``."""
        path = self.folder / f"{key}.json"
        try:
            record = read_json(self.disk.read_regular(path))
            if record["sha256"] != _digest(record):
                raise ValueError("it is not the answer that was written")
            return _answer(record, problem)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be used (%s); the sampler is asked again", path, error)
            return None

    @property
    def half_written(self) -> list[Path]:
        """Temporary files that a killed process left."""
        return half_written(self.folder, ["*.json"])

    def sweep(self) -> None:
        """Remove the temporary files of a killed process; only under the run's lock.

        Raises:
            StorageError: it cannot be removed, or the folder is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise self.disk.error(f"{self.folder} is no folder; move it away, then resume")
        self.disk.remove(self.half_written)

    def keep(self, key: str, answer: Answer) -> None:
        """Store an answer, before it is used.

        Raises:
            StorageError: the folder cannot be written.
        """
        try:
            make_folder(self.folder)
        except OSError as error:
            raise self.disk.error(f"cannot write {self.folder}: {error.strerror}") from error
        record = {
            "version": VERSION,
            "states": [hex_of(state) for state in answer.states],
            "lower_bound": answer.lower_bound,
            "seconds": answer.seconds,
            "info": answer.info,
            "faults": [asdict(fault) for fault in answer.faults],
        }
        plain = read_json(strict_json(record))
        text = strict_json(plain | {"sha256": _digest(plain)})
        self.disk.write_whole(self.folder / f"{key}.json", text.encode())


def key_of(name: str, options: Mapping[str, Any], problem: QuadraticProblem, seed: int) -> str:
    """Return the sha256 of the problem, the sampler's name and options, and the seed."""
    hashed = hashlib.sha256(f"{name}\0{sorted(options.items())}\0{seed}\0{problem.offset}".encode())
    for array in (problem.linear, problem.groups, problem.counts, problem.quadratic.dense()):
        hashed.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def _answer(record: dict[str, Any], problem: QuadraticProblem) -> Answer:
    """The answer in a record, its energies computed by the problem.

    Raises:
        ValueError, KeyError, TypeError: the record holds no answer to ``problem``.
    """
    if record.get("version", 1) not in (1, VERSION):
        raise ValueError(f"version {record['version']} is not read here")
    told = record["states"] if "version" in record else [record["sample"]]
    states = np.stack([bits_of(digits, problem.num_variables) for digits in told])
    if not problem.feasible(states).all():
        raise ValueError("its counts are not those of the problem")
    bound = record["lower_bound"]
    # In the order in which they were stored: another sum may differ in its last digit.
    return Answer(
        states,
        problem.energies(states),
        -np.inf if bound is None else float(bound),
        record["info"],
        seconds=float(record["seconds"]),
        faults=tuple(Fault(**fault) for fault in record["faults"]),
    )


def _digest(record: dict[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
