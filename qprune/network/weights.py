"""Targeted tensors, and one flat index over all of them.

Every targeted tensor is treated as a matrix (outputs, inputs): a Linear's as is, a convolution's
with its input channels and kernel positions flattened (`qprune.network.layouts`). Tensors follow
one another in module order, each in the order it is stored in, so that one integer 0..N-1 names any
weight of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from qprune.distributed.sharding import is_sharded, whole, write_elements, write_rows
from qprune.errors import ImpossibleRequestError, NonFiniteError, UnsupportedLayerError
from qprune.network.admission import refuse_wrapped
from qprune.network.layouts import OUTPUTS_FIRST, Kind, evaluation_mode, kind_of, source_kind
from qprune.network.patterns import Pattern, Place, as_patterns, match, refuse_unmatched
from qprune.results import Coverage, LeftDense

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped


@dataclass(frozen=True, eq=False)
class Weight:
    """One targeted matrix: a tensor of the model, or one expert's slice of it.

    Attributes:
        name: the parameter's name, without ``.weight`` where it ends so; an expert's number
            follows it.
        parameter_name: the parameter's name in the model's state dict.
        parameter: the tensor.
        module: the module that holds it.
        offset: flat index of the first entry.
        kind: where its outputs and inputs are.
        path: how its per-sample gradients are found (`qprune.objective.trace.preflight`); None =
            not known yet.
        expert: index along the first dimension of a tensor of experts; None for a whole tensor.
    """

    name: str
    parameter_name: str
    parameter: Tensor
    module: nn.Module
    offset: int
    kind: Kind = OUTPUTS_FIRST
    path: Any = None
    expert: int | None = None

    def part(self, tensor: Tensor) -> Tensor:
        """This weight's view of a tensor that is shaped like the parameter."""
        return tensor if self.expert is None else tensor[self.expert]

    @property
    def shape(self) -> torch.Size:
        """Shape of its part of the parameter."""
        return self.parameter.shape[self.expert is not None :]

    @cached_property
    def rows(self) -> int:
        """Number of outputs."""
        return len(self.matrix(torch.empty(self.shape, device="meta")))

    @property
    def inputs(self) -> int:
        """Number of inputs that each output has (per group, times kernel positions)."""
        return self.size // self.rows

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.shape.numel()

    @property
    def end(self) -> int:
        """One past the flat index of the last entry."""
        return self.offset + self.size

    @property
    def routed(self) -> bool:
        """True if only some tokens come here, not the same ones before and after pruning."""
        return self.expert is not None or ".experts." in f".{self.name}."

    def matrix(self, tensor: Tensor) -> Tensor:
        """A tensor of this weight's shape as (rows, inputs)."""
        return self.kind.layout.matrix(tensor)

    def read(self) -> Float[Tensor, "rows inputs"]:
        """The values, a new tensor (rows, inputs) in the parameter's dtype."""
        return self.matrix(self.part(self.parameter.detach())).clone()

    def write(self, matrix: Float[Tensor, "rows inputs"]) -> None:
        """Set the values from (rows, inputs)."""
        with torch.no_grad():
            self.part(self.parameter).copy_(self.kind.layout.back(matrix, self.shape))

    def row_ids(self) -> Int64[Tensor, " size"]:
        """The row of every entry in the order of the flat index, shape (size,)."""
        rows = torch.arange(self.rows)[:, None].expand(-1, self.inputs)
        return self.kind.layout.back(rows, self.shape).reshape(-1)

    def runs(self, length: int) -> Int64[Tensor, " size"]:
        """The run of ``length`` consecutive inputs that every entry is in, shape (size,)."""
        ids = torch.arange(self.size) // length
        return self.kind.layout.back(ids.view(self.rows, self.inputs), self.shape).reshape(-1)


@dataclass(frozen=True, eq=False)
class Weights(Sequence[Weight]):
    """All targeted tensors, in module order.

    Attributes:
        items: the tensors.
        coverage: targeted share of the model; None where unknown.
    """

    items: tuple[Weight, ...]
    coverage: Coverage | None = None

    @overload
    def __getitem__(self, index: int) -> Weight: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Weight, ...]: ...
    def __getitem__(self, index: int | slice) -> Weight | tuple[Weight, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def size(self) -> int:
        """Number of targeted weights N."""
        return sum(layer.size for layer in self.items)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.items[0].parameter.device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Type of vectors over all weights: float32, or a type that holds every weight exactly."""
        return reduce(torch.promote_types, (w.dtype for w in self.parameters), torch.float32)

    @cached_property
    def sharded(self) -> bool:
        """True for weights sharded over processes (`qprune.distributed.sharding`)."""
        return any(is_sharded(layer.parameter) for layer in self)

    @property
    def examined(self) -> bool:
        """True if every tensor's source of per-sample gradients is known."""
        return all(layer.path is not None for layer in self)

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors themselves."""
        return [layer.parameter for layer in self]

    def read(self) -> Float[Tensor, " N"]:
        """All weights as one new vector, shape (N,), float32 or what holds them exactly."""
        return self.flat(self.copies(copy=False))

    def flat(self, tensors: Sequence[Tensor]) -> Float[Tensor, " N"]:
        """One tensor for each weight as one new vector, shape (N,), of `dtype`."""
        return torch.cat([tensor.reshape(-1).to(self.dtype) for tensor in tensors])

    def copies(self, copy: bool = True) -> list[Tensor]:
        """The values of every weight in its own dtype and shape; ``copy=False`` gives views."""
        views = [whole(weight.part(weight.parameter.detach())) for weight in self]
        return [view.clone() for view in views] if copy else views

    def write(self, values: Float[Tensor, " N"]) -> None:
        """Set all weights from a vector of shape (N,)."""
        with torch.no_grad():
            for weight, part in zip(self, self.split(values), strict=True):
                if is_sharded(weight.parameter):
                    write_rows(weight.parameter, part.view(weight.shape))
                else:
                    weight.part(weight.parameter).copy_(part.view(weight.shape))

    def write_at(self, indices: Int64[Tensor, " k"], values: Float[Tensor, " k"]) -> None:
        """Set the weights at flat ``indices`` (k,) to ``values`` (k,); costs O(k), not O(N)."""
        with torch.no_grad():
            for weight, where, local in self.locate(indices):
                positions = torch.unravel_index(local, weight.shape)
                if is_sharded(weight.parameter):
                    write_elements(weight.parameter, positions, values[where])
                else:
                    tensor = weight.part(weight.parameter)
                    tensor[positions] = values[where].to(tensor)

    def split(self, vector: Shaped[Tensor, " N *rest"]) -> tuple[Tensor, ...]:
        """Return one view per layer of a vector over all weights."""
        return vector.split([layer.size for layer in self])

    def locate(self, indices: Int64[Tensor, " k"]) -> list[tuple[Weight, Tensor, Tensor]]:
        """Return (layer, positions in ``indices``, flat indices within the layer) per layer."""
        touched: list[tuple[Weight, Tensor, Tensor]] = []
        for layer in self:
            where = torch.nonzero((indices >= layer.offset) & (indices < layer.end))[:, 0]
            if where.numel():
                touched.append((layer, where, indices[where] - layer.offset))
        return touched

    def count_by_layer(self, indices: Int64[Tensor, " k"]) -> dict[str, int]:
        """Return the number of ``indices`` in each layer."""
        return {layer.name: where.numel() for layer, where, _ in self.locate(indices)}

    def by_name(self, vector: Shaped[Tensor, " N"]) -> dict[str, Tensor]:
        """A vector over all weights as one new tensor per parameter, in the parameter's shape."""
        parts: dict[str, list[Tensor]] = {}
        for weight, part in zip(self, self.split(vector), strict=True):
            parts.setdefault(weight.parameter_name, []).append(part)
        shapes = {weight.parameter_name: weight.parameter.shape for weight in self}
        return {name: torch.cat(found).view(shapes[name]) for name, found in parts.items()}

    def without(self, reasons: dict[str, str]) -> Weights:
        """Return a copy without some tensors, which stay dense.

        Args:
            reasons: reason by the parameter's name.

        Raises:
            ImpossibleRequestError: none is left.
        """
        kept = [layer for layer in self if layer.parameter_name not in reasons]
        if not kept:
            first, reason = next(iter(reasons.items()))
            raise ImpossibleRequestError(f"no weights to prune are left: {first!r} is {reason}")
        coverage = self.coverage
        if coverage is not None:
            more = tuple(
                LeftDense(layer.parameter_name, layer.size, reasons[layer.parameter_name])
                for layer in self
                if layer.parameter_name in reasons
            )
            targeted = sum(layer.size for layer in kept)
            coverage = replace(coverage, targeted=targeted, left=(*coverage.left, *more))
        return Weights(indexed(kept), coverage)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """Tensor that could be pruned, with a place for each of its names."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    places: tuple[Place, ...]
    kinds: tuple[Kind, ...]

    @property
    def default(self) -> bool:
        """True if it is pruned by default."""
        return all(kind.default for kind in self.kinds)

    @property
    def kind(self) -> Kind:
        """Kind of its use in a product, if it has one."""
        return next((kind for kind in self.kinds if kind.default), self.kinds[0])

    @property
    def why(self) -> str:
        """Reason why it stays dense by default."""
        why = next(kind.why for kind in self.kinds if not kind.default)
        if any(kind.default for kind in self.kinds):
            other = next(n for n, kind in zip(self.names, self.kinds, strict=True) if kind.default)
            return f"{why}, tied to {other!r}"
        return why


def find_weights(
    model: nn.Module,
    targets: Sequence[Pattern] | Pattern | None = None,
    ignore: Sequence[Pattern] | Pattern = (),
) -> Weights:
    """Return the tensors that match ``targets`` and not ``ignore``.

    Args:
        model: any module.
        targets: classes or their names (subclasses count), modules or their names
            (with their submodules), names of parameters, or ``re:`` patterns matched against
            full names of modules and parameters. None = every Linear and convolution, and the
            matrices of attention, LSTM, GRU and RNN; embeddings, tensors tied to them, and other
            parameters are pruned only where they are named.
        ignore: patterns of the same kinds to leave out.

    Raises:
        ImpossibleRequestError: nothing is targeted, a pattern matches nothing, two parameters
            share memory, or the model is wrapped or not on the CPU.
        UnsupportedLayerError: a target names a module without a tensor of two dimensions, or the
            model is quantised, scripted or not initialised.
        NonFiniteError: a targeted weight holds NaN or Inf.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 3), nn.Linear(3, 2))
        >>> [layer.name for layer in find_weights(model, ignore="2")]
        ['1.weight_ih_l0', '1.weight_hh_l0']
        >>> print(find_weights(model).coverage)
        targets 90 of 152 parameters (59.2 %); left dense: 0.weight (36, an embedding), biases and \
other vectors (26)
    """
    refuse_wrapped(model)
    wanted = None if targets is None else as_patterns(targets, "targets")
    unwanted = as_patterns(ignore, "ignore")
    refuse_unmatched(model, wanted or (), "targets")
    refuse_unmatched(model, unwanted, "ignore")
    with evaluation_mode(model):
        candidates = _candidates(model)
    for pattern in wanted or ():
        if not any(_selects(pattern, candidate) for candidate in candidates):
            _refuse_useless(model, pattern)
    chosen: list[Weight] = []
    left: list[LeftDense] = []
    for candidate in candidates:
        name, size = candidate.names[0], candidate.parameter.numel()
        asked = wanted is not None and any(_selects(pattern, candidate) for pattern in wanted)
        if any(match(p, place) for p in unwanted for place in candidate.places):
            left.append(LeftDense(name, size, "in ignore", asked=True))
        elif asked or (wanted is None and candidate.default):
            chosen.append(_layer(candidate))
        elif wanted is None:
            left.append(LeftDense(name, size, candidate.why))
        else:
            left.append(LeftDense(name, size, "not in targets", asked=True))
    if not chosen:
        raise ImpossibleRequestError(
            f"the model has no weights to prune: targets={_told(wanted)} and "
            f"ignore={_told(unwanted)} leave none"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tensors = sum(candidate.parameter.numel() for candidate in candidates)
    targeted = sum(layer.size for layer in chosen)
    coverage = Coverage(targeted, parameters, parameters - tensors, tuple(left))
    layers = Weights(indexed(chosen), coverage)
    _refuse_other_devices(layers)
    _refuse_shared_memory(model, layers)
    _refuse_non_finite(layers)
    return layers


def indexed(layers: Iterable[Weight]) -> tuple[Weight, ...]:
    """The weights with their offsets: one after the other in the flat index."""
    items: list[Weight] = []
    for layer in layers:
        items.append(replace(layer, offset=items[-1].end if items else 0))
    return tuple(items)


def _layer(candidate: _Candidate) -> Weight:
    place = candidate.places[0]
    name = place.parameter_name
    short = name.removesuffix("weight").removesuffix(".") if _is_weight(name) else name
    return Weight(short, name, candidate.parameter, place.owners[0][1], 0, candidate.kind)


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] == "weight"


def _candidates(model: nn.Module) -> list[_Candidate]:
    """Return all non-empty tensors of two or more dimensions, in module order."""
    found: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim < 2 or not parameter.numel():
            continue
        found.setdefault(id(parameter), []).append((name, parameter))
    candidates = []
    for uses in found.values():
        names = tuple(name for name, _ in uses)
        parameter = uses[0][1]
        places = tuple(Place.of(model, name) for name in names)
        found_kinds = [_kind_at(place, parameter) for place in places]
        kinds = tuple(kind for kind in found_kinds if kind is not None)
        if len(kinds) < len(places):
            continue
        candidate = _Candidate(parameter, names, places, kinds)
        if not parameter.is_floating_point() or parameter.dtype.itemsize == 1:
            if candidate.default:
                what = "complex" if parameter.is_complex() else "quantised"
                raise UnsupportedLayerError(
                    f"the tensor {names[0]!r} is {parameter.dtype}, {what}; prune the network in "
                    "real floating-point numbers of at least 16 bits"
                )
            continue
        candidates.append(candidate)
    return candidates


def _kind_at(place: Place, parameter: nn.Parameter) -> Kind | None:
    """Return the kind of a parameter, or of the weight computed from it (`source_kind`)."""
    name, (_, module) = place.parameter_name.rpartition(".")[2], place.owners[0]
    if isinstance(module, ParametrizationList):
        weight = place.owners[0][0].rpartition(".")[2]
        return source_kind(place.owners[2][1], weight, parameter)
    weight, _, suffix = name.rpartition("_")
    computed = suffix and isinstance(getattr(module, weight, None), Tensor)
    if computed and weight not in module._parameters and kind_of(module, weight).default:
        return source_kind(module, weight, parameter)
    return kind_of(module, name)


def _refuse_shared_memory(model: nn.Module, layers: Weights) -> None:
    """Refuse targets that share memory with another parameter."""
    targeted = {id(parameter) for parameter in layers.parameters}
    other, last = ("", 0), 0
    spans = [
        (parameter.data_ptr(), name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.numel() and not is_sharded(parameter)
    ]
    for start, name, parameter in sorted(spans, key=lambda span: span[0]):
        if start < last and targeted & {id(parameter), other[1]}:
            raise ImpossibleRequestError(
                f"the parameters {other[0]!r} and {name!r} share memory; pruning one "
                "would change the other: tie them by one parameter in both places, or copy one"
            )
        steps = zip(parameter.shape, parameter.stride(), strict=True)
        end = start + (1 + sum((n - 1) * step for n, step in steps)) * parameter.element_size()
        if end > last:
            other, last = (name, id(parameter)), end


def _selects(pattern: Pattern, candidate: _Candidate) -> bool:
    """Return True if a target selects this tensor.

    A tensor named itself, or by the module or class that holds it, is selected whatever its kind.
    Deeper inside a named module, or tied to another tensor, only a default target is.
    """
    for place, kind in zip(candidate.places, candidate.kinds, strict=True):
        found = match(pattern, place)
        if found is None:
            continue
        tied = len({k.default for k in candidate.kinds}) > 1
        if found.depth == 0 and not (found.by_class and tied and kind.default):
            return True
        if candidate.default:
            return True
    return False


def _refuse_useless(model: nn.Module, pattern: Pattern) -> None:
    raise UnsupportedLayerError(
        f"target {pattern if isinstance(pattern, str) else type(pattern).__name__!r} has no tensor "
        "that is pruned: Linear, convolutions and the matrices of attention, LSTM and GRU are, and "
        "any other tensor of two or more dimensions by its own name; add it to ignore, or name "
        "the parameter"
    )


def _told(patterns: Sequence[Pattern] | None) -> str:
    if patterns is None:
        return "default"
    return str([p if isinstance(p, str) else getattr(p, "__name__", type(p)) for p in patterns])


def is_named(name: str, module: nn.Module, patterns: Sequence[Pattern]) -> bool:
    """True if a pattern is the module's class or name, or a ``re:`` that matches its name."""
    place = Place("", ((name, module),))
    return any(match(pattern, place) is not None for pattern in patterns)


def _refuse_other_devices(layers: Weights) -> None:
    for layer in layers:
        device = layer.parameter.device
        if device.type != "cpu":
            raise ImpossibleRequestError(
                f"the weight of {layer.name!r} is on {device}; this version prunes on the CPU: "
                "pass model.cpu()"
            )


def _refuse_non_finite(layers: Weights) -> None:
    for layer in layers:
        if not torch.isfinite(whole(layer.parameter.detach())).all():
            raise NonFiniteError(
                f"the weight of {layer.name!r} holds NaN or Inf; repair the checkpoint first"
            )
