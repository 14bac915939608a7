"""Problems as people have them, made from a seed; where it can be had, with a proved optimum.

The optimum never comes from a sampler of this project: it is planted, or found by dynamic
programming, enumeration, a clique search (networkx), or D-Wave's tree decomposition. Energies are
scaled so that a gap to the best known means something: a tour's length, broken edges of a
colouring, a knapsack's value with a minus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, permutations
from typing import Any

import dimod
import networkx as nx
import numpy as np
from dimod import generators
from scipy import sparse

from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import dense_or_sparse
from solvers.study import Instance

Bqm = dimod.BinaryQuadraticModel
# Permutations that are looked at together.
_TOGETHER = 10_000
#: Larger problems are left without an optimum: finding it takes too long.
MOST_CITIES, MOST_PERMUTED, MOST_NODES = 12, 9, 80
#: Wider graphs are left without an optimum: tables of 2^20 numbers are kept for each variable.
WIDEST_TREE = 18


def make(family: str, **parameters: Any) -> Instance:
    """One problem of a family, named after its parameters.

    Args:
        family: a key of `FAMILIES`.
        **parameters: of its function there.

    Example:
        >>> make("knapsack", items=5, seed=1).name
        'knapsack-items5-seed1'
    """
    bqm, known = FAMILIES[family](**parameters)
    problem = bqm if isinstance(bqm, QuadraticProblem) else _problem(bqm)
    told = [f"{key}{_short(value)}" for key, value in parameters.items()]
    name = "-".join([family, *told])
    return Instance(name, problem, family, known, known is not None)


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _problem(bqm: Bqm) -> QuadraticProblem:
    bqm.relabel_variables({v: i for i, v in enumerate(bqm.variables)})
    return QuadraticProblem.from_bqm(bqm)


# -- constraints as penalties -------------------------------------------------------------


def tour(cities: int, seed: int) -> tuple[Bqm, float | None]:
    """A shortest tour through random points of a square; energies are lengths.

    The optimum of up to 12 cities: Held and Karp (J. SIAM 10, 196 (1962)), equations 3 and 4.
    """
    points = np.random.default_rng(seed).uniform(0, 100, (cities, 2))
    lengths = np.round(np.linalg.norm(points[:, None] - points[None], axis=2))
    graph = nx.Graph()
    pairs = combinations(range(cities), 2)
    graph.add_weighted_edges_from((i, j, lengths[i, j]) for i, j in pairs)
    strength = float(cities * lengths.sum() / (cities * (cities - 1)))
    bqm = generators.traveling_salesperson(graph, lagrange=strength)
    bqm.offset += 2 * strength * cities
    return bqm, _held_karp(lengths) if cities <= MOST_CITIES else None


def _held_karp(lengths: np.ndarray) -> float:
    """The length of a shortest tour; city 0 is its beginning."""
    others = len(lengths) - 1
    cost = np.full((1 << others, others), np.inf)
    for last in range(others):
        cost[1 << last, last] = lengths[0, last + 1]
    for visited in range(1, 1 << others):
        for last in range(others):
            before = visited & ~(1 << last)
            if visited != before and before:
                steps = cost[before] + lengths[1:, last + 1]
                cost[visited, last] = steps.min()
    return float((cost[-1] + lengths[1:, 0]).min())


def coloring(nodes: int, colors: int, edges: int, seed: int) -> tuple[Bqm, float]:
    """A graph with a hidden colouring; energies count nodes without a colour and broken edges."""
    rng = np.random.default_rng(seed)
    hidden = rng.permutation(np.arange(nodes) % colors)
    allowed = [(i, j) for i, j in combinations(range(nodes), 2) if hidden[i] != hidden[j]]
    chosen = [allowed[i] for i in rng.choice(len(allowed), edges, replace=False)]
    bqm = generators.vertex_coloring((range(nodes), chosen), range(colors))
    bqm.offset += nodes
    return bqm, 0.0


def knapsack(items: int, seed: int) -> tuple[Bqm, float]:
    """A knapsack with slack bits; the optimum by dynamic programming over the capacity."""
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(10, 60, items), rng.integers(5, 40, items)
    capacity = int(weights.sum() // 2)
    cqm = generators.knapsack(values, weights, capacity)
    # An item weighs at least 1, so that a unit too much buys no more than the best item.
    bqm, _ = dimod.cqm_to_bqm(cqm, lagrange_multiplier=float(values.max()))
    best = np.zeros(capacity + 1)
    for value, weight in zip(values, weights, strict=True):
        best[weight:] = np.maximum(best[weight:], best[:-weight] + value)
    return bqm, -float(best[-1])


def assignment(size: int, seed: int) -> tuple[Bqm, float | None]:
    """A quadratic assignment of random distances and flows; up to 9 are enumerated."""
    rng = np.random.default_rng(seed)
    distances, flows = (np.triu(rng.integers(1, 10, (size, size)), 1) for _ in range(2))
    distances, flows = distances + distances.T, flows + flows.T
    cqm = generators.quadratic_assignment(distances, flows)
    # One facility twice or never changes at most what it takes part in.
    strength = 2.0 * distances.max() * flows.sum(axis=0).max()
    bqm, _ = dimod.cqm_to_bqm(cqm, lagrange_multiplier=float(strength))
    if size > MOST_PERMUTED:
        return bqm, None
    every = np.array(list(permutations(range(size))))
    best = np.inf
    for some in np.split(every, range(_TOGETHER, len(every), _TOGETHER)):
        costs = (distances[some[:, :, None], some[:, None, :]] * flows).sum(axis=(1, 2))
        best = min(best, float(costs.min()))
    return bqm, best


# -- graphs and sets ----------------------------------------------------------------------


def partition(numbers: int, digits: int, seed: int) -> tuple[Bqm, float]:
    """Numbers in two parts of one sum, log-uniform to 10^digits; energies: squared difference.

    The optimum by meeting in the middle (Horowitz and Sahni, J. ACM 21, 277 (1974)).
    """
    drawn = 10 ** np.random.default_rng(seed).uniform(0, digits, numbers)
    weights = np.round(drawn).astype(np.int64)
    couplings = {(i, j): 2.0 * weights[i] * weights[j] for i, j in combinations(range(numbers), 2)}
    bqm = Bqm.from_ising({}, couplings, float(np.square(weights).sum()))
    left, right = (np.sort(_signed_sums(half)) for half in np.array_split(weights, 2))
    place = np.searchsorted(right, -left)
    near = [right[np.clip(place + shift, 0, right.size - 1)] for shift in (-1, 0)]
    return bqm, float(np.min(np.abs(left + np.array(near)))) ** 2


def _signed_sums(weights: np.ndarray) -> np.ndarray:
    sums = np.zeros(1, np.int64)
    for weight in weights:
        sums = np.concatenate([sums - weight, sums + weight])
    return sums


def independent_set(nodes: int, percent: int, seed: int) -> tuple[Bqm, float | None]:
    """A largest independent set of a random graph; the optimum: a clique of its complement."""
    graph = nx.gnp_random_graph(nodes, percent / 100, seed=seed)
    bqm = generators.maximum_independent_set(graph.edges, graph.nodes)
    return bqm, -float(_independence(graph)) if nodes <= MOST_NODES else None


def cover(nodes: int, percent: int, seed: int) -> tuple[Bqm, float]:
    """A smallest vertex cover of a random graph: what an independent set leaves."""
    graph = nx.gnp_random_graph(nodes, percent / 100, seed=seed)
    bqm = Bqm(dict.fromkeys(graph.nodes, 1.0), {}, 0.0, dimod.BINARY)
    for i, j in graph.edges:
        bqm.offset += 2.0
        bqm.add_linear_from({i: -2.0, j: -2.0})
        bqm.add_quadratic(i, j, 2.0)
    return bqm, float(nodes - _independence(graph))


def _independence(graph: nx.Graph) -> int:
    weight: Any = None
    return nx.max_weight_clique(nx.complement(graph), weight)[1]


# -- cuts and glasses ---------------------------------------------------------------------


def cut(nodes: int, density: int, low: int, high: int, seed: int) -> tuple[Bqm, None]:
    """MaxCut of a random graph, as Biq Mac's rudy makes them; energies are minus the cut.

    ``density`` in percent, whole weights from ``low`` to ``high``, not 0: g05 is 50, 1, 1; pm1s
    10, -1, 1; pm1d 99, -1, 1; w09 90, -10, 10; pw05 50, 1, 10.
    """
    rng = np.random.default_rng(seed)
    pairs = np.array(list(combinations(range(nodes), 2)))
    chosen = pairs[rng.choice(len(pairs), len(pairs) * density // 100, replace=False)]
    allowed = [weight for weight in range(low, high + 1) if weight]
    return _cut(zip(chosen.tolist(), rng.choice(allowed, len(chosen)).tolist(), strict=True)), None


def torus(shape: tuple[int, ...], gaussian: bool, seed: int) -> tuple[Bqm, float | None]:
    """MaxCut of a square or cubic torus with weights of both signs."""
    rng = np.random.default_rng(seed)
    edges = list(nx.grid_graph(shape, periodic=True).edges)
    size = len(edges)
    weights = np.round(1e5 * rng.normal(size=size)) if gaussian else rng.choice([-1, 1], size)
    bqm = _cut(zip(edges, weights.tolist(), strict=True))
    return bqm, _by_tree(bqm, 2 * min(shape) if len(shape) == 2 else np.inf)


def _cut(weighted: Iterable[tuple[Any, float]]) -> Bqm:
    bqm = Bqm(dimod.SPIN)
    for (i, j), weight in weighted:
        bqm.add_quadratic(i, j, weight / 2)
        bqm.offset -= weight / 2
    return bqm


def glass(shape: tuple[int, ...], gaussian: bool, seed: int) -> tuple[Bqm, float | None]:
    """An Ising glass on an open lattice, with a field if it is Gaussian."""
    graph = nx.grid_graph(shape)
    rng = np.random.default_rng(seed)
    if not gaussian:
        bqm = generators.ran_r(1, graph, seed=seed)
    else:
        h = dict(zip(graph.nodes, rng.normal(0, 0.3, len(graph)).tolist(), strict=True))
        couplings = dict(zip(graph.edges, rng.normal(size=graph.size()).tolist(), strict=True))
        bqm = Bqm.from_ising(h, couplings)
    return bqm, _by_tree(bqm, min(shape) if len(shape) == 2 else np.inf)


def loops(shape: tuple[int, ...], percent: int, seed: int) -> tuple[Bqm, float]:
    """Frustrated loops on an open lattice, ``percent`` as many as spins; the optimum is planted."""
    graph = nx.grid_graph(shape)
    bqm = generators.frustrated_loop(graph, len(graph) * percent // 100, R=3, seed=seed)
    known = sum(bqm.quadratic.values())
    flips = np.random.default_rng(seed).integers(0, 2, len(graph))
    for node, flip in zip(graph.nodes, flips, strict=True):
        if flip:
            bqm.flip_variable(node)
    return bqm, float(known)


def processor(topology: str, size: int, r: int, seed: int) -> tuple[Bqm, float | None]:
    """Couplings from -r to r on a D-Wave graph: "chimera", "pegasus" or "zephyr"."""
    from dwave import graphs

    graph = getattr(graphs, f"{topology}_graph")(size)
    bqm = generators.ran_r(r, graph, seed=seed)
    return bqm, _by_tree(bqm, 4 * size if topology == "chimera" else np.inf)


def mean_field(spins: int, seed: int) -> tuple[Bqm, None]:
    """A Sherrington-Kirkpatrick glass: Gaussian couplings of variance 1/n between all."""
    rng = np.random.default_rng(seed)
    pairs = combinations(range(spins), 2)
    return Bqm.from_ising({}, {pair: rng.normal() / np.sqrt(spins) for pair in pairs}), None


def chains(logical: int, length: int, seed: int) -> tuple[Bqm, float]:
    """Couplings of +-1 between all, each spin a chain, as an embedding makes them.

    A coupling reaches a chain at random places; chains are strong enough never to break in an
    optimum, which is that of the logical spins, enumerated.
    """
    rng = np.random.default_rng(seed)
    couplings = np.triu(rng.choice([-1.0, 1.0], (logical, logical)), 1)
    bqm = Bqm(dimod.SPIN)
    for i, j in combinations(range(logical), 2):
        ends = rng.integers(0, length, 2).tolist()
        bqm.add_quadratic((i, ends[0]), (j, ends[1]), couplings[i, j])
    strength = float(logical)
    for i in range(logical):
        for place in range(length - 1):
            bqm.add_quadratic((i, place), (i, place + 1), -strength)
    spins = 2.0 * ((np.arange(1 << logical)[:, None] >> np.arange(logical)) & 1) - 1
    best = ((spins @ couplings) * spins).sum(axis=1).min()
    return bqm, float(best - strength * logical * (length - 1))


def _by_tree(bqm: Bqm, width: float) -> float | None:
    """The optimum by D-Wave's tree decomposition, unless the graph is too wide for it."""
    from dwave.samplers import TreeDecompositionSolver

    if width > WIDEST_TREE:
        return None
    return float(min(TreeDecompositionSolver().sample(bqm).record.energy))


# -- satisfiability -----------------------------------------------------------------------


def max_2sat(variables: int, clauses: int, seed: int) -> tuple[Bqm, None]:
    """Random clauses of two literals; energies count those that are broken."""
    rng = np.random.default_rng(seed)
    bqm = Bqm(dict.fromkeys(range(variables), 0.0), {}, 0.0, dimod.SPIN)
    for _ in range(clauses):
        i, j = rng.choice(variables, 2, replace=False).tolist()
        a, b = rng.choice([-1.0, 1.0], 2)
        # (1 - a s_i)(1 - b s_j) / 4 is 1 where both literals are false.
        bqm.offset += 0.25
        bqm.add_linear_from({i: -a / 4, j: -b / 4})
        bqm.add_quadratic(i, j, a * b / 4)
    return bqm, None


def nae_3sat(variables: int, clauses: int, seed: int) -> tuple[Bqm, float]:
    """Clauses of three literals that are not all equal, a planted assignment; energy -1 each."""
    bqm = generators.random_nae3sat(variables, clauses, plant_solution=True, seed=seed)
    return bqm, -float(clauses)


# -- anything -----------------------------------------------------------------------------


def sparse_qubo(variables: int, couplings: int, seed: int) -> tuple[QuadraticProblem, None]:
    """Whole coefficients from -100 to 100 at random places."""
    rng = np.random.default_rng(seed)
    row, column = rng.integers(0, variables, (2, couplings))
    data = rng.integers(-100, 101, couplings).astype(float)
    apart = row != column
    half = sparse.coo_array((data[apart], (row[apart], column[apart])), (variables, variables))
    linear = rng.integers(-100, 101, variables).astype(float)
    return QuadraticProblem(linear, dense_or_sparse(sparse.csr_array(half + half.T))), None


def features(total: int, count: int, seed: int) -> tuple[QuadraticProblem, None]:
    """``count`` features that tell much of a target and little of each other: correlations."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(300, max(2, total // 5)))
    data = factors @ rng.normal(size=(factors.shape[1], total)) + 2 * rng.normal(size=(300, total))
    target = factors @ rng.normal(size=factors.shape[1])
    # Rounded, as are covariances below: the last digits of a product depend on the machine.
    correlations = np.abs(np.corrcoef(np.column_stack([data, target]).T)).round(6)
    redundancy = correlations[:-1, :-1] - np.eye(total)
    return QuadraticProblem(-correlations[:-1, -1], redundancy / count, counts=count), None


def portfolio(assets: int, count: int, seed: int) -> tuple[QuadraticProblem, None]:
    """``count`` of some assets, equally weighted: risk (a factor model) against return; convex."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(assets, 10)) * 0.1
    covariance = loadings @ loadings.T + np.diag(rng.uniform(0.01, 0.09, assets))
    covariance = covariance.round(6)
    returns = 0.05 + 0.05 * rng.normal(size=assets)
    return QuadraticProblem(-returns / count, 4 * covariance / count**2, counts=count), None


#: Name of a family -> a function that makes a problem and its optimum; None where none is known.
FAMILIES: Mapping[str, Callable[..., tuple[Bqm | QuadraticProblem, float | None]]] = {
    "tour": tour,
    "coloring": coloring,
    "knapsack": knapsack,
    "assignment": assignment,
    "partition": partition,
    "independent-set": independent_set,
    "cover": cover,
    "cut": cut,
    "torus": torus,
    "glass": glass,
    "loops": loops,
    "processor": processor,
    "mean-field": mean_field,
    "chains": chains,
    "max-2sat": max_2sat,
    "nae-3sat": nae_3sat,
    "sparse": sparse_qubo,
    "features": features,
    "portfolio": portfolio,
}
