"""The layer form: rows of a small LLaMA by every sampler, and the perplexity with all rows pruned.

Each row is one problem: keep the layer's outputs with so many weights, at their values. The inputs
are the dense network's, so that all samplers get the same problems, with one bound for each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.energy.measures import in_parts, short
from benchmarks.energy.plan import SAMPLERS, Layers, Run
from qprune.models.evaluate import negative_log_likelihoods
from qprune.models.pretrained import load_pretrained, load_tokenizer
from qprune.models.text import calibration_windows, evaluation_windows
from solvers import Ask, Counts, QuadraticProblem, RowProblem

LENGTH = 256
PARTS = 50
# Added to the diagonal of A = X X', as a share of its mean.
_DAMPING = 0.01
_UNSEEN_SEED = 1000


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix and its inputs.

    Attributes:
        name: of its module.
        weights: shape (rows, inputs), float64.
        gram: A of the calibration tokens, damped, shape (inputs, inputs).
        unseen: inputs for other tokens, shape (windows, tokens, inputs), float32.
    """

    name: str
    weights: np.ndarray
    gram: np.ndarray
    unseen: np.ndarray

    def problem(self, sparsity: str) -> RowProblem:
        """All rows at one sparsity, the same number of weights in each."""
        if ":" in sparsity:
            counts = Counts.n_of_m(*map(int, sparsity.split(":")))
        else:
            counts = Counts([round(self.weights.shape[1] * (1 - float(sparsity)))])
        return RowProblem(self.gram, self.weights, counts)

    def unseen_errors(self, rows: Sequence[int], masks: np.ndarray) -> np.ndarray:
        """Error of the outputs for each window of unseen tokens, as a share of their energy."""
        chosen = self.weights[rows].astype(np.float32)
        lost, whole = (
            np.square(self.unseen @ weights.T).sum((1, 2), dtype=np.float64)
            for weights in (chosen * ~masks, chosen)
        )
        return lost / whole.mean()


@dataclass(frozen=True, eq=False)
class Text:
    """The language model with its text, loaded once.

    Args:
        layers: how much is run.
        folder: with tinyllama-wikitext2 and wikitext2.
    """

    layers: Layers
    folder: Path

    @cached_property
    def model(self) -> nn.Module:
        """The dense model in float32; not to be changed."""
        return load_pretrained(str(self.folder / "tinyllama-wikitext2")).float().eval()

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(str(self.folder / "tinyllama-wikitext2"))

    @property
    def _source(self) -> str:
        return f"wikitext2:{self.folder / 'wikitext2'}"

    def _windows(self, seed: int) -> Tensor:
        return calibration_windows(
            self._source,
            self._tokenizer,
            num_samples=self.layers.windows,
            max_seq_length=LENGTH,
            seed=seed,
        )

    @cached_property
    def test(self) -> Tensor:
        """Windows of the test split, evenly spread, shape (windows, tokens)."""
        windows = evaluation_windows(self._source, self._tokenizer, max_seq_length=LENGTH)
        number = min(self.layers.test_windows, len(windows))
        return windows[np.linspace(0, len(windows) - 1, number).astype(int)]

    @cached_property
    def matrices(self) -> dict[str, Matrix]:
        """Every matrix of the decoder blocks that are looked at, by the name of its module."""
        blocks = sorted({*self.layers.blocks, *self.layers.pruned})
        wanted = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and any(f"layers.{i}." in name for i in blocks)
        }
        seen = self._seen(wanted, self._windows(0), grams=True)
        measured = {n: m for n, m in wanted.items() if self._is_in(n, self.layers.blocks)}
        unseen = self._seen(measured, self._windows(_UNSEEN_SEED), grams=False)
        nothing = np.zeros((0, LENGTH, 0), np.float32)
        return {
            name: Matrix(
                name,
                module.weight.detach().double().numpy(),
                seen[name],
                unseen.get(name, nothing),
            )
            for name, module in wanted.items()
        }

    @staticmethod
    def _is_in(name: str, blocks: Sequence[int]) -> bool:
        return any(f"layers.{index}." in name for index in blocks)

    @torch.no_grad()
    def _seen(
        self, modules: Mapping[str, nn.Module], windows: Tensor, *, grams: bool
    ) -> dict[str, np.ndarray]:
        """The damped A of every module's inputs, or the inputs themselves."""
        found: dict[str, list[Tensor]] = {name: [] for name in modules}

        def note(name: str) -> Any:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0].detach()
                flat = x.flatten(0, -2).double()
                parts = found[name]
                if not grams:
                    parts.append(x.clone())
                elif parts:
                    parts[0] += flat.T @ flat
                else:
                    parts.append(flat.T @ flat)

            return hook

        hooks = [m.register_forward_pre_hook(note(name)) for name, m in modules.items()]
        for batch in windows.split(8):
            self.model(batch)
        for hook in hooks:
            hook.remove()
        joined = {name: torch.cat(parts).numpy() for name, parts in found.items()}
        return {name: _damped(a) for name, a in joined.items()} if grams else joined

    # -- rows ------------------------------------------------------------------------------

    def rows(self, seed: int) -> Iterator[tuple[Matrix, list[int]]]:
        """The rows of every measured matrix that a seed draws; no two seeds have one in common."""
        for matrix in self.matrices.values():
            if self._is_in(matrix.name, self.layers.blocks):
                order = np.random.default_rng(0).permutation(len(matrix.weights))
                first = seed * self.layers.rows
                yield matrix, [int(row) for row in order[first : first + self.layers.rows]]

    @lru_cache  # noqa: B019 - a run of the benchmark has one text
    def certified(self, sparsity: str, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of every matrix' rows, bounds that no mask can be below, and the best energies known."""
        ask = Ask.to("exact", {"max_nodes": self.layers.nodes})
        found = []
        for matrix, rows in self.rows(seed):
            problem = matrix.problem(sparsity)
            answers = [ask(problem.row_as_problem(row)) for row in rows]
            bounds = np.array([answer.lower_bound for answer in answers])
            found.append((bounds, np.array([answer.energy for answer in answers])))
        return found

    def rows_result(self, run: Run) -> dict[str, Any]:
        """Answer a sample of rows; energy above the bound, error on unseen tokens."""
        ask = _ask(run.sampler, run.level)
        noted = _Noted()
        unseen = []
        certified = self.certified(run.sparsity, run.seed)
        for (matrix, rows), (bounds, best) in zip(self.rows(run.seed), certified, strict=True):
            problem = matrix.problem(run.sparsity)
            asked = [problem.row_as_problem(row) for row in rows]
            masks = noted.answered(ask, asked, run.seed, float(bounds.sum()))
            noted.best.append(float(best.sum()))
            unseen.append(matrix.unseen_errors(rows, masks))
        by_matrix = short(np.mean(unseen, axis=1))
        losses = short(in_parts(np.mean(unseen, axis=0), PARTS))
        return {**noted.figures(), "unseen": by_matrix, "losses": losses}

    # -- all rows --------------------------------------------------------------------------

    def text_result(self, run: Run) -> dict[str, Any]:
        """Prune all rows; energies, and loss on test text in nats a token.

        The energy missed is left to whoever has the lines of all samplers: the best bound of
        each matrix comes with the answers of one that certifies.
        """
        ask = _ask(run.sampler, run.level)
        model, noted = deepcopy(self.model), _Noted()
        modules = dict(model.named_modules())
        for name, matrix in self.matrices.items():
            if not self._is_in(name, self.layers.pruned):
                continue
            problem = matrix.problem(run.sparsity)
            asked = [problem.row_as_problem(row) for row in range(problem.num_rows)]
            masks = noted.answered(ask, asked, run.seed)
            weight: Any = modules[name].weight
            weight.data.mul_(torch.from_numpy(masks))
        losses = self.losses(model)
        scores = [math.exp(np.mean(losses))]
        return {**noted.figures(), "losses": short(losses), "scores": scores}

    def losses(self, model: nn.Module) -> list[float]:
        """Loss on parts of the test text, nats a token."""
        sums = np.array(negative_log_likelihoods(model, self.test))
        return in_parts(sums / (LENGTH - 1), PARTS)


@cache
def _ask(sampler: str, level: int) -> Ask:
    """The sampler, made once: some have a process of their own, which takes seconds to start."""
    return Ask.to(sampler, SAMPLERS[sampler][level])


@dataclass(eq=False)
class _Noted:
    """Answers to the rows of one matrix after the other.

    Attributes:
        energies, bounds, whole: sums over a matrix' rows: of the answers, of the certified bounds
            (0 where there are none: no error is below it), and of all weights pruned.
        best: the best energies known, where somebody knows them.
        spent: CPU seconds of the sampler.
    """

    energies: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    spent: float = 0.0

    def answered(
        self, ask: Ask, problems: Sequence[QuadraticProblem], seed: int, bound: float = 0.0
    ) -> np.ndarray:
        """Ask for every row of a matrix; masks (rows, inputs), True = kept."""
        keys = [np.random.SeedSequence(seed, spawn_key=(row,)) for row in range(len(problems))]
        began = time.process_time()
        answers = [
            ask(problem, None, int(key.generate_state(1)[0]))
            for problem, key in zip(problems, keys, strict=True)
        ]
        self.spent += time.process_time() - began
        self.energies.append(sum(answer.energy for answer in answers))
        self.bounds.append(max(bound, sum(max(0.0, answer.lower_bound) for answer in answers)))
        self.whole.append(sum(p.energy(np.ones(p.num_variables, np.int8)) for p in problems))
        return np.array([answer.sample == 0 for answer in answers])

    def figures(self) -> dict[str, Any]:
        """What a line holds of them."""
        return {
            **{n: short(getattr(self, n)) for n in ("energies", "bounds", "best", "whole")},
            "cpu_seconds": self.spent,
        }


def _damped(gram: np.ndarray) -> np.ndarray:
    return gram + _DAMPING * float(np.diag(gram).mean()) * np.eye(len(gram))
