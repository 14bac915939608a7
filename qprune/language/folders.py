"""Checks of a checkpoint's files before anything is loaded; each refusal names a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qprune.errors import ImpossibleRequestError
from qprune.records import read_json

WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
# Suffixes of weights that need unpickling or another loader.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl")
# Files that quantisers wrote before config.json had an entry for them.
_QUANTISERS = ("quantize_config.json", "quant_config.json")


def is_checkpoint(source: str) -> bool:
    """Return True if a path is meant as a transformers checkpoint, complete or not."""
    path = Path(source)
    if path.is_file():
        return path.suffix == ".gguf"
    return any((path / name).is_file() for name in ("config.json", ADAPTER)) or bool(_gguf(path))


def refuse_other_formats(source: str) -> None:
    """Refuse a source that is no checkpoint of a whole model.

    Raises:
        ImpossibleRequestError: it is GGUF, or an adapter.
    """
    path = Path(source)
    if path.is_file() or (_gguf(path) and not (path / WEIGHTS).is_file()):
        raise ImpossibleRequestError(
            f"{source} holds GGUF, in which weights are quantised; give the checkpoint that it was "
            "made from, or convert it: AutoModelForCausalLM.from_pretrained(folder, "
            "gguf_file=name).save_pretrained(new)"
        )
    if (path / ADAPTER).is_file():
        raise ImpossibleRequestError(
            f"{source} holds a LoRA adapter or the like ({ADAPTER}), not a whole model; merge it "
            "into its base (peft: merge_and_unload, then save_pretrained) and give that folder"
        )


def refuse_other_weights(source: str) -> None:
    """Refuse a folder without a complete set of safetensors weights.

    Raises:
        ImpossibleRequestError: they are pickled, there are none, or a shard is missing.
    """
    path = Path(source)
    if not path.is_dir() or (path / WEIGHTS).is_file():
        return
    if (path / INDEX).is_file():
        _refuse_missing_shards(path)
        return
    pickled = sorted(file.name for file in path.iterdir() if file.suffix in _OTHER_WEIGHTS)
    pickled = [name for name in pickled if name != "training_args.bin"]
    if pickled:
        raise ImpossibleRequestError(
            f"{source} has its weights in {pickled[0]} and not in safetensors; reading that can "
            "run code: if you trust it, convert it by from_pretrained(folder).save_pretrained(new, "
            "safe_serialization=True) of its class, and give the new folder"
        )
    raise ImpossibleRequestError(
        f"{source} has no weights: neither {WEIGHTS} nor {INDEX} is there; give the whole folder "
        "that save_pretrained wrote"
    )


def refuse_quantised(source: str, config: Mapping[str, Any]) -> None:
    """Refuse quantised weights, before a quantiser's package is required.

    Raises:
        ImpossibleRequestError: names the quantisation method.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    said = next((part["quantization_config"] for part in parts if _quantised(part)), None)
    old = next((name for name in _QUANTISERS if (Path(source) / name).is_file()), None)
    if said is None and old is None:
        return
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    raise ImpossibleRequestError(
        f"{source} is quantised ({method or old or 'quantization_config'}): its weights are "
        "packed, and zeros among them would not last; prune the checkpoint that it was made from "
        "and quantise afterwards, or save a dequantised copy (model.dequantize(), save_pretrained)"
    )


def _quantised(part: Mapping[str, Any]) -> bool:
    return bool(part.get("quantization_config"))


def _gguf(path: Path) -> list[Path]:
    return list(path.glob("*.gguf")) if path.is_dir() else []


def _refuse_missing_shards(path: Path) -> None:
    try:
        weight_map = read_json((path / INDEX).read_bytes())["weight_map"]
        names = {str(name) for name in weight_map.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImpossibleRequestError(f"cannot read {path / INDEX}: {error}") from error
    missing = sorted(name for name in names if not (path / name).is_file())
    if missing:
        raise ImpossibleRequestError(
            f"{path} lacks {missing[0]}, one of the {len(names)} files of weights that {INDEX} "
            f"names ({len(missing)} missing); download the folder again"
        )
