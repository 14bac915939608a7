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
# # Which sampler is best, and is that more than luck?
#
# A comparison that can be trusted gives everyone the same problems and the same time, lets the
# problem and not the sampler say what an answer is worth, repeats itself with other seeds, and
# shows what failed. `compare` does that; the rest of this notebook reads its rows.

# %%
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt

from solvers.study import compare, generate, read_study
from solvers.study.measures import (
    anytime,
    at_budget,
    fastest,
    in_order,
    largest_budget,
    median_gaps,
    rank,
    reaching,
    references,
    time_to_target,
)
from solvers.study.report.page import write_report
from solvers.study.report.style import looks_of

# %% tags=["parameters"]
sizes, copies = [32, 128, 384], 2
budgets, repeats = ["0.03s", "0.3s"], 3

# %% [markdown]
# The problems are made up, but have the shape of pruning blocks: convex, of low rank, with exact
# counts. `read_instances` takes files instead, or a folder that `qprune prune --record-blocks`
# wrote. Two settings of one sampler are two samplers here, told apart by a label.

# %%
problems = [
    generate(f"fisher:n={n},samples={n // 2},seed={c}") for n in sizes for c in range(copies)
]
samplers = [
    "relax",
    "swap-anneal",
    "sa",
    ("sa, 20 sweeps", "sa", {"num_sweeps": 20}),
    "tabu",
    "greedy",
]
home = TemporaryDirectory()
study = compare(problems, samplers, budgets, repeats, seed=0, folder=home.name)
print(study.rows.groupby("status").size().to_string())

# %% [markdown]
# One row is one run. Rows are on disk as soon as they are there: killed at any moment, the same
# call goes on with the runs that are missing, and a folder of another study is refused.

# %%
again = read_study(home.name)
assert len(again.rows) == len(study.rows)
names = [one if isinstance(one, str) else one[0] for one in samplers]
rows = in_order(again.rows, again.problems.problem, names)
rows[["problem", "sampler", "budget", "seed", "energy", "num_reads", "feasible_share"]].head(4)

# %% [markdown]
# Every energy is held against the best that anyone found, and against the best lower bound: `relax`
# certifies one with each answer. Where both meet, that is the optimum.

# %%
against = references(rows, again.problems)
against[["n", "best", "lower_bound", "optimum"]].round(4)

# %% [markdown]
# The gap is (E - best) / max(|E|, |best|). Its median over the repeats, at the largest budget:

# %%
top = at_budget(rows, *largest_budget(rows))
gaps = median_gaps(top, against)
(100 * gaps).round(2)

# %% [markdown]
# Ranks do not care how large a gap is, only who has the smaller one. Friedman's test asks whether
# they could come from samplers that are all alike; Nemenyi's, which pairs could be. A handful of
# problems tells few pairs apart, however large the gaps: that takes dozens.

# %%
ranking = rank(gaps)
print(ranking.mean_ranks.round(2).to_string())
print(
    f"p = {ranking.p_value:.2g} that all {len(names)} are alike, on {ranking.num_problems} problems"
)
alike = ranking.pairwise.loc["relax"].drop("relax")
print(f"told apart from relax at 5 %: {(alike < 0.05).sum()} of {len(alike)}")

# %% [markdown]
# A sampler that is fast but uncertain can be started again. TTS99 is the time after which it has
# come within 1 % of the best with 99 % certainty, restarts included; intervals are bootstrapped.

# %%
times = fastest(time_to_target(reaching(rows, against, target=0.01)))
wanted = times[times.n == max(sizes)]
wanted.set_index(["problem", "sampler"])[["hits", "runs", "tts", "tts_low", "tts_high"]].round(4)

# %% [markdown]
# All of that, and more, is one page: `write_report` leaves it in the study's folder, with figures
# and tables for a paper beside it. On the command line, `qprune compare` does both.

# %%
page = write_report(home.name)
beside = sorted(path.name for path in page.parent.rglob("*.pdf"))
print(page.name, f"{page.stat().st_size / 1000:.0f} kB;", ", ".join(beside))

# %%
curve = anytime(rows, against)
looks = looks_of(names)
largest = curve[curve.n == max(sizes)]
chosen = largest[largest.problem == largest.problem.iloc[0]]

# %%
with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5}):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
    for name in names:
        mine = chosen[chosen.sampler == name]
        left.plot(mine.seconds, (100 * mine.gap).clip(lower=0.01), **looks[name].line, markevery=8)
        mine = times[times.sampler == name]
        median = mine.groupby("n").tts.median()
        right.plot(median.index, median, **looks[name].line, label=name)
    left.set(xscale="log", yscale="log", xlabel="seconds in the sampler")
    left.set_ylabel("gap to best known, % (0.01 is found)")
    left.set_title(f"{max(sizes)} variables: what it has found by then", loc="left")
    right.set(xscale="log", yscale="log", xlabel="variables", ylabel="TTS99 to 1 %, s")
    right.set_xticks(sizes, sizes)
    right.minorticks_off()
    right.set_title("Time to be within 1 %; where a line ends, it never was", loc="left")
    figure.legend(frameon=False, loc="outside lower center", ncols=6)
    plt.show()
home.cleanup()
