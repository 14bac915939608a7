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
# # How much of a language model can go before it shows?
#
# A language model is pruned layer by layer: each matrix is to keep its outputs on some calibration
# text. `qprune` then looks at all layers together. To see what each step is worth, a small LLaMA
# is trained here on text that comes with Python, its documentation, letter by letter. It is no
# model to talk to, but it has all that a large one has: attention, gates, norms, perplexity.

# %%
import copy
import string
import warnings
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import pandas as pd
import torch

# Progress bars fall back to text where ipywidgets is not installed.
warnings.filterwarnings("ignore", "IProgress not found")
from transformers import LlamaConfig, LlamaForCausalLM

import qprune
from qprune.models.evaluate import perplexity
from qprune.models.pretrained import load_pretrained, load_tokenizer
from qprune.models.text import random_windows

# %% tags=["parameters"]
folder = None  # of a model of your own, with config.json and tokenizer
width, layers, steps = 64, 3, 500
num_samples, length = 64, 64
sparsities, shown = [0.5, 0.6, 0.7, 0.8, 0.9], 0.8
distilled = 120

# %% [markdown]
# One token is one letter. The last tenth of the text is only ever scored on, and calibration takes
# random windows from the rest.

# %%
letters = string.printable
text = "".join(letter for topic in topics.values() for letter in topic if letter in letters)
if folder is None:
    tokens = torch.tensor([letters.index(letter) for letter in text])
else:
    tokens = torch.tensor(load_tokenizer(folder)(text)["input_ids"])
end = 9 * len(tokens) // 10
calibration = random_windows(tokens[:end], num_samples, length, seed=0)
test = tokens[end:][: 100 * length].view(-1, length)
print(f"{end:,} tokens to learn from, {test.numel():,} of the others to score on")


# %%
def trained():
    """A LLaMA of a hundred thousand weights; in half a minute it learns words and their order."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    config = LlamaConfig(vocab_size=len(letters), num_attention_heads=4, **sizes)
    model = LlamaForCausalLM(config).train()
    adam = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, steps)
    for step in range(steps):
        batch = random_windows(tokens[:end], 16, length, seed=step)
        model(batch, labels=batch).loss.backward()
        adam.step()
        schedule.step()
        adam.zero_grad()
    return model.eval()


dense = trained() if folder is None else load_pretrained(folder)
before = perplexity(dense, test)
guess = torch.bincount(tokens[:end]) / end
entropy = -(guess[guess > 0] * guess[guess > 0].log()).sum()
print(f"perplexity {before:.2f}; by how frequent each token is alone: {entropy.exp():.2f}")

# %% [markdown]
# Perplexity is the number of equally likely tokens between which the model, on average, hesitates:
# a step from 4 to 5 is plain to see in what it writes. Here is what the usual methods do to one
# matrix after another. *magnitude* keeps large weights, *Wanda* those that meet large inputs;
# *SparseGPT* lets the kept weights make up for what went, in one sweep; *reconstruct* searches the
# mask by swaps until none helps, and refits.

# %%
methods = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT"}
methods["reconstruct"] = "reconstruct"
table = pd.DataFrame(index=pd.Index(sparsities, name="sparsity"), dtype=float)
examples = {"dense": dense}
# Wanda, as published, compares weights within each output row, the others within each matrix.
by_row, by_matrix = qprune.PerRow(alone=True), qprune.PerLayer(alone=True)
for method, name in methods.items():
    for sparsity in sparsities:
        model = copy.deepcopy(dense)
        qprune.prune(
            model,
            calibration,
            sparsity=sparsity,
            method=qprune.Layerwise(method, shares=None),
            budget=by_row if method == "wanda" else by_matrix,
        )
        table.loc[sparsity, name] = perplexity(model, test)
        if (name, sparsity) == ("magnitude", shown):
            examples[name] = model
table.round(2)

# %% [markdown]
# All of these prune every matrix alike. `qprune` first asks what the loss at the network's end
# would feel of each, shares the count among the layers accordingly, reconstructs, and then moves
# weights of all layers together: blocks of restore-or-prune choices go to a sampler, and kept
# weights follow the dense network's outputs. A change is taken only when sequences that were held
# back agree. Nothing but the calibration windows is seen.

# %%
loss = qprune.DenseOutputs(fit_scale=False)
layers_first = qprune.Layerwise(shares=qprune.Sensitivity(loss=loss))
then_across = qprune.Networkwise(
    start=None,
    rounds=1,
    final_rounds=1,
    num_blocks=16,
    samples_per_step=64,
    damping=300.0,
    accept_share=0.125,
)
reports = {}
for sparsity in sparsities:
    model = copy.deepcopy(dense)
    pruned = qprune.prune(
        model,
        calibration,
        sparsity=sparsity,
        method=(layers_first, then_across),
        compensate=qprune.Distillation(distilled, final_steps=1, at_end=True),
        loss=loss,
    )
    table.loc[sparsity, "qprune"] = perplexity(model, test)
    reports[sparsity] = pruned.report
    if sparsity == shown:
        examples["qprune"] = model
table.round(2)

# %% [markdown]
# What the layers have to give differs, and the budgets say so:

# %%
budgets = pd.Series({layer.name: layer.sparsity for layer in reports[shown].layers})
places = budgets.index.str.extract(r"layers\.(\d+)\.\w+\.(\w+)$").to_numpy().T
by_layer = pd.Series(budgets.to_numpy(), index=list(places)).unstack(sort=False)
(100 * by_layer).round(1)

# %% [markdown]
# And this is how it reads. All three go on from the same words and draw letters with the same
# luck; a model that was cut too deep forgets how to spell.

# %%
prompt = "The following sections describe the "
with torch.no_grad():
    for name, model in examples.items() if folder is None else ():
        written = torch.tensor([[letters.index(letter) for letter in prompt]])
        luck = torch.Generator().manual_seed(1)
        for _ in range(70):
            chances = torch.softmax(2 * model(written[:, -length:]).logits[0, -1], -1)
            drawn = torch.multinomial(chances, 1, generator=luck)
            written = torch.cat([written, drawn[None]], dim=1)
        ending = "".join(letters[token] for token in written[0, len(prompt) :])
        print(f"{name:10} ...{ending!r}")

# %%
colors = dict(
    zip(table.columns, ("#4d4d4d", "#e69f00", "#56b4e9", "#009e73", "#d55e00"), strict=True)
)
with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5}):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    for name, mark in zip(table.columns, "sv^Do", strict=True):
        left.plot(100 * table.index, table[name], marker=mark, color=colors[name], label=name)
    left.axhline(before, color="black", lw=0.9, ls="--")
    left.annotate("dense", (100 * sparsities[-1], before), (-28, -12), textcoords="offset points")
    left.set(yscale="log", xlabel="zero weights in the blocks, %", ylabel="test perplexity")
    left.set_yticks([6, 8, 10, 15, 20, 30], [6, 8, 10, 15, 20, 30])
    left.minorticks_off()
    left.set_title("What pruning costs", loc="left")
    left.legend(frameon=False)
    image = right.imshow(100 * by_layer, cmap="cividis_r", aspect="auto")
    for (i, j), share in pd.DataFrame(by_layer.to_numpy()).stack().items():
        dark = image.norm(100 * share) > 0.55
        right.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color="w" if dark else "k")
    right.set_xticks(range(by_layer.shape[1]), by_layer.columns, rotation=30, ha="right")
    right.set_yticks(range(by_layer.shape[0]), by_layer.index)
    right.set(ylabel="layer")
    right.set_title(f"Where qprune takes {100 * shown:g} %: zero weights, %", loc="left")
    plt.show()
