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
# # What does it take to ask a quantum processor?
#
# A pruning block couples every weight with every other and wants an exact count. A quantum annealer
# couples a qubit with some fifteen others, knows no counts, and sets couplings to about a percent.
# This notebook follows one block onto a chip. The chip is a mock that D-Wave ships for tests: real
# layout and timing, but classical annealing inside, to which we add the noise. It needs no account.

# %%
from unittest.mock import patch

import dimod
import matplotlib.pyplot as plt
import numpy as np
from dwave.samplers import SimulatedAnnealingSampler
from dwave.system.testing import MockDWaveSampler

from solvers import get_sampler
from solvers.foreign.charges import Submission
from solvers.foreign.strength import first_strength, penalised, strength_bound
from solvers.study import generate

# %% tags=["parameters"]
n, reads = 24, 200
factors = np.geomspace(0.05, 3.0, 12)
many_reads = [1, 10, 100, 1000]

# %% [markdown]
# ## The problem
#
# Half of the weights are to be pruned. For so few, the best decision can be proved.

# %%
problem = generate(f"fisher:n={n},samples={n // 2},seed=3").problem
best = get_sampler("exact").sample_problem(problem, seed=0)
rng = np.random.default_rng(0)
random = problem.energies([rng.permutation(best.sample) for _ in range(1000)]).mean()
print(f"{n} weights, {problem.counts[0]} of them to be pruned")
print(f"energy of the best decision {best.energy:.3f}, of a random one {random:.2f}")

# %% [markdown]
# ## The chip
#
# The processor sees $h$ and $J$ scaled into its range, each with an error of about one percent of
# it. On a real one nothing has to be patched: `get_sampler("qpu-clique")` finds the account.


# %%
class Noisy(dimod.Sampler):
    """Classical annealing of a model whose coefficients the chip has set imprecisely."""

    parameters, properties = {"num_reads": []}, {}
    noise = 0.01

    def sample(self, bqm, num_reads=1, **_):
        self.calls = getattr(self, "calls", 0) + 1
        rng = np.random.default_rng(self.calls)
        h, (row, col, J), _ = bqm.to_numpy_vectors(variable_order=list(bqm.variables))
        scale = max(np.abs(h).max() / 4, np.abs(J).max())
        h = h / scale + 4 * self.noise * rng.normal(size=h.size)
        J = J / scale + self.noise * rng.normal(size=J.size)
        names = list(bqm.variables)
        seen = dimod.BQM.from_numpy_vectors(h, (row, col, J), 0.0, "SPIN", variable_order=names)
        annealer = SimulatedAnnealingSampler()
        answer = annealer.sample(seen, num_reads=num_reads, num_sweeps=100, seed=self.calls)
        return dimod.SampleSet.from_samples_bqm(answer, bqm)


def chip(**_):
    return MockDWaveSampler(
        topology_type="pegasus",
        topology_shape=[5],
        parameter_warnings=False,
        substitute_sampler=Noisy(),
        substitute_kwargs={},
        exact_solver_cutoff=0,
    )


events = []
with patch("dwave.system.samplers.clique.DWaveSampler", chip):
    sampler = get_sampler("qpu-clique", observe=events.append)
print(f"{len(sampler.child.target_graph)} qubits; all-to-all up to {sampler.largest_clique_size}")

# %% [markdown]
# ## Embedding
#
# A variable becomes a *chain* of qubits, long enough to meet every other chain. Chains grow with
# the number of variables, and the qubits with its square.

# %%
sizes = range(2, sampler.largest_clique_size + 1)
chains = [list(map(len, sampler.child.clique(size).values())) for size in sizes]
embedding = sampler.child.clique(n)
print(f"{n} variables take {sum(map(len, embedding.values()))} qubits")

# %% [markdown]
# ## The count, and the chains
#
# The count becomes a penalty, and chains are held together by couplings of their own. Both use up
# range: what is left for the problem itself has to stand out from the noise. So the penalty is kept
# far below the strength that is proved to be enough, and answers with a wrong count are left out.
#
# A decision's worth: 100 % is the best there is, 0 % what a random one is worth on the average.

# %%
bqm = penalised(problem, 3 * first_strength(problem)).to_bqm()
largest = max(abs(value) for value in bqm.spin.quadratic.values())


def asked(factor, num_reads=reads):
    answer = sampler.sample(bqm, num_reads=num_reads, chain_strength=factor * largest)
    states = answer.record.sample[:, np.argsort(list(answer.variables))]
    counted = problem.feasible(states)
    energies = problem.energies(states[counted]) if counted.any() else np.array([random])
    return {
        "broken": 100 * answer.record.chain_break_fraction.mean(),
        "counted": 100 * counted.mean(),
        "worth": 100 * (random - energies.min()) / (random - best.energy),
    }


swept = {factor: asked(factor) for factor in factors}
print("chain strength  chains broken  counts exact  worth of the best")
for factor, told in list(swept.items())[::3]:
    percent = "".join(f"{told[name]:13.1f} %" for name in ("broken", "counted", "worth"))
    print(f"{factor:14.2f}{percent}")

# %% [markdown]
# ## The bill
#
# A processor is paid for by the second of access. Every call announces its cost beforehand, and can
# be refused: `max_charge_seconds=` is a budget, `confirm=` asks.

# %%
chosen = max(swept, key=lambda factor: swept[factor]["worth"])
events.clear()
bills = [asked(chosen, num_reads) for num_reads in many_reads]
announced = [event.seconds for event in events if isinstance(event, Submission)]
for num_reads, seconds in zip(many_reads, announced, strict=True):
    print(f"{num_reads:5} reads: {1000 * seconds:6.1f} ms announced")

# %%
BLUE, RED, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#555555"


def show_qubits(axes):
    axes.plot(sizes, [sum(c) for c in chains], color=BLUE, label="qubits")
    axes.plot(sizes, sizes, color=GREY, linestyle="--", linewidth=1, label="one each")
    axes.plot([n], [sum(map(len, embedding.values()))], "o", color=BLUE)
    axes.set(xlabel="variables, all coupled", ylabel="qubits")
    axes.set_title("All with all: qubits grow with the square", loc="left")
    axes.legend(frameon=False)


def show_range(axes):
    plain = np.sort(np.abs(list(problem.to_bqm().spin.quadratic.values())))[::-1]
    proved = penalised(problem, strength_bound(problem)).to_bqm().spin.quadratic.values()
    axes.semilogy(plain / plain.max(), color=BLUE, label="the problem alone")
    drowned = plain / np.abs(list(proved)).max()
    axes.semilogy(drowned, color=RED, label="beside a penalty proved to be enough")
    axes.axhspan(1e-4, Noisy.noise, color=GREY, alpha=0.2, linewidth=0)
    axes.text(2, 1.3e-4, "below the chip's precision", color=GREY, fontsize=8.5)
    axes.set(xlabel="couplings, largest first", ylim=(1e-4, 1.5))
    axes.set_ylabel("share of the chip's range")
    axes.set_title("Most couplings are below the chip's precision", loc="left")
    axes.legend(frameon=False, fontsize=8.5)


def show_chains(axes):
    shown = {
        "broken": ("s-", RED, "chains broken"),
        "counted": ("^-", GREEN, "answers with the exact count"),
        "worth": ("o-", BLUE, "worth of the best of them"),
    }
    for name, (mark, color, label) in shown.items():
        values = [told[name] for told in swept.values()]
        axes.semilogx(factors, values, mark, color=color, label=label)
    axes.axvline(chosen, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="chain strength, times the largest coupling", ylabel="%", ylim=(-3, 103))
    axes.set_title(f"Chain strength, {reads} reads", loc="left")
    axes.legend(frameon=False, fontsize=8.5)


def show_bill(axes):
    axes.semilogx(many_reads, [bill["worth"] for bill in bills], "o-", color=BLUE)
    for num_reads, seconds, bill in zip(many_reads, announced, bills, strict=True):
        told = f"{1000 * seconds:.0f} ms"
        axes.annotate(
            told,
            (num_reads, bill["worth"]),
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    axes.axhline(100, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="reads", ylabel="worth of the best answer, %", ylim=(0, 112))
    axes.set_title("The bill: processor time for one block", loc="left")
    axes.margins(x=0.1)


# %%
with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5}):
    figure, panels = plt.subplots(2, 2, figsize=(10.5, 7.6), layout="constrained")
    show_qubits(panels[0, 0])
    show_range(panels[0, 1])
    show_chains(panels[1, 0])
    show_bill(panels[1, 1])
    plt.show()
