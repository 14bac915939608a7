"""A model's repeated blocks: where they are, their weights, what each is called with.

Nothing is known about any architecture: the blocks are the ModuleList whose members hold the
matrices, and what they are called with is seen by running the model with blocks that pass their
input on unchanged. So no more than one block ever has to compute at a time. Activations wait
between blocks in memory, a device's too, or in files that are mapped into it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qprune.data.inputs import AnyInputs, called, mapped, tensors_of
from qprune.errors import (
    CalibrationError,
    ImpossibleRequestError,
    NonFiniteError,
    QpruneError,
    UnsupportedLayerError,
)
from qprune.network.layouts import OUTPUTS_FIRST, Kind, kind_of
from qprune.network.patterns import Pattern, as_patterns
from qprune.network.weights import Weight, Weights, indexed, is_named
from qprune.results import Coverage, LeftDense

logger = logging.getLogger(__name__)


class Store(Protocol):
    """Protocol of a list of tensors, on or off the device."""

    def append(self, tensor: Tensor) -> None:
        """Add a tensor."""
        ...

    def __len__(self) -> int: ...

    def get(self, index: int, device: torch.device) -> Tensor:
        """Return the tensor at ``index``, on ``device``."""
        ...


class MemoryStore:
    """Store in memory: the host's, or (``where`` is None) that of the tensors' own device."""

    def __init__(self, where: str | None = "cpu") -> None:
        self._where = where
        self._tensors: list[Tensor] = []

    def append(self, tensor: Tensor) -> None:
        self._tensors.append(tensor if self._where is None else tensor.to(self._where))

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, index: int, device: torch.device) -> Tensor:
        return self._tensors[index].to(device)


class DiskStore:
    """Store in memory-mapped files of one folder, removed with the store."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []

    def append(self, tensor: Tensor) -> None:
        mapped = self._mapped(len(self._kinds), tensor.shape, tensor.dtype, create=True)
        mapped.copy_(tensor)
        self._kinds.append((tensor.shape, tensor.dtype))

    def __len__(self) -> int:
        return len(self._kinds)

    def get(self, index: int, device: torch.device) -> Tensor:
        # A copy, so that in-place operations do not change the file.
        return self._mapped(index, *self._kinds[index], create=False).clone().to(device)

    def _mapped(self, index: int, shape: torch.Size, dtype: torch.dtype, create: bool) -> Tensor:
        path = self._folder / f"{index}.bin"
        if create:
            with path.open("wb") as file:
                file.truncate(shape.numel() * dtype.itemsize)
        flat = torch.from_file(str(path), shared=True, size=shape.numel(), dtype=dtype)
        return flat.view(shape)

    def __del__(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def stores(offload: str | Path) -> Generator[Callable[[], Store]]:
    """Return a factory of stores: in memory for "cpu" and "device", else in files in that path.

    Raises:
        ImpossibleRequestError: the folder does not exist.
    """
    if str(offload) == "cpu":
        yield MemoryStore
        return
    if str(offload) == "device":
        yield partial(MemoryStore, None)
        return
    if not Path(offload).is_dir():
        raise ImpossibleRequestError(
            "offload must be 'cpu', 'device' or a folder for temporary files; "
            f"there is no folder {offload}"
        )
    with tempfile.TemporaryDirectory(prefix="qprune-", dir=offload) as folder:
        yield lambda: DiskStore(Path(folder))


Named = tuple[str, nn.Module]


def find_blocks(model: nn.Module) -> list[Named]:
    """Return the members of the outermost ModuleList that holds most of the model's matrices.

    For an encoder-decoder, those of the encoder's, then those of the decoder's.

    Raises:
        UnsupportedLayerError: there is no such ModuleList.
    """
    candidates: list[tuple[int, str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for _, outer, _ in candidates)
        if isinstance(module, nn.ModuleList) and len(module) and not nested:
            weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
            candidates.append((weights, name, module))
    if not candidates or not max(weights for weights, _, _ in candidates):
        raise UnsupportedLayerError(
            f"{type(model).__name__} has no repeated blocks (a ModuleList that holds its layers); "
            "use qprune.prune for it"
        )
    two_sided = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    sides: dict[str, tuple[int, str, nn.ModuleList]] = {}
    for candidate in candidates:
        side = _side(candidate[1]) if two_sided else ""
        sides[side] = max(sides.get(side, candidate), candidate, key=lambda one: one[0])
    return [
        (f"{name}.{index}", block)
        for _, name, blocks in sides.values()
        for index, block in enumerate(blocks)
    ]


def stacks_of(blocks: Sequence[Named]) -> Iterator[list[int]]:
    """Yield the indices of consecutive blocks, stack by stack."""
    for _, stack in groupby(range(len(blocks)), lambda i: blocks[i][0].rpartition(".")[0]):
        yield list(stack)


def _side(name: str) -> str:
    """Return the part of an encoder-decoder that a module's name belongs to."""
    return next((part for part in name.split(".") if part in ("encoder", "decoder")), "")


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of a block except the hidden states.

    Attributes:
        position: index of the hidden states among the positional arguments; None when they are
            the keyword argument ``hidden_states``.
        args: positional arguments, None in the place of the hidden states.
        kwargs: keyword arguments, without the hidden states.
    """

    position: int | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def of(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Return the block's output for ``hidden``; arguments move to its device."""
        args = list(_moved(self.args, hidden.device))
        kwargs = dict(_moved(self.kwargs, hidden.device))
        if self.position is None:
            kwargs["hidden_states"] = hidden
        else:
            args[self.position] = hidden
        output = block(*args, **kwargs)
        return output if isinstance(output, Tensor) else output[0]


@dataclass(frozen=True, eq=False)
class Entry:
    """Recorded inputs of the blocks.

    Attributes:
        hidden: the first block's input, batch by batch.
        calls: for every block its call in every batch.
    """

    hidden: Store
    calls: tuple[tuple[Call, ...], ...]


@torch.no_grad()
def enter(
    model: nn.Module,
    blocks: Sequence[Named],
    batches: Sequence[AnyInputs],
    new_store: Callable[[], Store],
) -> Entry:
    """Run the model on every batch with blocks that pass on their input; record their calls.

    Raises:
        CalibrationError: the model does not take the batches, or a block is left out.
    """
    hidden = new_store()
    calls: list[list[Call]] = [[] for _ in blocks]
    wrap = _wrapping(model, blocks, batches[0])
    device = next(model.parameters()).device
    for index, batch in enumerate(batches):
        seen: dict[int, tuple[Call, Tensor]] = {}
        with _passing_on(blocks, wrap, seen):
            _run(model, _on(batch, device), index)
        if len(seen) != len(blocks):
            missing = next(name for i, (name, _) in enumerate(blocks) if i not in seen)
            raise CalibrationError(f"the model's forward pass never calls {missing!r}")
        hidden.append(seen[0][1])
        for i, (call, _) in seen.items():
            calls[i].append(_shared(call, calls[max(0, i - 1)][index:], calls[i]))
    return Entry(hidden, tuple(map(tuple, calls)))


@torch.no_grad()
def reproduces(
    model: nn.Module, blocks: Sequence[Named], inputs: AnyInputs, new_store: Callable[[], Store]
) -> bool:
    """Return True if running block after block gives the outputs of the whole model.

    False where blocks change the shape of the hidden states, as in Swin and in convolutional
    networks: the calls recorded by `enter` are then wrong.
    """
    seen: list[Any] = []
    handle = blocks[-1][1].register_forward_hook(lambda _, args, output: seen.append(output))
    try:
        _run(model, inputs, 0)
        handle.remove()
        entry = enter(model, blocks, [inputs], new_store)
        hidden = entry.hidden.get(0, next(model.parameters()).device)
        for (_, block), calls in zip(blocks, entry.calls, strict=True):
            hidden = calls[0].of(block, hidden)
    except (QpruneError, RuntimeError, TypeError, ValueError, IndexError):
        return False
    finally:
        handle.remove()
    whole = seen[0] if isinstance(seen[0], Tensor) else seen[0][0]
    return whole.shape == hidden.shape and torch.allclose(whole, hidden, rtol=1e-3, atol=1e-4)


def _shared(call: Call, before: Sequence[Call], earlier: Sequence[Call]) -> Call:
    """Return an equal call already stored, of the block before or an earlier batch, or ``call``."""
    for other in (*before[:1], *earlier[:1], *earlier[-1:]):
        if other.position == call.position and _equal(
            (other.args, dict(other.kwargs)), (call.args, dict(call.kwargs))
        ):
            return other
    return call


def _on(batch: AnyInputs, device: torch.device) -> AnyInputs:
    return mapped(batch, lambda tensor: tensor.to(device))


def _run(model: nn.Module, batch: AnyInputs, index: int) -> Any:
    try:
        return called(model, batch)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CalibrationError(
            f"the model does not take calibration batch {index} of shape "
            f"{tuple(tensors_of(batch)[0].shape)}: {reason}"
        ) from error


@contextmanager
def _passing_on(
    blocks: Sequence[Named],
    wrap: Callable[[Tensor], Any],
    seen: dict[int, tuple[Call, Tensor]],
) -> Generator[None]:
    def passing(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call, hidden = _split(args, kwargs, blocks[index][0])
            seen[index] = (call, hidden.detach())
            return wrap(hidden)

        return forward

    try:
        for index, (_, block) in enumerate(blocks):
            block.forward = passing(index)
        yield
    finally:
        for _, block in blocks:
            del block.forward


def _wrapping(
    model: nn.Module, blocks: Sequence[Named], batch: AnyInputs
) -> Callable[[Tensor], Any]:
    """Return a function that wraps hidden states as a block's output, found on one sample."""
    outputs: list[Any] = []
    first = blocks[0][1]

    def look(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output)
        raise _EnoughError

    handle = first.register_forward_hook(look)
    try:
        _run(model, _on(batch[:1], next(model.parameters()).device), 0)
    except _EnoughError:
        pass
    finally:
        handle.remove()
    if not outputs:
        raise CalibrationError(f"the model's forward pass never calls {blocks[0][0]!r}")
    output = outputs[0]
    if isinstance(output, Tensor):
        return lambda hidden: hidden
    return lambda hidden: (hidden, *output[1:])


class _EnoughError(Exception):
    """Signal that ends a forward pass early."""


def _split(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> tuple[Call, Tensor]:
    if isinstance(kwargs.get("hidden_states"), Tensor):
        rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        return Call(None, args, rest), kwargs["hidden_states"]
    for index, value in enumerate(args):
        if isinstance(value, Tensor) and value.is_floating_point():
            return Call(index, (*args[:index], None, *args[index + 1 :]), kwargs), value
    raise ImpossibleRequestError(f"{name!r} is called without hidden states that qprune can find")


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    return value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if type(one) in (tuple, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if type(one) is dict:
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return one is other or (isinstance(one, int | float | str | bool) and one == other)


#: Routers of a mixture of experts decide, and are tiny: left dense, as the literature does.
ROUTERS = r"re:.*\.(gate|router|shared_expert_gate)"


def block_weights(
    model: nn.Module,
    targets: Sequence[Pattern] | Pattern | None = None,
    ignore: Sequence[Pattern] | Pattern = (),
    *,
    convolutions: bool = False,
) -> Weights:
    """The targeted matrices inside a model's blocks, in module order.

    Args:
        model: whose blocks `find_blocks` finds.
        targets: classes or their names, modules or their names, or ``re:`` patterns; None for
            every Linear, Conv1D and tensor of experts but routers.
        ignore: the same, taken away again.
        convolutions: take those of Conv2d, too; layer by layer they are not pruned.

    Raises:
        UnsupportedLayerError: a target names a module without a matrix that is known here, or the
            model has no blocks.
        ImpossibleRequestError: nothing is left to prune, or a targeted tensor has two names.
        NonFiniteError: a weight is NaN or Inf.
    """
    wanted = None if targets is None else as_patterns(targets, "targets")
    unwanted = as_patterns(ignore, "ignore")
    found: list[Weight] = []
    for block_name, block in find_blocks(model):
        for inner, module in block.named_modules():
            name = f"{block_name}.{inner}" if inner else block_name
            if is_named(name, module, unwanted):
                continue
            if convolutions and isinstance(module, nn.Conv2d):
                if wanted is None or is_named(name, module, wanted):
                    found.append(_single(name, module, OUTPUTS_FIRST))
                continue
            if wanted is None:
                if not is_named(name, module, (ROUTERS,)):
                    found += _matrices_of(name, module)
            elif is_named(name, module, wanted):
                found += _demanded(name, module)
    if not found:
        raise ImpossibleRequestError(
            f"no weights to prune: targets={wanted and list(wanted)} and ignore={list(unwanted)} "
            "leave no Linear, Conv1D or experts inside the model's blocks"
        )
    for weight in found:
        if not bool(torch.isfinite(weight.part(weight.parameter)).all()):
            raise NonFiniteError(
                f"the weight of {weight.name!r} holds NaN or Inf; repair the checkpoint first"
            )
    _refuse_tied(model, found)
    return Weights(indexed(found), _coverage(model, found))


def _refuse_tied(model: nn.Module, weights: Sequence[Weight]) -> None:
    """Refuse to prune a tensor that is also something else; log the ties of other weights."""
    targeted = {id(weight.parameter) for weight in weights}
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first == name:
            continue
        if id(parameter) in targeted:
            raise ImpossibleRequestError(
                f"the weights {first!r} and {name!r} are one tied tensor; pruning one would change "
                "the other: add one of them to ignore, or untie them"
            )
        logger.info("%s is tied to %s; both stay dense", name, first)


def _coverage(model: nn.Module, weights: Sequence[Weight]) -> Coverage:
    """The share of the model that is targeted; outside the blocks nothing is."""
    targeted = {id(weight.parameter) for weight in weights}
    parameters = dict(model.named_parameters())
    tensors = {n: p for n, p in parameters.items() if p.ndim > 1}
    left = tuple(
        LeftDense(name, parameter.numel(), "not a target inside the blocks", asked=True)
        for name, parameter in tensors.items()
        if id(parameter) not in targeted
    )
    every = sum(parameter.numel() for parameter in parameters.values())
    vectors = every - sum(parameter.numel() for parameter in tensors.values())
    return Coverage(sum(weight.size for weight in weights), every, vectors, left)


def _matrices_of(name: str, module: nn.Module) -> list[Weight]:
    """The matrices that a module holds itself; none for a module that holds none."""
    if isinstance(module, nn.Linear):
        return [_single(name, module, OUTPUTS_FIRST)]
    if type(module).__name__ == "Conv1D":
        return [_single(name, module, kind_of(module, "weight"))]
    if type(module).__name__.endswith("Experts"):
        return [
            Weight(f"{name}.{key}.{n}", f"{name}.{key}", parameter, module, 0, expert=n)
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 3
            for n in range(len(parameter))
        ]
    return []


def _single(name: str, module: nn.Module, kind: Kind) -> Weight:
    weight = module._parameters.get("weight")
    if weight is None:
        raise UnsupportedLayerError(
            f"the weight of {name!r} is computed from other parameters (a parametrization); "
            "remove that first, or add the layer to ignore"
        )
    if weight.is_meta or not weight.is_floating_point():
        raise UnsupportedLayerError(
            f"the weight of {name!r} is {'not loaded' if weight.is_meta else 'quantised'}; load "
            "the model in full, in float32, bfloat16 or float16"
        )
    return Weight(name, f"{name}.weight", weight, module, 0, kind)


def _demanded(name: str, module: nn.Module) -> list[Weight]:
    matrices = _matrices_of(name, module)
    if not matrices:
        raise UnsupportedLayerError(
            f"target {name!r} is a {type(module).__name__}; layer by layer, qprune prunes Linear, "
            "Conv1D and tensors of experts: name those inside it, or add it to ignore"
        )
    return matrices
