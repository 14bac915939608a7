"""Fingerprint of a run's inputs: two runs with equal fingerprints give equal masks."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from qprune.data.binding import Rebuilding
from qprune.data.calibration import Calibration
from qprune.data.inputs import Call, by_arguments, mapped
from qprune.distributed.sharding import whole
from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.objective.trace.recorder import outputs_of
from qprune.walk.run import Run
from solvers.host.disk import read_json, strict_json

# Settings that a resumed run may change: they decide if it starts and when it ends, not its
# steps.
_FREE = ("max_seconds", "max_memory", "executor")
# Samples whose outputs identify the machine's arithmetic; few, as a language model's are large.
_LOOKED_AT = 8
#: Number of the format of a run's files; a run is resumed by versions that write the same one.
FORMAT = 2
_PACKAGES = ("qprune", "torch", "numpy", "numba", "dimod", "dwave-samplers")


@dataclass(frozen=True)
class Fingerprint:
    """Digests of all that a run depends on.

    Attributes:
        model: sha256 of every parameter and buffer of the dense network.
        data: sha256 of the calibration inputs and labels.
        settings: the request, JSON-friendly.
        code: versions by package, and sha256 of the sources of `qprune` and `solvers`.
        outputs: sha256 of the dense network's outputs on the acceptance split: the
            arithmetic of this machine. Where it differs, the mask may differ.
    """

    model: str
    data: str
    settings: Mapping[str, Any]
    code: Mapping[str, str]
    outputs: str

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """Return the differences from ``other``, one line each; ``outputs`` is not compared."""
        lines = [
            f"the {what} is another one"
            for what, mine, theirs in (
                ("model", self.model, other.model),
                ("calibration data", self.data, other.data),
            )
            if mine != theirs
        ]
        lines += _changed("setting ", self.settings, other.settings, _FREE)
        lines += _changed("version of ", self.code, other.code)
        return tuple(lines)

    @property
    def digest(self) -> str:
        """sha256 of all that decides the run; each checkpoint carries it."""
        told = self.to_json()
        told["settings"] = {n: v for n, v in self.settings.items() if n not in _FREE}
        return hashlib.sha256(strict_json(told, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Fingerprint:
        """Return the fingerprint in ``text``: the inverse of `to_json`.

        Raises:
            RunFolderError: the text is no fingerprint.
        """
        try:
            record = read_json(text)
            record.pop("format", None)
            plain = all(isinstance(record[name], str) for name in ("model", "data", "outputs"))
            named = all(isinstance(record[name], dict) for name in ("settings", "code"))
            if plain and named:
                return cls(**record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunFolderError(f"the fingerprint cannot be read: {error}") from error
        raise RunFolderError("the fingerprint cannot be read: a field has the wrong type")


def fingerprint_of(run: Run, data: Calibration, settings: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of a run about to begin; its model is dense."""
    model, judge = run.objective.model, run.judge
    device = next(model.parameters()).device
    looked_at = mapped(judge.samples.inputs[:_LOOKED_AT], lambda tensor: tensor.to(device))
    outputs = outputs_of(model, looked_at, judge.batch_size, judge.samples.ranks)
    return Fingerprint(
        digest_of_model(model),
        digest_of_data(data),
        plain_settings(settings),
        code_versions(),
        digest_of_tensors({"outputs": outputs}),
    )


def digest_of_model(model: nn.Module) -> str:
    """Return the sha256 of the state dict: names, shapes, types and bytes, ordered by name."""
    return digest_of_tensors(model.state_dict())


def digest_of_data(data: Calibration) -> str:
    """Return the sha256 of inputs, labels and the ``forward`` function where there is one."""
    named = {} if data.labels is None else {"labels": data.labels}
    if isinstance(data.inputs, Tensor):
        return digest_of_tensors({"inputs": data.inputs, **named})
    leaves, _ = tree_flatten_with_path(data.inputs.tree)
    others: list[str] = []
    for path, leaf in leaves:
        if isinstance(leaf, Tensor):
            named["inputs" + keystr(path)] = leaf
        else:
            others.append(f"{keystr(path)}={leaf!r}")
    told = "\n".join([digest_of_tensors(named), *others, *_passed_by(data.inputs.call)])
    return hashlib.sha256(told.encode()).hexdigest()


def require_named(data: Calibration) -> None:
    """Refuse a ``forward`` that another process could not recognise as the same.

    Raises:
        ImpossibleRequestError: names the reason.
    """
    if isinstance(data.inputs, Tensor) or data.inputs.call is by_arguments:
        return
    forward = _own(data.inputs.call)
    if not inspect.isfunction(forward):
        why = f"is an object of type {type(forward).__name__}"
    elif forward.__name__ == "<lambda>":
        why = "is a lambda"
    elif forward.__closure__:
        why = f"{forward.__qualname__!r} holds variables of the function around it"
    else:
        return
    raise ImpossibleRequestError(
        f"forward {why}, and a run that can be resumed must recognise it; pass a function "
        "with a name (def) of a module, or leave output_dir and resume_from out"
    )


def _passed_by(call: Call) -> list[str]:
    """Return module, name and source of the caller's function; nothing for the default call."""
    if call is by_arguments:
        return []
    forward = _own(call)
    names = [str(getattr(forward, name, "")) for name in ("__module__", "__qualname__")]
    kind = getattr(call, "kind", "")
    try:
        source = inspect.getsource(forward)
    except (OSError, TypeError):
        source = ""
    return [*names, re.sub(r" at 0x[0-9a-f]+", "", repr(kind)), source]


def _own(call: Call) -> Any:
    return call.forward if isinstance(call, Rebuilding) else call


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes, types and bytes, ordered by name."""
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = whole(tensors[name].detach())
        hashed.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.cpu().contiguous().reshape(-1)
        # Bytes, since numpy has no bfloat16.
        hashed.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return hashed.hexdigest()


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings equal in any process: no memory addresses, lists for tuples."""
    text = json.dumps(settings, sort_keys=True, default=repr)
    # In the form that is read back from the file, and without secrets.
    return read_json(strict_json(json.loads(re.sub(r" at 0x[0-9a-f]+", "", text))))


@cache
def code_versions() -> dict[str, str]:
    """Return the versions of the numerical packages, and a digest of our own sources."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    hashed = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted([*(root / "qprune").rglob("*.py"), *(root / "solvers").rglob("*.py")]):
        hashed.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return found | {"the sources of qprune and solvers": hashed.hexdigest()}


def _changed(
    what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], free: tuple[str, ...] = ()
) -> Iterator[str]:
    for name in sorted({*mine, *theirs} - set(free)):
        if mine.get(name) != theirs.get(name):
            yield f"{what}{name} is {_short(theirs.get(name))}, it was {_short(mine.get(name))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:28] + "..." + text[-28:]
