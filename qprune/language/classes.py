"""Transformers classes that can be pruned from a folder, by task.

The class that a config names in ``architectures`` is the one that was saved, and the one that is
loaded, pruned and saved again; it is never replaced by another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from qprune.errors import ImpossibleRequestError

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
