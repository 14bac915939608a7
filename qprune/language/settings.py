"""The settings of one `qprune prune` of a language model: checked before any work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qprune.config import Asked, Names


class LanguageSettings(Asked):
    """Everything that decides a run, so that two equal settings give equal masks."""

    method: Literal["magnitude", "wanda", "sparsegpt", "reconstruct", "qprune"] = "qprune"
    budget: Literal["layer", "row"] | None = None
    targets: Names | None = None
    ignore: Names = ()
    compensate: bool = True
    num_calibration_samples: int = Field(default=128, ge=1)
    max_seq_length: int | None = Field(default=None, ge=2)
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    device: str = "cpu"
    offload: str = "cpu"
    evaluate: bool = True
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
