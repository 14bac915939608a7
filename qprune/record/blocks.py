"""Folder of the problems that a pruning run gave to its sampler, for `qprune compare`.

- ``0000-stage1-round0.npz``, ...: one problem each, as `solvers.formats.files.read_problem` reads
it
- ``blocks.jsonl``: one line for each of them, in order: its run, step and layers,
  what the sampler answered, and how good that was
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qprune.errors import DISK, RunFolderError
from qprune.steps.solve import SolvedBlock
from solvers import Dense, LowRank, QuadraticProblem
from solvers.formats.files import problem_bytes
from solvers.host.disk import hex_of, strict_json
from solvers.study.instances import BLOCKS

logger = logging.getLogger(__name__)

#: Default limit of a folder's problems, bytes.
MAX_BYTES = 1 << 30


class BlockFolder:
    """Observer of blocks that writes each problem to a file; the run's result is unchanged.

    A folder holds at most ``max_bytes``: where more would come, every second problem is removed
    and from then on only every second one kept, then every fourth, ..., so that the problems
    are spread evenly over the run.

    Args:
        path: new folder, or an empty one; made with the first problem.
        about: stored with every problem, JSON-friendly: model, data, seed.
        max_bytes: limit of all problems together.

    Raises:
        RunFolderError: the folder is not empty, or is a file.
    """

    def __init__(
        self,
        path: str | Path,
        about: Mapping[str, Any] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.path = Path(path)
        self.about = dict(about or {})
        self._max_bytes = max_bytes
        self._lines: list[tuple[int, dict[str, Any]]] = []
        self._sizes: dict[str, int] = {}
        self._number, self._every = itertools.count(), 1
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunFolderError(
                f"{self.path} is not empty; choose a new folder to record blocks in"
            )

    @property
    def num_blocks(self) -> int:
        """Number of problems in the folder."""
        return len(self._lines)

    @property
    def num_bytes(self) -> int:
        """Size of all problems together."""
        return sum(self._sizes.values())

    def __str__(self) -> str:
        return f"{self.path} holds {self.num_blocks} problems, {self.num_bytes / 1e6:.3g} MB"

    def __call__(self, block: SolvedBlock) -> None:
        """Write the problem, whole or not at all, then its line.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        number = next(self._number)
        if number % self._every:
            return
        if not self._lines:
            self._begin()
        name = f"{number:04d}-stage{block.stage}-round{block.round}.npz"
        data = problem_bytes(stored(block.problem))
        DISK.write_whole(self.path / name, data)
        self._sizes[name] = len(data)
        self._lines.append((number, {"file": name} | self.about | record(block)))
        DISK.append_line(self.path / BLOCKS, strict_json(self._lines[-1][1]))
        while self.num_bytes > self._max_bytes and len(self._lines) > 1:
            self._thin_out()

    def _begin(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Two runs may have been given the same new folder: one of them gets it.
            (self.path / BLOCKS).touch(exist_ok=False)
        except FileExistsError as error:
            raise RunFolderError(
                f"another run records its blocks in {self.path}; choose another folder"
            ) from error
        except OSError as error:
            raise RunFolderError(
                f"cannot write the folder {self.path}: {error.strerror}; choose another"
            ) from error

    def _thin_out(self) -> None:
        self._every *= 2
        gone = [line for number, line in self._lines if number % self._every]
        self._lines = [pair for pair in self._lines if pair[0] % self._every == 0]
        # The list first: every file that it names exists.
        text = "".join(strict_json(line) + "\n" for _, line in self._lines)
        DISK.write_whole(self.path / BLOCKS, text.encode())
        for line in gone:
            (self.path / line["file"]).unlink(missing_ok=True)
            del self._sizes[line["file"]]
        logger.info(
            "%s would exceed %d MB: one in %d blocks is kept",
            self.path,
            self._max_bytes >> 20,
            self._every,
        )


def stored(problem: QuadraticProblem) -> QuadraticProblem:
    """Return the problem in its smaller form: F'F for a factor F with more rows than columns.

    Energies then agree up to rounding; an unchanged problem agrees exactly.
    """
    quadratic = problem.quadratic
    if not isinstance(quadratic, LowRank) or quadratic.rank <= quadratic.size:
        return problem
    return QuadraticProblem(
        problem.linear,
        Dense.trusted(quadratic.dense()),
        problem.offset,
        problem.groups,
        problem.counts,
        problem.labels,
    )


def record(block: SolvedBlock) -> dict[str, Any]:
    """Return a problem's line in ``blocks.jsonl``; decisions are bits as hexadecimal digits."""
    answer, problem = block.answer, block.problem
    return {
        "step": block.step,
        "stage": block.stage,
        "round": block.round,
        "block": block.block,
        "sparsity": block.sparsity,
        "n": problem.num_variables,
        "num_groups": problem.num_groups,
        "layers": dict(block.layers),
        "sampler": block.sampler,
        "sampler_seed": block.seed,
        "energy": answer.energy,
        "predicted": block.predicted,
        "lower_bound": answer.lower_bound,
        "flips": int((answer.sample != block.present).sum()),
        "seconds": answer.seconds,
        "answer": hex_of(answer.sample),
        "present": hex_of(block.present),
        "faults": len(answer.faults),
    }
