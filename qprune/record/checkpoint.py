"""Checkpoints: the complete state of a run in one file, for a resume to the same bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qprune.errors import DISK, RunFolderError
from qprune.record.fingerprint import FORMAT, digest_of_tensors
from qprune.results import Step, step_from_json
from qprune.steps.accept import Trust
from qprune.walk.run import Run
from qprune.walk.state import FullState, Progress, State
from solvers.host.disk import read_json, strict_json

CHECKPOINTS = ("checkpoint.0.safetensors", "checkpoint.1.safetensors")

logger = logging.getLogger(__name__)

# Share of the run's time; with the first, untimed checkpoint the total stays below 2 %.
_SHARE = 0.01
# Assumed bytes per second and seconds per file, until the first one has been timed.
_RATE, _LATENCY = 2e8, 0.02


@dataclass(frozen=True, eq=False)
class Begun:
    """Point at which a run goes on.

    Attributes:
        progress: position and state.
        held: values of the weights that are pruned already, by their number among all targeted
            ones, where the state leaves them to the model.
    """

    progress: Progress
    held: Mapping[int, Tensor]

    @classmethod
    def anew(cls, run: Run) -> Begun:
        """At the beginning, the network dense."""
        state = State.dense(run.weights)
        return cls(Progress.beginning(state, run.objective.batch_size), {})

    @torch.no_grad()
    def restore(self, run: Run) -> None:
        """Write the values that the model had there."""
        run.dense.put_back()
        run.put_back(self.progress.state)
        for number, values in self.held.items():
            weight = run.weights[number]
            weight.part(weight.parameter).copy_(values)


def held_by_model(run: Run, state: State) -> dict[int, Tensor]:
    """Return the values of pruned weights by number, where the model alone has them."""
    if state.values is not None:
        return {}
    masks = run.weights.split(state.mask)
    return {
        number: weight.part(weight.parameter.detach()).cpu().clone()
        for number, (weight, mask) in enumerate(zip(run.weights, masks, strict=True))
        if not bool(mask.all())
    }


@dataclass(frozen=True, eq=False)
class Snapshot:
    """State of a run between two steps.

    Attributes:
        progress: position and state.
        generator: state of the random generator.
        steps: the journal so far.
        seconds: wall time so far.
        cpu_seconds: process CPU time so far.
        held: values of pruned weights by number, where the state leaves them to the model.
        run: `Fingerprint.digest` of the run; empty in checkpoints of earlier versions.
    """

    progress: Progress
    generator: Tensor
    steps: tuple[Step, ...]
    seconds: float
    cpu_seconds: float
    run: str = ""
    held: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])

    def pack(self) -> bytes:
        """Return one safetensors file that carries its own checksum."""
        progress = self.progress
        steps = "\n".join(strict_json(step.to_json()) for step in self.steps)
        tensors = _packed("state", progress.state) | {
            "generator": self.generator,
            "steps": torch.frombuffer(bytearray(steps.encode() or b"\n"), dtype=torch.uint8),
        }
        tensors |= {f"held.{number}": values for number, values in self.held.items()}
        # Tensors that both states share are in the file once.
        tensors |= _packed("before", progress.before, progress.state)
        facts = {
            "format": FORMAT,
            "position": progress.position,
            "batch_size": progress.batch_size,
            "trust": asdict(progress.state.trust),
            "trust_before": asdict(progress.before.trust),
            "size": progress.state.mask.numel(),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "run": self.run,
        }
        text = json.dumps(facts, sort_keys=True)
        return save(tensors, {"facts": text, "sha256": digest_of_facts(tensors, text)})

    @classmethod
    def unpack(cls, content: bytes) -> Snapshot:
        """Return the snapshot in ``content``: the inverse of `pack`.

        Raises:
            RunFolderError: the checksum is wrong.
        """
        try:
            tensors, metadata = load(content), metadata_of(content)
            text = metadata["facts"]
            if metadata["sha256"] != digest_of_facts(tensors, text):
                raise RunFolderError("its checksum is wrong")
            facts = read_json(text)
            if facts.get("format") != FORMAT:
                raise RunFolderError(
                    "it is of another version of qprune, which this one cannot go on from"
                )
            state = _unpacked("state", tensors, facts["size"], facts["trust"])
            shared = _packed("before", state)
            before = _unpacked("before", shared | tensors, facts["size"], facts["trust_before"])
            held = {
                int(name.removeprefix("held.")): tensor
                for name, tensor in tensors.items()
                if name.startswith("held.")
            }
            lines = tensors["steps"].numpy().tobytes().decode().split("\n")
            return cls(
                Progress(facts["position"], state, before, facts["batch_size"]),
                tensors["generator"],
                tuple(step_from_json(read_json(line)) for line in lines if line),
                facts["seconds"],
                facts["cpu_seconds"],
                str(facts.get("run", "")),
                held,
            )
        except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
            raise RunFolderError(f"it cannot be read: {error}") from error


class Checkpoints:
    """The last two checkpoints of a run, each written over the older one.

    Args:
        folder: existing folder.
        share: largest share of the run's time spent on writing them.
    """

    def __init__(self, folder: Path, share: float = _SHARE) -> None:
        self.spent = 0.0
        self._paths = tuple(folder / name for name in CHECKPOINTS)
        self._newest = 1
        self._share = share
        self._began = time.perf_counter()
        self._last = 0.0

    def load(self, run: str | None = None) -> Snapshot | None:
        """Return the newest readable checkpoint; None if none was written yet.

        Args:
            run: `Fingerprint.digest` of the required run; None = any.

        Raises:
            RunFolderError: none of those present can be read, one is no file, or one belongs to
                another run.
        """
        newest: Snapshot | None = None
        troubles: list[str] = []
        DISK.refuse_irregular(self._paths)
        for number, path in enumerate(self._paths):
            try:
                found = Snapshot.unpack(DISK.read_regular(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                troubles.append(f"{path}: {error}")
                logger.warning("%s; trying the other one", troubles[-1])
                continue
            if run is not None and found.run != run:
                raise RunFolderError(
                    f"{path} is a checkpoint of another run than {path.parent} holds; put back "
                    "its own, or start the run again in a new folder"
                )
            if newest is None or found.seconds > newest.seconds:
                newest, self._newest = found, number
        if newest is None and troubles:
            raise RunFolderError(f"no checkpoint can be read: {'; '.join(troubles)}; start again")
        return newest

    def offer(self, snapshot: Snapshot) -> None:
        """Write the snapshot if enough time has passed since the last one."""
        expected = self._last or _LATENCY + _size(snapshot) / _RATE
        if self.spent + expected <= self._share * (time.perf_counter() - self._began):
            self.write(snapshot)

    def write(self, snapshot: Snapshot) -> None:
        """Write the snapshot now.

        Raises:
            RunFolderError: it cannot be written; older checkpoints are unchanged.
        """
        began = time.perf_counter()
        number = 1 - self._newest
        DISK.write_whole(self._paths[number], snapshot.pack())
        self._newest = number
        self._last = time.perf_counter() - began
        self.spent += self._last

    def remove(self) -> None:
        """Remove both checkpoints, after the run has been saved.

        Raises:
            RunFolderError: one cannot be removed.
        """
        DISK.remove(self._paths)


def _packed(name: str, state: State, known: State | None = None) -> dict[str, Tensor]:
    """The tensors of ``state`` that are not the very ones of ``known``."""
    packed: dict[str, Tensor] = {}
    for part in ("values", "resting", "statistics"):
        tensor = getattr(state, part)
        if tensor is not None and (known is None or tensor is not getattr(known, part)):
            packed[f"{name}.{part}"] = tensor.cpu().contiguous()
    if known is None or state.mask is not known.mask:
        packed[f"{name}.mask"] = torch.from_numpy(np.packbits(state.mask.cpu().numpy()))
    return packed


def _unpacked(
    name: str, tensors: Mapping[str, Tensor], size: int, trust: Mapping[str, Any]
) -> State:
    bits = np.unpackbits(tensors[f"{name}.mask"].numpy(), count=size)
    mask, trusted = torch.from_numpy(bits.astype(bool)), Trust(**trust)
    values, resting = tensors.get(f"{name}.values"), tensors.get(f"{name}.resting")
    if values is None or resting is None:
        return State(mask, trusted)
    return FullState(mask, trusted, values, resting, tensors.get(f"{name}.statistics"))


def _size(snapshot: Snapshot) -> int:
    state = snapshot.progress.state
    values = snapshot.held.values() if state.values is None else [state.values]
    each = sum(tensor.numel() * (tensor.element_size() + 5) for tensor in values)
    return 2 * (each + state.mask.numel())


def digest_of_facts(tensors: dict[str, Tensor], text: str) -> str:
    """Return the checksum of a checkpoint with these tensors and facts."""
    return hashlib.sha256((digest_of_tensors(tensors) + text).encode()).hexdigest()


def metadata_of(content: bytes) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return read_json(content[8 : 8 + length])["__metadata__"]
