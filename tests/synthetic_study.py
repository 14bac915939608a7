"""Rows of a study that never ran: what each sampler does is known, so that measures can be held
against it.
"""

import numpy as np
import pandas as pd

SIZES = {"block-64": 64, "block-256": 256, "block-1024": 1024, "gka-a": 100}
BEST = {"block-64": -10.0, "block-256": -40.0, "block-1024": 12.5, "gka-a": -3000.0}
SAMPLERS = ("relax", "swap-anneal", "sa", "tabu", "random")
BUDGETS = (0.1, 0.4, 1.6)
#: How fast each sampler closes its gap.
SPEED = {"relax": 40.0, "swap-anneal": 8.0, "sa": 1.5, "tabu": 1.0, "random": 0.05}


def problems():
    return pd.DataFrame(
        {
            "problem": list(SIZES),
            "n": list(SIZES.values()),
            "kind": ["fisher", "fisher", "fisher", "gka"],
            "known": [BEST["block-64"], BEST["block-256"], np.nan, BEST["gka-a"]],
            "proved": [True, False, False, False],
            "bound": [np.nan, -41.0, np.nan, np.nan],
            "beaten": [False] * 4,
        }
    )


def row(problem="block-64", sampler="relax", budget=1.0, repeat=0, energy=-10.0, **more):
    """One run; what is not given is unremarkable."""
    fields = {
        "problem": problem,
        "n": SIZES[problem],
        "num_groups": 1,
        "sampler": sampler,
        "name": sampler,
        "options": {},
        "budget_kind": "seconds",
        "budget": budget,
        "repeat": repeat,
        "seed": repeat,
        "order": 0,
        "status": "ok",
        "reason": "",
        "energy": energy,
        "energy_raw_best": energy,
        "num_reads": 2,
        "feasible_share": 1.0,
        "energies": [energy, energy],
        "seconds": budget,
        "cpu_seconds": budget,
        "build_seconds": 0.01,
        "warmup_seconds": 0.0,
        "lower_bound": np.nan,
        "started": "2026-01-01T00:00:00+00:00",
    }
    fields |= more
    return fields | {"trace": more.get("trace", [[fields["seconds"], fields["energy"]]])}


def failed(status, reason, **more):
    nothing = {
        "energy": np.nan,
        "energies": None,
        "trace": None,
        "seconds": np.nan,
        "feasible_share": np.nan,
    }
    return row(**more) | nothing | {"status": status, "reason": reason}


def study_rows(repeats=3, seed=0):
    """Every pair at every budget; tabu cannot count, random crashes once."""
    rng = np.random.default_rng(seed)
    rows = []
    for problem, size in SIZES.items():
        for sampler in SAMPLERS:
            for budget in BUDGETS:
                for repeat in range(repeats):
                    where = {"problem": problem, "sampler": sampler, "budget": budget}
                    where |= {"repeat": repeat}
                    if sampler == "tabu" and problem == "block-1024":
                        rows.append(failed("incompatible", "takes no counts", **where))
                        continue
                    if sampler == "random" and problem == "block-64" and repeat == 1:
                        rows.append(failed("crashed", "RuntimeError: boom", **where))
                        continue
                    lost = np.exp(-SPEED[sampler] * budget * 100 / size)
                    energy = BEST[problem] + abs(BEST[problem]) * lost * rng.uniform(0.5, 1.5)
                    energy += (lost < 1e-5) * (BEST[problem] - energy)
                    bound = BEST[problem] - 0.5 if sampler == "relax" else np.nan
                    reads = sorted([energy, energy + abs(BEST[problem]) * rng.uniform(0, 0.1)])
                    seconds = budget * rng.uniform(0.9, 1.1)
                    trace = [[seconds / 4, reads[1]], [seconds / 2, energy]]
                    found = {"energy": energy, "energies": reads, "lower_bound": bound}
                    rows.append(row(**where, seconds=seconds, trace=trace, **found))
    return pd.DataFrame(rows).assign(order=range(len(rows)))
