"""Stored sampler answers that cannot be repeated: paid for, or without a seed."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qprune.errors import DISK, RunFolderError
from qprune.results import Fault
from qprune.steps.solve import Answer, Border
from solvers import QuadraticProblem
from solvers.host.disk import half_written, make_folder, read_json, strict_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerStore:
    """Store of sampler answers, one file each, named by the digest of the question.

    Attributes:
        folder: made with the first answer.
    """

    folder: Path

    def find(self, key: str, problem: QuadraticProblem) -> Answer | None:
        """Return the answer stored under ``key``; None if missing or not fitting ``problem``."""
        path = self.folder / f"{key}.json"
        try:
            record = read_json(DISK.read_regular(path))
            bits = np.frombuffer(bytes.fromhex(record["sample"]), dtype=np.uint8)
            sample = np.unpackbits(bits, count=problem.num_variables).astype(np.int8)
            if not problem.feasible(sample[None]).all() or record["sha256"] != _digest(record):
                raise ValueError("it is not the answer that was written")
            bound = record["lower_bound"]
            return Answer(
                sample,
                problem.energy(sample),
                -np.inf if bound is None else float(bound),
                float(record["seconds"]),
                record["info"],
                tuple(Fault(**fault) for fault in record["faults"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("%s cannot be used (%s); the sampler is asked again", path, error)
            return None

    @property
    def half_written(self) -> list[Path]:
        """Temporary files that a killed process left."""
        return half_written(self.folder, ["*.json"])

    def sweep(self) -> None:
        """Remove the temporary files of a killed process; only under the run's lock.

        Raises:
            RunFolderError: it cannot be removed, or the folder is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RunFolderError(f"{self.folder} is no folder; move it away, then resume")
        DISK.remove(self.half_written)

    def keep(self, key: str, answer: Answer) -> None:
        """Store an answer, before it is used.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        try:
            make_folder(self.folder)
        except OSError as error:
            raise RunFolderError(f"cannot write {self.folder}: {error.strerror}") from error
        record = {
            "sample": np.packbits(answer.sample.astype(np.uint8)).tobytes().hex(),
            "lower_bound": answer.lower_bound,
            "seconds": answer.seconds,
            "info": answer.info,
            "faults": [asdict(fault) for fault in answer.faults],
        }
        plain = json.loads(strict_json(record))
        text = json.dumps(plain | {"sha256": _digest(plain)})
        DISK.write_whole(self.folder / f"{key}.json", text.encode())


def key_of(border: Border, problem: QuadraticProblem, seed: int) -> str:
    """Return the sha256 of the problem, the sampler's name and options, and the seed."""
    hashed = hashlib.sha256(
        f"{border.name}\0{sorted(border.options.items())}\0{seed}\0{problem.offset}".encode()
    )
    for array in (problem.linear, problem.groups, problem.counts, problem.quadratic.dense()):
        hashed.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def _digest(record: dict[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
