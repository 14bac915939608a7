"""Measurement of a pruned folder on this machine, against the dense model."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from qprune.data.inputs import AnyInputs, Inputs
from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.models.evaluate import Track, untracked
from qprune.models.measure.latency import Comparison, compare
from qprune.models.measure.semi_structured import disagreement, obstacle, with_sparse_kernels
from qprune.models.measure.sizes import Sizes, measure_sizes, weight_files
from qprune.models.pretrained import checked_length, load_pretrained
from qprune.network.hold import present_mask
from qprune.network.mask_file import MASK_FILE, read_mask
from qprune.objective.trace.recorder import forward


@dataclass(frozen=True)
class Measured:
    """Measured sizes and times of a pruned model.

    Attributes:
        folder: the pruned model.
        against: the dense model, or None for the pruned one with its zeros filled.
        machine: device, threads and versions of the measurement.
        sparsity: share of the masked weights that is zero.
        dense_sizes, sizes: bytes, dense and pruned.
        latency: dense against pruned, as stored, by kind of work.
        sparse_kernels: the same with 2:4 kernels; empty where they were not tried.
        sparse_obstacle: reason why they were not, or why their answer is wrong.
        peak_memory: peak bytes of a pass on a GPU, dense and pruned; None on a CPU.
    """

    folder: str
    against: str | None
    machine: Mapping[str, Any]
    sparsity: float
    dense_sizes: Sizes
    sizes: Sizes
    latency: tuple[Comparison, ...]
    sparse_kernels: tuple[Comparison, ...]
    sparse_obstacle: str | None
    peak_memory: tuple[int, int] | None

    @property
    def gain(self) -> bool:
        """True if any work ran faster."""
        return any(one.gain for one in (*self.latency, *self.sparse_kernels))

    def verdicts(self) -> tuple[str, ...]:
        """Verdict of each comparison, one sentence each, negative ones included."""
        lines = [one.verdict() for one in self.latency]
        lines += [f"with 2:4 kernels, {one.verdict()}" for one in self.sparse_kernels]
        if self.sparse_obstacle is not None:
            lines.append(f"2:4 kernels not used: {self.sparse_obstacle}")
        if not self.gain:
            lines.append(
                "no gain in speed or memory on this machine: zeros are multiplied and kept like "
                "other numbers; what they save is the size of a compressed or packed file"
            )
        return tuple(lines)

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes."""
        record = asdict(self) | {"gain": self.gain, "verdicts": self.verdicts()}
        for name in ("latency", "sparse_kernels"):
            record[name] = [
                asdict(one) | {"speedup": one.speedup, "trusted": one.trusted, "gain": one.gain}
                for one in getattr(self, name)
            ]
        return record


def measure_folder(
    folder: Path,
    against: str | None = None,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    max_seq_length: int | None = None,
    rounds: int = 15,
    threads: int = 1,
    track: Track = untracked,
) -> Measured:
    """Measure size, memory and time of a pruned transformers model.

    Args:
        folder: the pruned model, with or without its packed mask.
        against: the dense model; by default the pruned one with its zeros filled at random,
            which runs the same dense kernels.
        dtype: dtype of the computation, "auto" for the stored one.
        device: torch's name of the device.
        max_seq_length: tokens in the timed prompt, by default the model's own up to 2048.
        rounds: timings of each model at each kind of work.
        threads: torch's threads.
        track: wraps the rounds, for a progress bar.

    Raises:
        ImpossibleRequestError: a model cannot be read, or ``against`` is of another shape.
        RunFolderError: there are no weights, or mask and zeros are inconsistent.
    """
    weight_files(folder)  # Missing files are refused before loading.
    model = load_pretrained(str(folder), dtype=dtype, device=device)
    mask = _mask(folder, model)
    if against is None:
        dense = _dense_twin(model, mask)
    else:
        dense = load_pretrained(against, dtype=dtype, device=device)
        _refuse_other_shapes(against, dense, model)
    works = _works(model, max_seq_length)
    timed = partial(_compare, works, dense, rounds=rounds, threads=threads, track=track)
    place = next(model.parameters()).device
    latency, peak = timed(model), _peak_memory(works, dense, model, place)
    why_not = obstacle(model, mask, place)
    sparse: tuple[Comparison, ...] = ()
    if why_not is None:
        fast = with_sparse_kernels(model, mask)
        prompt = next(iter(works.values()))
        why_not = disagreement(_run(model, prompt), _run(fast, prompt))
        sparse = () if why_not else timed(fast)
    return Measured(
        folder=str(folder),
        against=against,
        machine=_machine(place, threads, model),
        sparsity=sum(int((~kept).sum()) for kept in mask.values())
        / sum(kept.numel() for kept in mask.values()),
        dense_sizes=measure_sizes(_dense_folder(folder, against), dense, {}),
        sizes=measure_sizes(folder, model, mask),
        latency=latency,
        sparse_kernels=sparse,
        sparse_obstacle=why_not,
        peak_memory=peak,
    )


def _dense_folder(folder: Path, against: str | None) -> Path | None:
    """Return the folder whose files give the dense size on disk, or None."""
    if against is None:
        return folder
    return Path(against) if Path(against).is_dir() else None


def _mask(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """Return the folder's mask, checked against the weights; without one, that of the zeros."""
    parameters = dict(model.named_parameters())
    if not (folder / MASK_FILE).is_file():
        mask = {name: kept.cpu() for name, kept in present_mask(model).items()}
        if not mask:
            raise ImpossibleRequestError(f"{folder} has no zeros in its matrices; prune it first")
        return mask
    mask = read_mask(folder / MASK_FILE)
    for name, kept in mask.items():
        if name not in parameters or parameters[name].shape != kept.shape:
            raise RunFolderError(f"{folder}: the mask's {name!r} is no weight of the model")
        if parameters[name].detach().cpu()[~kept].any():
            raise RunFolderError(
                f"{folder}: {name} is not zero where the mask prunes it; `qprune hold` repairs that"
            )
    return mask


def _dense_twin(model: nn.Module, mask: Mapping[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, kept in mask.items():
            weight = twin.get_parameter(name)
            noise = torch.randn(weight.shape, generator=generator) * weight.float().std().cpu()
            weight.copy_(torch.where(kept, weight.cpu(), noise.to(weight.dtype)))
    return twin


def _refuse_other_shapes(against: str, dense: nn.Module, pruned: nn.Module) -> None:
    shapes = {name: tuple(p.shape) for name, p in dense.named_parameters()}
    for name, parameter in pruned.named_parameters():
        if shapes.get(name) != tuple(parameter.shape):
            raise ImpossibleRequestError(
                f"{against} is another model: its {name!r} is {shapes.get(name)}, the pruned one's "
                f"{tuple(parameter.shape)}; give the model that was pruned"
            )


def _works(model: nn.Module, max_seq_length: int | None) -> dict[str, AnyInputs]:
    """Return one input for each kind of work, by name."""
    generator = torch.Generator().manual_seed(0)
    device, config = next(model.parameters()).device, cast("Any", model.config)
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        side = config.image_size
        sides = (side, side) if isinstance(side, int) else tuple(side)
        image = torch.randn((1, config.num_channels, *sides), generator=generator)
        return {"one image": image.to(device, next(model.parameters()).dtype)}
    length = checked_length(model, max_seq_length)
    ids = torch.randint(config.vocab_size, (1, length), generator=generator).to(device)
    if getattr(config, "is_encoder_decoder", False):
        return {
            f"{length} tokens in, and as many out": Inputs(
                {"input_ids": ids, "decoder_input_ids": ids}
            )
        }
    return {f"prompt of {length} tokens": ids, "one token": ids[:, :1].contiguous()}


@torch.inference_mode()
def _run(model: nn.Module, inputs: AnyInputs) -> Tensor:
    return forward(model, inputs)


def _compare(
    works: Mapping[str, AnyInputs], dense: nn.Module, pruned: nn.Module, **options: Any
) -> tuple[Comparison, ...]:
    return tuple(
        compare(work, partial(_run, dense, inputs), partial(_run, pruned, inputs), **options)
        for work, inputs in works.items()
    )


def _peak_memory(
    works: Mapping[str, AnyInputs], dense: nn.Module, pruned: nn.Module, device: torch.device
) -> tuple[int, int] | None:
    """Return the peak bytes during a pass, without the other model's weights."""
    if device.type != "cuda":
        return None
    peaks = []
    for model, other in ((dense, pruned), (pruned, dense)):
        torch.cuda.reset_peak_memory_stats(device)
        for inputs in works.values():
            _run(model, inputs)
        others = sum(p.nbytes for p in other.parameters())
        peaks.append(torch.cuda.max_memory_allocated(device) - others)
    return peaks[0], peaks[1]


def _machine(device: torch.device, threads: int, model: nn.Module) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": device.type,
        "name": name or platform.machine(),
        "threads": threads,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
