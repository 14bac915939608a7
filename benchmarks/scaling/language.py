"""Pruning a language model on a cluster, as work for the simulator; and what must fit in memory.

Two stages, as `qprune.language.network.prune_network` takes them: layer by layer, then across the
network with distillation and one round of blocks. Defaults are that module's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.scaling.cluster import H100, Cluster
from benchmarks.scaling.costs import EXPAND, GRADIENT, RECOMPUTE, Costs, matrix_on_h100
from benchmarks.scaling.events import Host, Pass, Tasks, Work

SAMPLES, TOKENS = 128, 2048
# Stage 1 runs so many tokens through a block at once, and a block's passes are: the dense one,
# about two to collect moments (each ends where its matrices have been seen), the pruned one.
BATCH_TOKENS, BLOCK_FORWARDS = 4096, 4.0
# Stage 2: sequences expanded, judged, and in one of the optimiser's steps; passes of judging.
EXPANDED, JUDGED, STEP_SAMPLES, STEPS, JUDGINGS = 64, 16, 8, 160, 12
NUM_BLOCKS, BLOCK_SIZE = 16, 1024
_WEIGHT, _FLOAT = 2, 4
# Adam reads and writes values, gradient and two moments.
_ADAM_BYTES = 28
#: Bytes of the run's own vectors for each targeted weight: values, mask, resting; the dense
#: values; the state before; gradient, diagonal, and what selection makes of them.
VECTOR_BYTES = 45


@dataclass(frozen=True)
class Language:
    """A decoder-only language model.

    Attributes:
        name: of the table.
        blocks: decoder blocks.
        groups: of a block, matrices that share their inputs: (inputs, rows, experts), averaged
            over the blocks where they differ.
        active: share of the experts' tokens that one expert sees.
        hidden: width of the stream between blocks.
        vocabulary: numbers that come out for a token.
    """

    name: str
    blocks: int
    groups: tuple[tuple[int, int, float], ...]
    active: float
    hidden: int
    vocabulary: int

    @property
    def block_weights(self) -> float:
        """Targeted weights of one block."""
        return sum(inputs * rows * number for inputs, rows, number in self.groups)

    @property
    def weights(self) -> float:
        """Targeted weights of all blocks."""
        return self.blocks * self.block_weights

    @property
    def active_weights(self) -> float:
        """Weights of a block that one token passes."""
        return sum(
            inputs * rows * (number * self.active if number > 1 else number)
            for inputs, rows, number in self.groups
        )


def _llama(name: str, blocks: int, hidden: int, inner: int, keys: int, vocabulary: int) -> Language:
    groups = (
        (hidden, hidden + 2 * keys, 1.0),
        (hidden, hidden, 1.0),
        (hidden, 2 * inner, 1.0),
        (inner, hidden, 1.0),
    )
    return Language(name, blocks, groups, 1.0, hidden, vocabulary)


# Shapes of LLaMA-2 7B and LLaMA-3 70B (their config.json).
SEVEN = _llama("7B", 32, 4096, 11008, 4096, 32000)
SEVENTY = _llama("70B", 80, 8192, 28672, 1024, 128256)
# Assumed: 48 blocks of width 5120, all with 64 experts of 8192 and two of them for a token.
MIXTURE = Language(
    "400B MoE",
    48,
    (
        (5120, 5120 + 2 * 1024, 1.0),
        (5120, 5120, 1.0),
        (5120, 2 * 8192, 64.0),
        (8192, 5120, 64.0),
    ),
    2 / 64,
    5120,
    128256,
)


def stage_1(model: Language, cluster: Cluster, *, split: bool = False) -> list[Work]:
    """One block of stage 1: ranks share passes and moments, devices share matrices.

    Args:
        model: that is pruned.
        cluster: where.
        split: whether a matrix' rows are shared among the devices too, which is not built.
    """
    device = cluster.device
    tokens, batches = BATCH_TOKENS, SAMPLES * TOKENS // BATCH_TOKENS
    passes = BLOCK_FORWARDS * 2 * model.active_weights * tokens / device.flops
    moments = summed = 0.0
    for inputs, _, number in model.groups:
        seen = tokens * (model.active if number > 1 else 1.0) * number
        # X X' and X0 X', in single precision.
        moments += 2 * 2 * seen * inputs**2 / device.single
        summed += 2 * inputs**2 * number * _FLOAT
    return [
        Host("stage 1: load", seconds=_load(model.block_weights, cluster)),
        Pass("stage 1: passes", batches, passes),
        Pass("stage 1: moments", batches, moments, summed=summed),
        *_matrices(model, cluster, split),
    ]


def _load(weights: float, cluster: Cluster) -> float:
    """Seconds to bring a block to its devices and back, as work of the measured core."""
    seconds = 2 * _WEIGHT * weights / cluster.devices / cluster.device.to_host
    return seconds * cluster.core_speed


def _matrices(model: Language, cluster: Cluster, split: bool) -> Iterator[Work]:
    device = cluster.device
    pieces = cluster.size if split else 1
    for inputs, rows, number in model.groups:
        # Half products, half going through the matrix again and again: by what is scarcer.
        slower = max(H100.single / device.single, H100.bandwidth / device.bandwidth)
        seconds = matrix_on_h100(rows, inputs) * slower
        share = rows * inputs * _FLOAT / pieces
        yield Tasks(
            "stage 1: rows", round(number) * pieces, seconds / pieces,
            2 * inputs**2 * _FLOAT + share, share, "devices",
        )  # fmt: skip


def stage_2(model: Language, cluster: Cluster, costs: Costs) -> list[Work]:
    """Across the network, with the run's vectors spread over the ranks as the weights are."""
    device, size = cluster.device, cluster.size
    forward = 2 * model.blocks * model.active_weights * TOKENS / device.flops
    weights = _WEIGHT * model.weights
    vectors = _FLOAT * model.weights
    # Per-sample gradients of all layers, written, squared, added up; then moved to the host.
    squares = 3 * vectors / device.bandwidth + 2 * vectors / size / device.to_host
    drawn = costs.draw * EXPANDED * TOKENS * model.vocabulary
    columns = NUM_BLOCKS * BLOCK_SIZE
    return [
        # The dense network is asked too, each time.
        Pass(
            "stage 2: expand", EXPANDED, (EXPAND + 1) * forward + squares, 4 * weights,
            2 * vectors, joined=False,
        ),
        Host("stage 2: signs", seconds=drawn),
        Pass(
            "stage 2: columns", EXPANDED, (RECOMPUTE + 1) * forward, 3 * weights,
            gathered=columns * _FLOAT,
        ),
        Host("stage 2: select", seconds=costs.select * model.weights / size),
        Tasks(
            "stage 2: solve", NUM_BLOCKS, costs.solve(BLOCK_SIZE, EXPANDED),
            EXPANDED * BLOCK_SIZE * 8.0, BLOCK_SIZE, spread=0.3,
        ),
        *[Pass("stage 2: accept", JUDGED, 2 * forward, 2 * weights)] * JUDGINGS,
        *[
            Pass(
                "stage 2: distil", STEP_SAMPLES, (GRADIENT + 1) * forward, 3 * weights, vectors,
                joined=False,
            ),
            Host("stage 2: optimiser", bytes=_ADAM_BYTES * model.weights / size),
        ]
        * STEPS,
    ]  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Bytes that must fit.

    Attributes:
        device_1: of a device, stage 1.
        device_2: of a device, stage 2.
        host_1: of a node, stage 1.
        host_2: of a node in stage 2, as it is built: every rank holds the run's vectors.
        host_spread: the same if they were spread over the ranks.
    """

    device_1: float
    device_2: float
    host_1: float
    host_2: float
    host_spread: float


def memory(model: Language, cluster: Cluster) -> Memory:
    """What a run needs."""
    moments = max(2 * inputs**2 * number * _FLOAT for inputs, _, number in model.groups)
    working = max(8 * inputs * rows * _FLOAT for inputs, rows, _ in model.groups)
    activations = SAMPLES * TOKENS * model.hidden * _WEIGHT
    weights = _WEIGHT * model.weights
    passing = 2 * TOKENS * (model.vocabulary + 16 * model.hidden) * _FLOAT
    vectors = VECTOR_BYTES * model.weights
    largest = max(inputs * rows for inputs, rows, _ in model.groups) * _FLOAT
    return Memory(
        device_1=_WEIGHT * model.block_weights + moments + working,
        device_2=weights / cluster.size + 2 * _WEIGHT * model.block_weights + 2 * largest + passing,
        # The original weights wait until the run is over.
        host_1=(2 * weights + 2 * activations) / cluster.nodes,
        host_2=vectors * cluster.devices + weights,
        host_spread=vectors / cluster.nodes + weights / cluster.nodes,
    )
