# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Can a sampler of my own prune a network?
#
# Yes, in under twenty lines: written, checked, registered and used. The cells that make up those
# lines are marked *mine*; the others only look at what came out.
#
# A sampler is what [dimod](https://github.com/dwavesystems/dimod) calls
# one: any object with `sample(bqm, **options)` that returns a `SampleSet`. It need not know that
# the problem comes from a network, nor how to keep "exactly k of these are pruned".

# %%
import sys
import time
import tomllib
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import dimod
import matplotlib.pyplot as plt
import numpy as np

import qprune
from qprune.models.datasets import load_data
from qprune.models.zoo import load_model
from solvers.ask import counting
from solvers.convex.relax import Relax
from solvers.registry import get_sampler, list_samplers
from solvers.testing import check_sampler

# %% tags=["parameters"]
run = {"stages": 6, "rounds": 1, "final_rounds": 3, "block_size": 64, "num_blocks": 3}

# %% [markdown]
# ## Written (mine)
#
# Noisy mean-field annealing, after [King et al.](https://arxiv.org/abs/1806.08422), who imitate a
# coherent Ising machine with it: every spin leans a little towards what its neighbours ask of it,
# while temperature and noise fall. None of the samplers here works like that. All reads run side
# by side, as the rows of one matrix.


# %% tags=["mine"]
class MeanField:
    """Noisy mean-field annealing."""

    def sample(self, bqm, num_reads=50, num_sweeps=200, seed=None):
        rng = np.random.default_rng(seed)
        h, (row, col, bias), _ = bqm.spin.to_numpy_vectors(variable_order=bqm.variables)
        J = np.zeros((h.size, h.size))
        J[row, col] = J[col, row] = bias
        scale = np.sqrt(h**2 + (J**2).sum(axis=1)).mean() + 1e-300
        s = rng.uniform(-1, 1, (num_reads, h.size))
        for temperature in np.geomspace(1.0, 0.001, num_sweeps):
            field = (h + s @ J) / scale + temperature * rng.normal(0, 0.5, s.shape)
            s += 0.15 * (np.tanh(-field / temperature) - s)
        answer = dimod.SampleSet.from_samples_bqm((2 * (s > 0) - 1, bqm.variables), bqm.spin)
        return answer.change_vartype(bqm.vartype)


# %% [markdown]
# ## Checked (mine)
#
# `check_sampler` runs the same conformance suite that every sampler here passes: exact counts,
# recomputed energies, one seed one answer, the optimum of small problems, odd sizes, labels and
# coefficients, bad input. Counts are kept by a penalty and repair around the sampler, as `prune`
# does it. A check of something that a sampler does not claim is skipped, and says why.

# %% tags=["mine"]
check_sampler(MeanField())

# %% [markdown]
# A failure says which check, and how. Three sweeps, for instance, are too few (options given here
# go to every call):

# %%
try:
    check_sampler(MeanField(), num_sweeps=3)
except AssertionError as failure:
    print(failure)

# %% [markdown]
# ## Registered (mine)
#
# A name is an entry point in the group `qprune.samplers`. In a package of yours these lines of
# `pyproject.toml` are all of it (with `my_package` for `__main__`).

# %% tags=["mine"]
pyproject = """
[project.entry-points."qprune.samplers"]
mean-field = "__main__:MeanField" """

# %% [markdown]
# When a package is installed, `pip` writes its entry points to a file that Python finds. A
# notebook is no package, so this cell does what `pip` would have done, in a temporary folder.

# %%
site = TemporaryDirectory()
installed = Path(site.name, "my_package-1.0.dist-info")
installed.mkdir()
points = tomllib.loads(pyproject)["project"]["entry-points"]["qprune.samplers"]
lines = ["[qprune.samplers]", *(f"{name} = {target}" for name, target in points.items())]
(installed / "entry_points.txt").write_text("\n".join(lines))
sys.path.append(site.name)

for entry in list_samplers():  # what `qprune samplers` prints
    if entry.name in ("relax", "sa", "mean-field"):
        print(f"{entry.name:11} counts: {entry.counts!s:6} seed: {entry.seed!s:5} {entry.about}")

# %% [markdown]
# ## Used (mine)
#
# The network has 64-64-64-10 units and reads handwritten digits; 90 % of its weights are to go.

# %%
dense, data = load_model("digits-mlp"), load_data("digits")
model = deepcopy(dense)
calibration = data.calibration(1000, seed=0)
asked = {"sparsity": 0.9, "method": qprune.Networkwise(**run)}

# %% tags=["mine"]
pruned = qprune.prune(model, calibration, sampler="mean-field", evaluate=data.score, **asked)

# %% [markdown]
# The name is a convenience: the object itself does the same, and gives the same mask.


# %%
def prune_with(sampler):
    return qprune.prune(deepcopy(dense), calibration, sampler=sampler, **asked)


by_object = prune_with(MeanField())
assert all((by_object.mask[name] == kept).all() for name, kept in pruned.mask.items())

report = pruned.report
print(f"{report.achieved_sparsity:.1%} of the weights are zero")
print(f"test accuracy: {report.dense.accuracy:.1%} dense, {report.final.accuracy:.1%} pruned")

# %% [markdown]
# ## Is it any good?
#
# Runs take different paths, so their accuracy says little about a sampler. What each one finds on
# the *same* blocks says more. A sampler of one's own can also just listen: this one is the default
# and keeps every problem that `prune` puts to it. With 64 variables, branch and bound (`exact`)
# then proves the best answer to each.


# %%
class Listening(Relax):
    def sample_problem(self, problem, **options):
        problems.append(problem)
        return super().sample_problem(problem, **options)


problems = []
prune_with(Listening())
proofs = [get_sampler("exact").sample_problem(problem) for problem in problems]
blocks = [(p, proof.energy) for p, proof in zip(problems, proofs, strict=True) if proof.energy < 0]
print(f"{len(problems)} blocks, the optimum proved for {sum(p.info['proved'] for p in proofs)}")

# %%
found, seconds = {}, {}
for name in ("relax", "sa", "mean-field"):
    sampler, began = counting(name), time.process_time()
    energies = [sampler.sample_problem(problem, seed=0).energy for problem, _ in blocks]
    seconds[name] = (time.process_time() - began) / len(blocks)
    # An answer worse than no change (energy 0) is never taken, and so counts as nothing found.
    found[name] = [100 * max(0, e / best) for e, (_, best) in zip(energies, blocks, strict=True)]

# %%
looks = {
    "relax": ("the default", "o", {"markersize": 11, "fillstyle": "none", "color": "#0072b2"}),
    "sa": ("D-Wave's", "s", {"markersize": 4, "color": "#009e73"}),
    "mean-field": ("this notebook's", "D", {"markersize": 6, "color": "#d55e00"}),
}
figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
for name, shares in found.items():
    whose, marker, look = looks[name]
    label = f"{whose} ({name}), {1000 * seconds[name]:.0f} ms"
    axes.plot(range(1, len(shares) + 1), shares, marker, **look, label=label)
axes.axhline(100, color="#555555", linestyle="--", linewidth=1, zorder=0)
axes.set(xlabel="block, in the order of the run", ylabel="gain found, % of the proven best")
axes.set_title(
    f"Which of {run['block_size']} weights to prune: what each sampler finds", loc="left"
)
axes.grid(alpha=0.15)
axes.spines[["top", "right"]].set_visible(False)
title = "sampler, and its CPU time for a block"
figure.legend(frameon=False, loc="outside lower center", ncols=3, title=title)
plt.show()
site.cleanup()

# %% [markdown]
# Good enough to prune with, and slower than need be: part of its work goes into a penalty that
# stands in for "exactly this many". A sampler that keeps counts by its own moves (subclass
# `solvers.CountingSampler`, or take `cardinality` and `groups` in `sample`) is spared that.
