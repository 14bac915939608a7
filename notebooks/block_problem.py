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
# # What does the question look like that a sampler is asked?
#
# Pruning asks, for one block of weights after another: which of these should be zero? Here one such
# question is taken out of a real run and looked at: its curvature, its couplings, its convex
# relaxation, and the scale on which annealers have to work.

# %%
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import SymLogNorm

import qprune
from qprune.models.datasets import load_data
from qprune.models.zoo import load_model
from solvers.ask import counting
from solvers.convex.bounds import relax
from solvers.convex.relax import Relax
from solvers.registry import get_sampler

# %% tags=["parameters"]
run = {"stages": 2, "rounds": 1, "final_rounds": 1, "block_size": 256, "num_blocks": 3}
reads = 20

# %% [markdown]
# A sampler sees every problem, so one that only listens can keep them. Of a short run's blocks we
# take the hardest: the one whose relaxation (below) leaves the most variables open.


# %%
class Listening(Relax):
    def sample_problem(self, problem, **options):
        problems.append(problem)
        return super().sample_problem(problem, **options)


problems = []
network, data = load_model("digits-mlp"), load_data("digits")
qprune.prune(
    deepcopy(network),
    data.calibration(1000, seed=0),
    sparsity=0.9,
    method=qprune.Networkwise(**run),
    sampler=Listening(),
    compensate=False,
)
problem = max(problems, key=lambda problem: relax(problem).num_fractional)
n, count = problem.num_variables, int(problem.counts[0])
print(f"{len(problems)} blocks; the hardest: {n} weights, of which {count} are to be zero")

# %% [markdown]
# With $x_i = 1$ for a pruned weight, the predicted change of the loss, in nats, is
#
# $$E(x) = \text{offset} + c \cdot x + \tfrac{1}{2}\, x \cdot Q\, x, \qquad \sum_i x_i = k.$$
#
# $Q$ comes from gradients of single samples, so no direction has negative curvature. That makes the
# *relaxed* problem, $0 \le x_i \le 1$, convex: it can be solved, and its energy is a lower bound.
# For so few variables branch and bound closes what is left, and proves the best decision.

# %%
Q = problem.quadratic.dense()
curvature = np.linalg.eigvalsh(Q)[::-1]
relaxed = relax(problem)
share = relaxed.convex.unsorted(relaxed.x)
best = get_sampler("exact").sample_problem(problem, seed=0)
print(f"staying as we are  {0:10.6f} nats")
print(f"best decision      {best.energy:10.6f} nats, proved: {best.info['proved']}")
print(f"relaxation         {relaxed.energy:10.6f} nats, a lower bound")
right = (np.round(share) == best.sample)[(share < 1e-3) | (share > 1 - 1e-3)]
print(f"{relaxed.num_fractional} of {n} variables are fractional in the relaxation;")
print(f"of the {right.size} others, {right.sum()} are in the best decision what they are here")

# %% [markdown]
# An annealer moves by small changes, here by *swaps*: prune one weight, restore another. What the
# cheapest swap of each weight costs at the best decision is the scale it has to resolve.

# %%
x, field = best.sample, problem.fields(best.sample)[0]
diagonal = np.diag(Q)
up = field + diagonal / 2  # cost of pruning one more
down = -field + diagonal / 2  # cost of restoring one
swap = up[x == 0][None, :] + down[x == 1][:, None] - Q[np.ix_(x == 1, x == 0)]
cheapest = np.sort(np.concatenate([swap.min(axis=0), swap.min(axis=1)]))

# %% [markdown]
# The samplers say between which temperatures they annealed. D-Wave's simulated annealing derives
# them from the largest and the smallest coefficients, and gets the count as a penalty. Annealing by
# swaps derives them from what swaps cost.

# %%
answers = {
    name: counting(name).sample_problem(problem, num_reads=reads, seed=0)
    for name in ("sa", "swap-anneal", "relax")
}
hot_cold = {
    "sa": 1 / np.array(answers["sa"].info["child"]["beta_range"], float),
    "swap-anneal": 1 / np.array(answers["swap-anneal"].info["beta_range"], float),
}
for name, answer in answers.items():
    lost = 100 * (answer.energies - best.energy) / abs(best.energy)
    print(
        f"{name:12} above the optimum: best read {lost.min():.3f} %, median {np.median(lost):.3f} %"
    )

# %%
BLUE, RED, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#555555"


def show_curvature(axes):
    axes.semilogy(np.arange(1, n + 1), np.maximum(curvature, 1e-12), color=BLUE)
    axes.set_ylim(curvature[0] * 1e-8, curvature[0] * 3)
    axes.set(xlabel="eigenvalue, largest first", ylabel="curvature, nats")
    axes.set_title("Curvature: never negative, over many decades", loc="left")


def show_couplings(figure, axes):
    lead = np.linalg.eigh(Q)[1][:, -1]
    # 96 of the weights are enough to see the pattern.
    order = np.argsort(lead)[np.linspace(0, n - 1, min(n, 96)).astype(int)]
    shown = Q[np.ix_(order, order)].copy()
    np.fill_diagonal(shown, 0)
    top = np.abs(shown).max()
    drawn = axes.imshow(shown, cmap="PuOr", norm=SymLogNorm(top / 1000, vmin=-top, vmax=top))
    axes.set(xticks=[], yticks=[], xlabel="weights, sorted by the strongest direction")
    axes.set_title("Couplings: all with all, mostly weak", loc="left")
    figure.colorbar(
        drawn,
        ax=axes,
        label="coupling, nats",
        ticks=[-top, -top / 100, 0, top / 100, top],
        format="%.0e",
        shrink=0.85,
    )


def show_relaxation(axes):
    order = np.argsort(share)
    place = np.arange(n)
    for value, color, marker in ((0, GREEN, "o"), (1, RED, "s")):
        mine = best.sample[order] == value
        label = "best decision prunes it" if value else "best decision keeps it"
        axes.plot(place[mine], share[order][mine], marker, color=color, markersize=3.5, label=label)
    axes.set(xlabel="weights, sorted", ylabel="pruned, in the relaxation")
    axes.set_title(f"The relaxation leaves {relaxed.num_fractional} of {n} open", loc="left")
    axes.legend(frameon=False, loc="upper left")


def show_scales(axes):
    axes.semilogy(
        np.arange(1, cheapest.size + 1),
        np.maximum(cheapest, 1e-12),
        color=BLUE,
        label="cheapest swap of each weight",
    )
    spans = {"sa": (0.80, RED, "D-Wave's SA"), "swap-anneal": (0.92, GREEN, "swap-anneal")}
    for name, (place, color, label) in spans.items():
        hot, cold = hot_cold[name]
        axes.plot(
            [place * n] * 2,
            [cold, hot],
            color=color,
            linewidth=7,
            alpha=0.8,
            solid_capstyle="butt",
            label=f"temperatures of {label}",
        )
    axes.set(xlabel="weights, cheapest first", ylabel="nats")
    axes.set_title("What a swap costs, and where annealers look", loc="left")
    axes.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(0.77, 0))


# %%
with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5}):
    figure, panels = plt.subplots(2, 2, figsize=(10.5, 7.8), layout="constrained")
    show_curvature(panels[0, 0])
    show_couplings(figure, panels[0, 1])
    show_relaxation(panels[1, 0])
    show_scales(panels[1, 1])
    plt.show()

# %% [markdown]
# Two lessons. The problem is convex in all but the zeros and ones, so a solver that knows it starts
# next to the answer. And its energies lie close together: an annealer that takes its temperatures
# from coefficients spends most of its sweeps where everything, or nothing, is accepted.
