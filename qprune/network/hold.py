"""Masks held during further training, merging and saving: pruned weights stay exactly zero."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from qprune.errors import ImpossibleRequestError
from qprune.network.mask_file import MASK_FILE, read_mask

#: Parts that wrappers (DDP, torch.compile, PEFT) add to the names of parameters.
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")

#: A parameter's place: the module that owns it, and its name there.
Place = tuple[nn.Module, str]


class Held:
    """Handle of a held mask, in force until `remove`; also a context manager.

    Three hooks share the work, none of which replaces anything of the model or the optimiser:
    gradients of pruned weights are zeroed as they arrive, so that they count neither in gradient
    clipping nor in the optimiser's statistics; pruned weights are zeroed after every step of any
    `torch.optim.Optimizer`; and once more before a state dict is taken, so that what is saved has
    exact zeros even after a LoRA merge.
    """

    def __init__(self, places: Mapping[Place, Tensor]) -> None:
        # Weak references, since optimiser hooks outlive the model.
        self._pruned: weakref.WeakKeyDictionary[nn.Module, dict[str, Tensor]] = (
            weakref.WeakKeyDictionary()
        )
        for (module, name), pruned in places.items():
            self._pruned.setdefault(module, {})[name] = pruned
        self._handles: list[RemovableHandle] = []
        for module, masks in self._pruned.items():
            self._handles.append(
                module.register_state_dict_pre_hook(partial(_zero_before_saving, masks))
            )
            for name, pruned in masks.items():
                parameter = module.get_parameter(name)
                if parameter.requires_grad:
                    hook = parameter.register_hook(partial(_zero_gradient, pruned))
                    self._handles.append(hook)
        self._handles.append(register_optimizer_step_post_hook(self._after_step))
        self.apply()

    @property
    def num_pruned(self) -> int:
        """Number of weights held at zero."""
        masks = (pruned for held in self._pruned.values() for pruned in held.values())
        return sum(int(pruned.sum()) for pruned in masks)

    def apply(self) -> None:
        """Zero the pruned weights now: after a LoRA merge, or any change that is not a step."""
        for module, masks in self._pruned.items():
            for name in masks:
                _zero(module, name, masks)

    def remove(self) -> None:
        """Stop holding; the zeros stay until something changes them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.apply()
        self.remove()

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], options: Any) -> None:
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for module, masks in self._pruned.items():
            for name in masks:
                if id(module.get_parameter(name)) in stepped:
                    _zero(module, name, masks)


def hold(
    model: nn.Module, mask: Mapping[str, Tensor] | str | os.PathLike[str] | None = None
) -> Held:
    """Keep a mask through whatever is done to ``model``: training, LoRA merges, saving.

    Works with any `torch.optim.Optimizer` (momentum, weight decay, factored statistics), the
    Hugging Face Trainer, and data-parallel training, whether created before or after. Parameters
    must be whole on each process: where they are sharded (FSDP, ZeRO), hold the gathered model.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> kept = torch.eye(3, 4).bool()
        >>> with hold(model, {"weight": kept}) as held:
        ...     _ = nn.init.ones_(model.weight)  # As a merge would: call apply() afterwards.
        ...     held.apply()
        ...     held.num_pruned, int(model.weight.count_nonzero())
        (9, 3)

    Args:
        model: any module; wrapped by DDP, torch.compile or PEFT, or not.
        mask: bool by parameter name, True = kept, or the file or pruned folder that has it. By
            default the zeros that the model's matrices have now, embeddings and the output head
            left out, and matrices that are nothing but zero (a fresh LoRA factor).

    Returns:
        A handle with ``apply()`` and ``remove()``; as a context manager it does both at the end.

    Raises:
        ImpossibleRequestError: the mask does not fit the model, or there is no zero to hold.
        RunFolderError: the mask's file cannot be read.
    """
    if mask is None:
        mask = present_mask(model)
    elif not isinstance(mask, Mapping):
        mask = read_mask_of(Path(mask))
    places = _places(model, mask)
    if not places:
        raise ImpossibleRequestError(
            "the model has no zeros to hold; prune it first, or pass the mask it was pruned with"
        )
    return Held(places)


def read_mask_of(path: Path) -> dict[str, Tensor]:
    """Read the mask in a file, or the one beside the weights in a pruned folder.

    Raises:
        RunFolderError: there is no mask.
    """
    return read_mask(path / MASK_FILE if path.is_dir() else path)


def _places(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[Place, Tensor]:
    owners = {
        _plain(f"{prefix}.{name}" if prefix else name): (module, name)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in module._parameters
        if module._parameters[name] is not None
    }
    places = {}
    for name, kept in mask.items():
        if name not in owners:
            raise ImpossibleRequestError(
                f"the mask names {name!r}, which the model does not have; give the mask of this "
                "model"
            )
        module, attribute = owners[name]
        shape = tuple(module.get_parameter(attribute).shape)
        if tuple(kept.shape) != shape or kept.dtype != torch.bool:
            raise ImpossibleRequestError(
                f"the mask of {name!r} is {kept.dtype} {tuple(kept.shape)}, the weight is "
                f"{shape}; give the mask of this model, bool, True = kept"
            )
        places[module, attribute] = ~kept
    return places


def _plain(name: str) -> str:
    """Return the parameter's name without the wrappers' parts."""
    wrapped = True
    while wrapped:
        prefix = next((p for p in _WRAPPERS if name.startswith(p)), "")
        wrapped, name = bool(prefix), name.removeprefix(prefix)
    return name.replace(".base_layer.", ".").replace("._orig_mod.", ".")


def present_mask(model: nn.Module) -> dict[str, Tensor]:
    """Return the present zeros of the model's matrices as a mask by parameter name, True = kept.

    Embeddings, the output head and matrices of nothing but zeros are left out.
    """
    left_out = {id(p) for p in _embeddings_and_head(model)}
    mask = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or id(parameter) in left_out:
            continue
        kept = parameter.detach() != 0
        if kept.any() and not kept.all():
            mask[_plain(name)] = kept
    return mask


def _embeddings_and_head(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        head = getattr(module, "get_output_embeddings", lambda: None)()
        for owner in (module if isinstance(module, nn.Embedding) else None, head):
            if owner is not None:
                yield from owner.parameters(recurse=False)


def _zero(module: nn.Module, name: str, masks: dict[str, Tensor]) -> None:
    parameter = module.get_parameter(name)
    if masks[name].device != parameter.device:
        masks[name] = masks[name].to(parameter.device)
    # Through .data, so that autograd does not record it.
    parameter.data.masked_fill_(masks[name], 0)


def _zero_before_saving(
    masks: dict[str, Tensor], module: nn.Module, prefix: str, keep_vars: bool
) -> None:
    for name in masks:
        _zero(module, name, masks)


def _zero_gradient(pruned: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(pruned.to(gradient.device), 0)
