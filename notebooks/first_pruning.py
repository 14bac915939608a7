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
# # How many weights can a network lose?
#
# A small network that reads handwritten digits is pruned three ways, further and further: by
# magnitude, by Wanda, and by `qprune`, which asks for one batch of weights after another which of
# them should be zero. A minute or two on one core.

# %%
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np

import qprune
from qprune.distributed.workers import limited_threads
from qprune.models.datasets import load_data
from qprune.models.zoo import load_model

# %% tags=["parameters"]
sparsities = [0.7, 0.8, 0.9, 0.95, 0.98]
shown = 0.95
steps = {"stages": 8, "rounds": 1, "final_rounds": 5}

# %% [markdown]
# The network has layers of 64, 64 and 10 units on images of 8 x 8 pixels, and is trained on the
# spot. Pruning sees 1,000 training images, a fifth of which it only judges steps by. The 500 test
# images are for the scores below and nothing else.

# %%
dense, data = load_model("digits-mlp"), load_data("digits")
calibration = data.calibration(1000, seed=0)
print(dense)
print(f"test accuracy: {data.score(dense).accuracy:.1%}")

# %% [markdown]
# The two one-shot methods score every weight once and drop the lowest. Magnitude compares weights
# over the whole network; Wanda, as published, within each output unit.


# %%
def one_shot(start, budget, sparsity):
    return qprune.prune(
        deepcopy(dense),
        calibration,
        sparsity=sparsity,
        budget=budget,
        method=qprune.Networkwise(start=start, stages=1, rounds=0),
        compensate=False,
    )


# %% [markdown]
# `qprune` begins with such a first pass, then reconsiders. Each step takes a block of pruned and
# kept weights, expands the loss on it to second order, and lets a sampler choose which to prune.
# The answer is taken only if the real loss, on images that the step did not use, agrees. The
# sparsity rises in stages, and kept weights move to their optimum, which the one-shot methods leave
# out (as `compensate=False` would here).


# %%
def reconsidered(sparsity):
    method = qprune.Networkwise(**steps)
    return qprune.prune(deepcopy(dense), calibration, sparsity=sparsity, method=method)


# %%
with limited_threads(1):
    pruned = {
        "magnitude": {s: one_shot("magnitude", "global", s) for s in sparsities},
        "Wanda": {s: one_shot("wanda", "row", s) for s in sparsities},
        "qprune": {s: reconsidered(s) for s in sparsities},
    }

# %%
accuracy = {
    method: [data.score(run.model).accuracy for run in runs.values()]
    for method, runs in pruned.items()
}
print(f"{'sparsity':12}" + "".join(f"{s:8.0%}" for s in sparsities))
for method, values in accuracy.items():
    print(f"{method:12}" + "".join(f"{value:8.1%}" for value in values))

# %% [markdown]
# Why the difference? Four views: the accuracy that is left; where the zeros are; which pixels the
# first layer still looks at; and whether the quadratic model, which makes the choices, can be
# believed.

# %%
COLORS = {"magnitude": "#e69f00", "Wanda": "#009e73", "qprune": "#0072b2"}
MARKERS = {"magnitude": "s", "Wanda": "^", "qprune": "o"}


def show_accuracy(axes):
    level = 100 * data.score(dense).accuracy
    axes.axhline(level, color="#555555", linestyle="--", linewidth=1, label="dense")
    for method, values in accuracy.items():
        look = {"color": COLORS[method], "marker": MARKERS[method]}
        axes.plot([100 * value for value in values], **look, label=method)
    axes.set_xticks(range(len(sparsities)), [f"{100 * s:g}" for s in sparsities])
    axes.set(ylim=(0, 105), xlabel="weights that are zero, %", ylabel="test accuracy, %")
    axes.set_title("What is left", loc="left")
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.85))


def show_layers(axes):
    for offset, (method, runs) in zip((-0.25, 0, 0.25), pruned.items(), strict=True):
        layers = runs[shown].report.layers
        kept = [100 * (1 - layer.sparsity) for layer in layers]
        places = np.arange(len(layers)) + offset
        bars = axes.barh(places, kept, 0.23, color=COLORS[method], label=method)
        axes.bar_label(bars, [layer.num_weights - layer.num_pruned for layer in layers], padding=3)
    names = [f"{layer.name}\n{layer.shape[1]} to {layer.shape[0]}" for layer in layers]
    axes.set_yticks(range(len(layers)), names)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("weights kept, % of the layer (number at the bar)")
    axes.set_title(f"Where they are kept, {shown:.0%} pruned", loc="left")
    axes.legend(frameon=False, loc="upper right")


def show_pixels(figure):
    figure.suptitle(f"What the first layer looks at, {shown:.0%} pruned", x=0.08, ha="left")
    images = {
        method: runs[shown].mask["fc1.weight"].sum(dim=0).reshape(8, 8).numpy()
        for method, runs in pruned.items()
    }
    top = max(int(image.max()) for image in images.values())
    panels = list(figure.subplots(2, 2).flat)
    panels[0].imshow(data.test_inputs.std(dim=0).reshape(8, 8).numpy(), cmap="gray")
    panels[0].set_title("where digits differ", fontsize=10)
    for axes, (method, image) in zip(panels[1:], images.items(), strict=True):
        drawn = axes.imshow(image, cmap="cividis", vmin=0, vmax=top)
        axes.set_title(method, fontsize=10)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
    label = "weights kept at the pixel, of 64"
    figure.colorbar(drawn, ax=panels, shrink=0.8, label=label)


def show_prediction(axes):
    told = [s for run in pruned["qprune"].values() for s in run.report.steps if s.predicted]
    taken = np.array([step.accepted for step in told])
    predicted = 1000 * np.array([step.predicted for step in told])
    real = 1000 * np.array([step.at_once for step in told])
    low = min(predicted.min(), real.min())
    axes.plot([low, 0], [low, 0], color="#555555", linestyle="--", label="as predicted")
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.plot(predicted[taken], real[taken], "o", color="#0072b2", alpha=0.7, label="taken")
    axes.plot(predicted[~taken], real[~taken], "x", color="#d55e00", label="refused")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel="predicted change of the loss, millinats", ylabel="real change, millinats")
    axes.set_title("What the model promised, and what came", loc="left")
    axes.legend(frameon=False)


# %%
with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
    figure = plt.figure(figsize=(10.5, 8.2), layout="constrained")
    (left_top, right_top), (left_bottom, right_bottom) = figure.subfigures(2, 2)
    show_accuracy(left_top.subplots())
    show_layers(right_top.subplots())
    show_pixels(left_bottom)
    show_prediction(right_bottom.subplots())
    plt.show()
