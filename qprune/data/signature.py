"""Signature of a model's forward: its arguments, by position and by name."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from typing import Any

from torch import nn

# Attributes of wrappers that hold the wrapped module.
_INSIDE = ("module", "_orig_mod", "_fsdp_wrapped_module", "base_model", "model")


@dataclass(frozen=True)
class Signature:
    """Arguments of a model's forward.

    Attributes:
        positional: names that can take tensors by position, in order.
        required: those without a default, by keyword ones included.
        names: all names that can be given by keyword.
        optional: those whose default is None.
        any_positional, any_keyword: ``*args`` and ``**kwargs``.
        by_position: some arguments can be given by position alone.
    """

    positional: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    any_positional: bool = False
    any_keyword: bool = False
    by_position: bool = False

    @classmethod
    def of(cls, model: nn.Module | None) -> Signature:
        """Return the signature of ``model``; any arguments where it cannot be read."""
        anything = cls(any_positional=True, any_keyword=True)
        if model is None:
            return anything
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):
            return anything
        kinds = {p.kind for p in parameters}
        empty = inspect.Parameter.empty
        ordered = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        tensors = []
        for p in ordered:
            if p.default is not empty and p.default is not None:
                break  # A flag or a number; arguments after it are not passed by position.
            tensors.append(p.name)
        extra = next((p for p in parameters if p.kind == p.VAR_KEYWORD), None)
        known = _typed_keywords(extra.annotation) if extra else frozenset()
        by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        single = [*ordered, *(p for p in by_name if p.kind == p.KEYWORD_ONLY)]
        return cls(
            tuple(tensors),
            tuple(p.name for p in single if p.default is empty),
            frozenset(p.name for p in by_name) | known,
            frozenset(p.name for p in by_name if p.default is None),
            inspect.Parameter.VAR_POSITIONAL in kinds,
            extra is not None and not known,
            inspect.Parameter.POSITIONAL_ONLY in kinds,
        )

    @property
    def required_positional(self) -> int:
        """Number of tensors required by position, or by the same name."""
        return sum(name in self.required for name in self.positional)

    def takes(self, name: str) -> bool:
        """Return True if ``name`` can be given by keyword."""
        return name in self.names or self.any_keyword

    def __str__(self) -> str:
        names = [n if n in self.required else f"{n}=None" for n in self.positional]
        names += ["*args"] * self.any_positional + ["**kwargs"] * self.any_keyword
        return f"forward({', '.join(names)})"


def _typed_keywords(annotation: Any) -> frozenset[str]:
    """Return the names of ``**kwargs: Unpack[...]``; empty where any name is allowed."""
    if typing.get_origin(annotation) is not typing.Unpack:
        return frozenset()
    return frozenset(getattr(typing.get_args(annotation)[0], "__annotations__", {}))


def inside(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers such as ``DataParallel`` whose forward names arguments."""
    if Signature.of(model).positional:
        return model
    for name in _INSIDE:
        child = getattr(model, name, None)
        found = inside(child) if isinstance(child, nn.Module) else model
        if Signature.of(found).positional:
            return found
    return model
