"""Transformers classes that can be pruned from a folder, by task.

The class that a config names in ``architectures`` is the one that was saved, and the one that is
loaded, pruned and saved again; it is never replaced by another.

Checks of a checkpoint's files before anything is loaded; each refusal names a remedy.

Pretrained models from a folder or the Hugging Face hub, loaded as the class that was saved.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from qprune.errors import ImpossibleRequestError
from solvers.host.disk import kind_of, read_json

#: Advice for models of another kind.
IN_PYTHON = "load it in Python and call qprune.prune(model, batches, sparsity=...)"


@dataclass(frozen=True)
class Task:
    """Task of a model's head.

    Attributes:
        described: words for such a model, with an article.
        registry: name of the table in transformers that lists the classes.
    """

    described: str
    registry: str

    def classes(self, transformers: ModuleType) -> frozenset[str]:
        """Return the names of all transformers classes for the task."""
        listed = getattr(transformers.models.auto.modeling_auto, self.registry, {}).values()
        names = (entry if isinstance(entry, tuple | list) else (entry,) for entry in listed)
        return frozenset(name for some in names for name in some)


CAUSAL = Task("a causal language model", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
SEQUENCES = Task(
    "a sequence classifier or reward model", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
)
TOKENS = Task("a token classifier", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES")
MASKED = Task("a masked language model", "MODEL_FOR_MASKED_LM_MAPPING_NAMES")
ENCODER_DECODER = Task("an encoder-decoder", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES")
IMAGES = Task("an image classifier", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES")
# transformers lists BART-like models under masked language models, too.
TASKS = (CAUSAL, SEQUENCES, TOKENS, ENCODER_DECODER, MASKED, IMAGES)


def task_of(name: str, transformers: ModuleType) -> Task | None:
    """Return the task of a class by its name; None if there is no such task here."""
    return next((task for task in TASKS if name in task.classes(transformers)), None)


def chosen_class(source: str, config: Mapping[str, Any], transformers: ModuleType) -> Any:
    """Return the class to load a checkpoint with.

    Args:
        source: for messages.
        config: its config.json.
        transformers: the package.

    Raises:
        ImpossibleRequestError: the config names no class, several, one that transformers does not
            have, or one with an unsupported head.
    """
    named = config.get("architectures") or []
    if len(named) != 1:
        words = f"{len(named)} classes ({', '.join(map(str, named))})" if named else "no class"
        raise ImpossibleRequestError(
            f'{source}: "architectures" in its config.json names {words}; write there the one '
            'class whose weights these are, such as ["LlamaForCausalLM"]'
        )
    name = str(named[0])
    task = task_of(name, transformers)
    if task is not None and hasattr(transformers, name):
        chosen = getattr(transformers, name)
        model_type = config.get("model_type")
        if model_type not in (None, chosen.config_class.model_type):
            raise ImpossibleRequestError(
                f"{source}: architectures in its config.json says {name}, model_type {model_type}; "
                "these are of different models: correct the one that is wrong"
            )
        return chosen
    if hasattr(transformers, name):
        known = ", ".join(task.described for task in TASKS)
        raise ImpossibleRequestError(
            f"{source} is a {name}, and from a folder qprune prunes {known}; {IN_PYTHON}"
        )
    if config.get("auto_map"):
        raise ImpossibleRequestError(
            f"{source} is a {name}, whose code comes with the checkpoint (auto_map), and qprune "
            f"runs no such code; if you trust it, {IN_PYTHON}"
        )
    raise ImpossibleRequestError(
        f"{source} is a {name}, which transformers {transformers.__version__} does not have; "
        "install the version that it was saved with, or correct architectures in its config.json"
    )


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


logger = logging.getLogger(__name__)

#: Prefix of a hub id on the command line.
HUB = "hf:"
_DTYPES = ("float32", "bfloat16", "float16", "auto")


def is_pretrained(source: str) -> bool:
    """Return True for a transformers model: a folder with config.json, or ``hf:ID``.

    True also for an adapter's folder or a GGUF file; loading it raises an error that says why.
    """
    return source.startswith(HUB) or is_checkpoint(source)


@dataclass(frozen=True, eq=False)
class Loaded:
    """Loaded model, with the names of unused weights of its checkpoint.

    Attributes:
        source: folder or hub id.
        model: of the class that the checkpoint names, in evaluation mode.
        unused: names of weights that the class has no place for; they are not saved again.
    """

    source: str
    model: nn.Module
    unused: tuple[str, ...]


def load_pretrained(source: str, *, dtype: str = "float32", device: str = "cpu") -> nn.Module:
    """Return the model of `load_checkpoint`."""
    return load_checkpoint(source, dtype=dtype, device=device).model


def load_checkpoint(source: str, *, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load a model of the class that its config.json names, every weight from the checkpoint.

    Args:
        source: a folder with config.json and safetensors weights, ``hf:ID`` or a hub id.
        dtype: "float32", "bfloat16", "float16", or "auto" for the stored one.
        device: torch's name of the model's device.

    Raises:
        ImpossibleRequestError: transformers is missing, the source cannot be read, its class is
            not one of those that are pruned (`qprune.models.pretrained`), its weights are
            quantised, pickled, an adapter's or incomplete, or one of the class is missing.
    """
    if dtype not in _DTYPES:
        raise ImpossibleRequestError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    transformers = optional("transformers")
    refuse_other_formats(source)
    where = _location(source)
    with _explained(source):
        written, _ = transformers.PretrainedConfig.get_config_dict(where)
    refuse_quantised(source, written)
    chosen = chosen_class(source, written, transformers)
    refuse_other_weights(source)
    with _explained(source):
        config = chosen.config_class.from_pretrained(where)
    options = {_dtype_name(transformers): dtype if dtype == "auto" else getattr(torch, dtype)}
    with _explained(source), bars_on_terminals_only(), _own_words(transformers):
        model, found = chosen.from_pretrained(
            where, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    _refuse_missing(source, chosen.__name__, found)
    unused = tuple(sorted(found["unexpected_keys"]))
    if unused:
        logger.warning(
            "a %s has no place for %d weights of %s, which are not saved again: %s",
            *(chosen.__name__, len(unused), source, _listed(unused)),
        )
    return Loaded(source, model.to(_device(device)).eval(), unused)


def _refuse_missing(source: str, name: str, found: Any) -> None:
    """Refuse a model with missing weights, which would be random.

    Raises:
        ImpossibleRequestError: names them.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        raise ImpossibleRequestError(
            f"{source} lacks {len(missing)} weights of a {name}, which would be random: "
            f"{_listed(missing)}; give the whole checkpoint, or name in its config.json "
            "(architectures) the class whose weights it holds"
        )


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_tokenizer(source: str) -> Any:
    """Load the tokenizer of a model.

    Raises:
        ImpossibleRequestError: transformers is missing, or there is no tokenizer.
    """
    transformers = optional("transformers")
    with _explained(source):
        return transformers.AutoTokenizer.from_pretrained(
            _location(source), trust_remote_code=False
        )


def stored_dtype(source: str) -> torch.dtype:
    """Return the dtype of a checkpoint by its config.json; float32 if not given there.

    Raises:
        ImpossibleRequestError: transformers is missing, or the source cannot be read.
    """
    transformers = optional("transformers")
    with _explained(source):
        config = transformers.AutoConfig.from_pretrained(_location(source), trust_remote_code=False)
    dtype = getattr(config, _dtype_name(transformers), None)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def context_length(model: nn.Module) -> int | None:
    """Return the longest sequence that a model takes, in tokens; None if its config has none."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None)
    if not isinstance(length, int) or length <= 0:
        return None
    return length - _unused_positions(model)


def _unused_positions(model: nn.Module) -> int:
    """Return the number of positions before the first token's (RoBERTa counts from padding)."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def checked_length(model: nn.Module, asked: int | None, default: int = 2048) -> int:
    """Return the sequence length to use: ``asked``, or the model's own up to ``default``.

    Raises:
        ImpossibleRequestError: longer than the model's context, or shorter than two tokens.
    """
    longest = context_length(model)
    length = min(longest or default, default) if asked is None else asked
    if length < 2:
        raise ImpossibleRequestError(f"max_seq_length must be at least 2 tokens, not {length}")
    if longest is not None and length > longest:
        raise ImpossibleRequestError(
            f"max_seq_length {length} is longer than the model's context of {longest} tokens; "
            f"ask for at most {longest}"
        )
    return length


def optional(package: str, extra: str = "hf") -> ModuleType:
    """Import a package of one of qprune's extras.

    Raises:
        ImpossibleRequestError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImpossibleRequestError(
            f"this needs the package {package!r}, which is not installed: "
            f"pip install 'qprune[{extra}]'"
        ) from error


@contextmanager
def bars_on_terminals_only() -> Generator[None]:
    """Switch off transformers' progress bars where standard error is a file."""
    logging = optional("transformers").utils.logging
    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def _own_words(transformers: ModuleType) -> Generator[None]:
    """Silence transformers' table of keys, whose facts qprune reports or refuses itself."""
    logging_ = transformers.utils.logging
    before = logging_.get_verbosity()
    logging_.set_verbosity_error()
    try:
        yield
    finally:
        logging_.set_verbosity(before)


def _location(source: str) -> str:
    """Return the source as transformers takes it; a path must exist."""
    if source.startswith(HUB):
        return source.removeprefix(HUB)
    path = Path(source)
    if not path.exists() and (path.is_absolute() or source.startswith((".", "~"))):
        raise ImpossibleRequestError(f"there is no folder {source}")
    # Opening a pipe waits for a writer; folders of a hub's cache are full of links to files.
    for inside in sorted(path.iterdir()) if path.is_dir() else ():
        if inside.exists() and not inside.is_dir() and kind_of(inside):
            raise ImpossibleRequestError(
                f"{inside} is {kind_of(inside)}, where a file is expected; move it away"
            )
    if path.is_dir() and not (path / "config.json").is_file():
        raise ImpossibleRequestError(
            f"{source} has no config.json; pass a folder that save_pretrained wrote"
        )
    return source


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ImpossibleRequestError(f"device {name!r} is not one that torch knows") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ImpossibleRequestError("device 'cuda' was asked, but torch finds no GPU; use 'cpu'")
    return device


def _dtype_name(transformers: ModuleType) -> str:
    """Return the name of the dtype option: ``dtype`` since transformers 4.56."""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


@contextmanager
def _explained(source: str) -> Generator[None]:
    """Turn errors of transformers while reading ``source`` into one line with a remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if not Path(source).exists():
            raise ImpossibleRequestError(
                f"cannot get {source.removeprefix(HUB)!r} from the Hugging Face hub (is there a "
                "network, and is the id right?); pass the path of a downloaded folder instead: "
                f"{_shortened(reason)}"
            ) from error
        raise ImpossibleRequestError(f"cannot load {source}: {_shortened(reason)}") from error


def _shortened(reason: str, length: int = 200) -> str:
    return reason if len(reason) <= length else reason[: length - 3] + "..."
