"""Settings of one `qprune prune` of a language model, checked before any work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qprune.distributed.workers import DEFAULT_THREADS
from qprune.errors import ImpossibleRequestError
from qprune.jobs.options import OptionValue
from qprune.jobs.settings import Asked, Names
from solvers.host.ranges import FurtherSteps, Gigabytes, Number, Pair, Seconds, Seed, Threads

# Settings that only method qprune uses.
_ACROSS = ("stage2_steps", "rounds", "block_size", "num_blocks", "max_seconds", "executor")


class LanguageSettings(Asked):
    """Complete settings of a run: two equal settings give equal masks."""

    method: Literal["magnitude", "wanda", "sparsegpt", "reconstruct", "qprune"] = "qprune"
    budget: Literal["global", "layer", "row"] | None = None
    targets: Names | None = None
    ignore: Names = ()
    compensate: bool = True
    sampler: str | None = None
    sampler_options: dict[str, OptionValue] = Field(default_factory=dict)
    stage2_steps: FurtherSteps | None = None
    rounds: FurtherSteps | None = None
    block_size: Pair | None = None
    num_blocks: Number | None = None
    augment: bool = True
    num_calibration_samples: Number = 128
    max_seq_length: Pair | None = None
    normalization: str | None = None
    max_seconds: Seconds | None = None
    max_memory: Gigabytes | None = None
    executor: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    device: str = "cpu"
    offload: str = "cpu"
    evaluate: bool = True
    seed: Seed = 0
    threads: Threads = DEFAULT_THREADS

    def check(self) -> None:
        """Refuse settings that the method does not use.

        Raises:
            ImpossibleRequestError: names the option and the methods that use it.
        """
        structure = self.structure
        if structure is not None and abs(self.asked_sparsity - structure.sparsity) > 1e-6:
            raise ImpossibleRequestError(
                f"--mask-structure {self.mask_structure} means sparsity {structure.sparsity:g} "
                "everywhere; leave --sparsity out"
            )
        if self.method == "qprune":
            if self.budget == "row":
                raise ImpossibleRequestError(
                    "--budget row is of the layer-by-layer methods; with --method qprune counts "
                    "hold over the whole network (global) or by layer"
                )
            return
        for name in _ACROSS:
            if getattr(self, name) is not None:
                raise ImpossibleRequestError(
                    f"--{name.replace('_', '-')} is of --method qprune, which goes on across the "
                    f"network; {self.method} makes one pass, layer by layer"
                )
        if self.budget == "global":
            raise ImpossibleRequestError(
                f"--budget global is of --method qprune; {self.method} counts by layer or row"
            )
        if self.sampler is not None and self.method != "reconstruct":
            raise ImpossibleRequestError(
                f"--sampler is of --method qprune or reconstruct; {self.method} asks none"
            )
        if self.sampler_options and self.sampler is None:
            raise ImpossibleRequestError("--sampler-option needs a --sampler to go to")
