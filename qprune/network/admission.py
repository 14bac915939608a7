"""Refusals of models that must be unwrapped or converted before they are pruned."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from qprune.errors import ImpossibleRequestError, UnsupportedLayerError
from solvers.host.legible import has_lone_surrogate, legible


def refuse_unstorable(model: nn.Module) -> None:
    """Refuse names that no file of weights can hold.

    Raises:
        ImpossibleRequestError: one has a lone surrogate, or is reserved by safetensors.
    """
    for name in model.state_dict():
        if name == "__metadata__" or has_lone_surrogate(name):
            raise ImpossibleRequestError(
                f"the tensor {legible(name, 200)} has a name that cannot be written to a file of "
                "weights; give it another name, or prune without an output folder"
            )


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse wrappers and foreign forms of a network.

    Raises:
        ImpossibleRequestError: it is wrapped (data parallel, compiled, an adapter), or pruned by
            torch.nn.utils.prune; what to pass instead.
        UnsupportedLayerError: it is scripted, quantised or not initialised.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedLayerError(
            f"the model must be a torch.nn.Module, not a {type(model).__name__}"
        )
    for name, module in model.named_modules():
        where = f"{name!r} is" if name else "the model is"
        kind, origin = type(module).__name__, type(module).__module__
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedLayerError(
                f"{where} TorchScript ({kind}, from torch.jit.script or trace), whose weights "
                "cannot be seen at work; pass the Python module it was made from"
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ImpossibleRequestError(
                f"{where} wrapped in {kind}; pass model.module, and for several processes "
                "ranks=qprune.DataParallel()"
            )
        if kind == "OptimizedModule":
            raise ImpossibleRequestError(
                f"{where} compiled (torch.compile); pass model._orig_mod, and compile it again "
                "afterwards"
            )
        if origin.startswith("peft."):
            raise ImpossibleRequestError(
                f"{where} part of an adapter that is not merged ({kind}, LoRA or alike): zeros "
                "in its base would not be zeros of the network; merge the adapter first, by "
                "model = model.merge_and_unload()"
            )
        if _is_quantised(module):
            raise UnsupportedLayerError(
                f"{where} quantised ({kind} of {origin.partition('.')[0]}); prune the network in "
                "floating point, then quantise it"
            )
        if hasattr(module, "weight_mask") and hasattr(module, "weight_orig"):
            raise ImpossibleRequestError(
                f"{where} being pruned by torch.nn.utils.prune; make that permanent first, by "
                "torch.nn.utils.prune.remove(module, 'weight')"
            )
        _refuse_unloaded(name, module, where)


def _refuse_unloaded(name: str, module: nn.Module, where: str) -> None:
    """Refuse tensors that have no values yet."""
    for own, parameter in module.named_parameters(recurse=False):
        if is_lazy(parameter):
            raise UnsupportedLayerError(
                f"{where} lazy and has no weights yet; pass one batch through the model, and "
                "train it, before it is pruned"
            )
        if parameter.is_meta:
            raise UnsupportedLayerError(
                f"the tensor {f'{name}.{own}' if name else own!r} is on the meta device, not "
                "loaded; load the model in full"
            )


def _is_quantised(module: nn.Module) -> bool:
    """Return True for a module with quantised weights, torch's own or another package's."""
    origin = type(module).__module__
    if ".ao.nn.quantized" in origin or ".nn.quantized" in origin:
        return True
    if origin.partition(".")[0] in ("bitsandbytes", "auto_gptq", "gptqmodel", "awq", "hqq"):
        return True
    # GPTQ and AWQ layers of any package.
    return isinstance(getattr(module, "qweight", None), torch.Tensor)
