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
# # The energy ranks answers by the loss they bring
#
# `qprune` asks a sampler for the decision of least energy, where the energy is a second-order model
# of the loss. Is a lower energy a lower loss? Here one block of a small network gets dozens of
# answers, good and bad; each is carried out and measured on images that nothing was fitted to. The
# order holds, the amount does not, and the last percent is worth nothing. A minute on one core.

# %%
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn.functional import kl_div, log_softmax

import qprune
from solvers import solve

# %% tags=["parameters"]
asked = {"sparsity": 0.6, "compensate": False, "loss": qprune.DenseOutputs(fit_scale=False)}
expansion = {"stages": 1, "block_size": 1024, "samples_per_step": 4000}
in_stages = {"stages": 6, "rounds": 1, "final_rounds": 2, "block_size": 512}
spoilt, seeds = 40, [0, 1, 2, 3, 4]

# %% [markdown]
# ## One block
#
# A first pass prunes three fifths of the weights. Then the loss is expanded around the network as
# it is, on the calibration images and shifted copies of them, and a block of weights is offered:
# which of them should be zero? An observer keeps the question.

# %%
network, data = qprune.load_model("digits-mlp"), qprune.load_data("digits")
calibration = data.calibration(1200, seed=0)


def pruned(rounds, **more):
    method = qprune.Networkwise(final_rounds=rounds, **expansion)
    return qprune.prune(deepcopy(network), calibration, method=method, **asked | more)


blocks = []
first_pass = pruned(0).model
pruned(1, observe_blocks=blocks.append)
block = blocks[0]
problem = block.problem
print(f"{problem.num_variables} weights, of which {int(problem.counts[0])} are to be zero")

# %% [markdown]
# ## Answers of every quality
#
# Uniformly random decisions, swap descent, the convex relaxation, branch and bound with its
# certified bound; and, to fill the space between, the best answer with a share of its decisions
# shuffled.

# %%
rng = np.random.default_rng(0)
answers = {"random": [], "greedy": [], "relax": [], "exact": [], "spoilt": []}
for seed in range(5):
    answers["random"].append(rng.permutation(block.present))
    answers["greedy"].append(solve(problem, "greedy", seed=seed).sample)
    answers["relax"].append(solve(problem, "relax", seed=seed).sample)
proof = solve(problem, "exact", max_nodes=200)
answers["exact"].append(proof.sample)
for share in np.geomspace(0.01, 1, spoilt):
    shuffled = proof.sample.copy()
    place = rng.choice(shuffled.size, max(2, int(share * shuffled.size)), replace=False)
    shuffled[place] = rng.permutation(shuffled[place])
    answers["spoilt"].append(shuffled)

# %% [markdown]
# The variables of a problem are named by the weights' places in the network, so an answer can be
# carried out by hand. The loss is the one that was expanded: the divergence from the dense
# network's outputs, here on 500 test images.

# %%
matrices = [name for name, weight in network.named_parameters() if weight.dim() == 2]


def vector(model):
    return torch.cat([model.get_parameter(name).detach().flatten() for name in matrices])


dense_weights, start, places = vector(network), vector(first_pass), torch.tensor(problem.labels)


@torch.no_grad()
def losses(model):
    outputs = [log_softmax(m(data.test_inputs), dim=1) for m in (model, network)]
    return kl_div(*outputs, reduction="none", log_target=True).sum(1).numpy()


@torch.no_grad()
def carried_out(answer):
    weights, model = start.clone(), deepcopy(first_pass)
    weights[places] = dense_weights[places] * torch.from_numpy(answer == 0)
    sizes = [model.get_parameter(name).numel() for name in matrices]
    for name, values in zip(matrices, weights.split(sizes), strict=True):
        model.get_parameter(name).copy_(values.view_as(model.get_parameter(name)))
    return losses(model)


before = losses(first_pass)
energy = {name: [problem.energy(x) for x in found] for name, found in answers.items()}
real = {name: [carried_out(x) - before for x in found] for name, found in answers.items()}

# %%
NAMES = ("random", "greedy", "relax", "exact")
print(f"certified: no answer gains more than {-proof.lower_bound:.4f} nats")
for name in NAMES:
    lost = 100 * (1 - np.mean(energy[name]) / proof.lower_bound)
    told = f"promises {np.mean(energy[name]):8.4f} nats, brings {np.mean(real[name]):8.4f}"
    print(f"{name:7} {told}; misses {lost:7.2f} % of the energy")
pairs = [(e, r.mean()) for name in energy for e, r in zip(energy[name], real[name], strict=True)]
promise, outcome = np.array(pairs).T
good = promise < 0.5 * promise.min()
ratio = np.median(outcome[good] / promise[good])
rank = spearmanr(promise, outcome).statistic
error = np.std(real["relax"][0] - real["greedy"][0]) / np.sqrt(len(before))
better = np.mean(real["greedy"]) - np.mean(real["relax"])
print(f"rank correlation of promise and outcome: {rank:.3f}")
print(f"real / predicted, answers with half of the gain or more: {ratio:.2f}")
print(f"relax against greedy, on unseen images: {better:.4f} +- {1.96 * error:.4f} nats better")

# %% [markdown]
# ## Whole runs
#
# What is left of that at the end of a run? In stages to 90 %, mask only, one run a seed. The energy
# missed is that of all blocks of a run, from the relaxation's certified bounds.


# %%
def run(sampler, seed):
    energies, bounds = [], []

    def certify(block):
        found = solve(block.problem, "relax", present=block.present)
        energies.append(block.answer.energy)
        bounds.append(min(0.0, found.lower_bound))

    model = qprune.prune(
        deepcopy(network),
        data.calibration(1200, seed=seed),
        method=qprune.Networkwise(samples_per_step=4000, **in_stages),
        sampler=sampler,
        observe_blocks=certify,
        **asked | {"sparsity": 0.9, "seed": seed},
    ).model
    return 1 - sum(energies) / sum(bounds), losses(model).mean(), data.score(model).accuracy


runs = {name: np.array([run(name, seed) for seed in seeds]) for name in NAMES[:3]}
for name, found in runs.items():
    lost, loss, accuracy = found.mean(axis=0)
    spread = 1.96 * found[:, 1].std(ddof=1) / np.sqrt(len(seeds))
    told = f"misses {100 * lost:6.2f} % of the energy, ends at {loss:.4f} +- {spread:.4f} nats"
    print(f"{name:7} {told}, {100 * accuracy:.1f} % right")

# %%
LOOKS = {
    "spoilt": ("#999999", "."),
    "random": ("#d55e00", "o"),
    "greedy": ("#009e73", "s"),
    "relax": ("#0072b2", "X"),
    "exact": ("#cc79a7", "D"),
}


def show_promises(axes):
    for name, (color, marker) in LOOKS.items():
        means = [r.mean() for r in real[name]]
        axes.plot(energy[name], means, marker, color=color, label=name)
    ends = np.array([min(promise), max(promise)])
    axes.plot(ends, ends, color="#555555", linewidth=0.8, label="promise kept")
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set(xlabel="promised change of loss, nats", ylabel="change on unseen images, nats")
    axes.set_title(f"The order holds: rank correlation {rank:.2f}", loc="left")
    axes.legend(frameon=False)


def show_best(axes):
    base = real["relax"][0]
    for name in ("exact", "relax", "greedy"):
        color, marker = LOOKS[name]
        for e, r in zip(energy[name], real[name], strict=True):
            spread = 1.96 * (r - base).std() / np.sqrt(len(r))
            above = e / proof.lower_bound
            axes.errorbar(
                100 * (1 - above), 1000 * (r - base).mean(), 1000 * spread, fmt=marker, color=color
            )
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set(xlabel="energy missed, %", ylabel="loss above relax's first answer, thousandths")
    axes.set_title("The best answers, image by image", loc="left")


def show_runs(axes):
    for name, found in runs.items():
        color, marker = LOOKS[name]
        missed = np.maximum(100 * found[:, 0], 0.01)
        axes.plot(missed, found[:, 1], marker, color=color, label=name)
    axes.set_xscale("log")
    axes.set(xlabel="energy missed, %", ylabel="loss at the end, nats")
    axes.set_title("Whole runs, one point a seed", loc="left")


with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5}):
    figure, panels = plt.subplots(1, 3, figsize=(12.5, 4.2), layout="constrained")
    for show, axes in zip((show_promises, show_best, show_runs), panels, strict=True):
        show(axes)
    plt.show()

# %% [markdown]
# A sampler that searches at all is worth a great deal; among those that search well, the energy
# still says which is better, but by less than a few hundred test images, or another seed, can show.
