"""The registry of samplers by name: this package's, known libraries', and plugins'.

A third party registers a name through the entry-point group ``qprune.samplers``; the value is
a sampler class, or any callable that returns a sampler::

    [project.entry-points."qprune.samplers"]
    mine = "my_package:MySampler"
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from solvers.errors import (
    InvalidOptionError,
    MissingPackageError,
    SamplerFailedError,
    SolverError,
    UnknownOptionError,
    UnknownSamplerError,
)

GROUP = "qprune.samplers"


@dataclass(frozen=True)
class SamplerEntry:
    """One registered sampler.

    Attributes:
        name: what users write.
        factory: ``module:attribute`` of a class or a function that makes the sampler.
        where: "CPU", "GPU", "QPU" or "cloud"; "" if a plugin does not declare it.
        about: one line.
        counts: keeps exact counts itself; the others are wrapped in `CardinalityPenalty`.
        warm_start: takes ``initial_states``.
        seed: takes ``seed``.
        bound: answers with a lower bound.
        packages: modules that must be importable.
        install: the command that installs them.
        solves: the kind of problem: `QuadraticProblem`, or `RowProblem` for a whole layer.
        builtin: True for one listed here, False for a plugin's.
        broken: the error of a plugin's entry on import; "" if there is none.

    Example:
        >>> entry = find_entry("greedy")
        >>> entry.counts, entry.where, entry.installed
        (True, 'CPU', True)
    """

    name: str
    factory: str
    where: str = ""
    about: str = ""
    counts: bool = False
    warm_start: bool = False
    seed: bool = False
    bound: bool = False
    packages: tuple[str, ...] = ()
    install: str = ""
    solves: str = "QuadraticProblem"
    builtin: bool = True
    broken: str = ""

    @property
    def missing(self) -> str:
        """The reason why the sampler cannot be used here, in one line; "" if it can."""
        if self.broken:
            return self.broken
        absent = [package for package in self.packages if not _importable(package)]
        if absent:
            return f"package {absent[0]} is not installed: {self.install}"
        return ""

    @property
    def installed(self) -> bool:
        """True if the sampler can be made here."""
        return not self.missing

    def load(self) -> Callable[..., Any]:
        """The class or function behind the name, imported now.

        Raises:
            MissingPackageError: a package is not installed.
        """
        if self.missing:
            raise MissingPackageError(f"sampler {self.name!r}: {self.missing}")
        module, _, attribute = self.factory.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise MissingPackageError(
                f"sampler {self.name!r} cannot be imported from {self.factory}: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` takes."""
        return asdict(self) | {"installed": self.installed, "missing": self.missing}


def _importable(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _ours(name: str, factory: str, about: str, **more: Any) -> SamplerEntry:
    does: dict[str, Any] = {"where": "CPU", "counts": True, "warm_start": True, "seed": True} | more
    return SamplerEntry(name, factory, about=about, **does)


def _torch(name: str, factory: str, about: str) -> SamplerEntry:
    return _ours(name, factory, about, where="CPU, GPU", packages=("torch",), install=_PIP["torch"])


def _local(name: str, factory: str, about: str, **more: Any) -> SamplerEntry:
    does: dict[str, Any] = {
        "where": "CPU",
        "warm_start": True,
        "seed": True,
        "packages": ("dwave.samplers",),
        "install": _PIP["dwave-samplers"],
    } | more
    return SamplerEntry(name, factory, about=about, **does)


def _dwave(name: str, factory: str, about: str, **more: Any) -> SamplerEntry:
    packages: dict[str, Any] = {"packages": ("dwave.system",), "install": _PIP["dwave"]}
    return SamplerEntry(name, factory, about=about, **packages | more)


def _openjij(name: str, factory: str, about: str) -> SamplerEntry:
    return _local(name, factory, about, packages=("openjij",), install=_PIP["openjij"])


_PIP = {
    "torch": "pip install torch",
    "dwave-samplers": "pip install dwave-samplers",
    "neal": "pip install dwave-neal",
    "openjij": "pip install 'qprune[openjij]'",
    "dwave": "pip install 'qprune[dwave]'",
}

BUILTIN: tuple[SamplerEntry, ...] = (
    _ours("auto", "solvers.composites.auto:Auto", "the one that suits the problem", bound=True),
    _ours("relax", "solvers.convex.relax:Relax", "relaxation, rounding, descent", bound=True),
    _ours("exact", "solvers.convex.exact:Exact", "branch and bound", bound=True),
    _ours(
        "enumerate",
        "solvers.convex.exact:Enumeration",
        "every state, n <= 24",
        bound=True,
        seed=False,
        warm_start=False,
    ),
    _ours("swap-anneal", "solvers.search.annealing:SwapAnnealing", "annealing by swaps"),
    _ours("swap-tabu", "solvers.search.tabu:SwapTabu", "tabu search by swaps"),
    _ours("greedy", "solvers.search.descent:Greedy", "swap descent"),
    _ours("random", "solvers.search.descent:Random", "random states: what every sampler must beat"),
    _torch(
        "bifurcation", "solvers.search.batched.bifurcation:Bifurcation", "simulated bifurcation"
    ),
    _torch("torch-anneal", "solvers.search.batched.annealing:TorchAnnealing", "batched annealing"),
    SamplerEntry(
        "rows",
        "solvers.rows.search:solve_rows",
        where="CPU, GPU",
        about="all rows of a layer at once; a function of a RowProblem",
        counts=True,
        warm_start=True,
        solves="RowProblem",
    ),
    _local("sa", "solvers.foreign.local:simulated_annealing", "D-Wave's simulated annealing"),
    _local("tabu", "solvers.foreign.local:tabu", "D-Wave's tabu search"),
    _local("steepest", "solvers.foreign.local:steepest_descent", "D-Wave's steepest descent"),
    _local(
        "path-integral", "solvers.foreign.local:path_integral", "D-Wave's path-integral annealing"
    ),
    _local("rotor", "solvers.foreign.local:rotor", "D-Wave's rotor annealing"),
    _local(
        "tree",
        "solvers.foreign.local:tree",
        "exact for small treewidth",
        warm_start=False,
        seed=False,
    ),
    _local(
        "neal",
        "solvers.foreign.local:neal",
        "dwave-neal's simulated annealing",
        packages=("neal",),
        install=_PIP["neal"],
    ),
    _openjij(
        "openjij-sa", "solvers.foreign.local:openjij_annealing", "OpenJij's simulated annealing"
    ),
    _openjij(
        "openjij-sqa",
        "solvers.foreign.local:quantum_annealing",
        "OpenJij's path-integral annealing",
    ),
    SamplerEntry(
        "roof-duality",
        "solvers.composites.roof:RoofDuality",
        where="CPU",
        about="fixes variables, bounds; another sampler does the rest",
        counts=True,
        warm_start=True,
        seed=True,
        bound=True,
        packages=("dwave.preprocessing",),
        install=_PIP["dwave-samplers"],
    ),
    SamplerEntry(
        "decompose",
        "solvers.composites.decompose:Decompose",
        where="CPU",
        about="a large problem by sub-blocks, on any sampler",
        counts=True,
        warm_start=True,
        seed=True,
    ),
    _dwave("qpu", "solvers.foreign.dwave:qpu", "D-Wave's processors, any embedding", where="QPU"),
    _dwave(
        "qpu-clique",
        "solvers.foreign.dwave:qpu_clique",
        "D-Wave's processors, cliques",
        where="QPU",
    ),
    _dwave(
        "hybrid-bqm", "solvers.foreign.dwave:hybrid_bqm", "Leap's hybrid BQM solver", where="cloud"
    ),
    _dwave(
        "hybrid-cqm",
        "solvers.foreign.dwave:hybrid_cqm",
        "Leap's hybrid CQM solver",
        where="cloud",
        counts=True,
    ),
)


def list_samplers() -> tuple[SamplerEntry, ...]:
    """All entries, this package's first, then plugins'; see `SamplerEntry.installed`.

    Example:
        >>> "greedy" in [entry.name for entry in list_samplers()]
        True
    """
    names = {entry.name for entry in BUILTIN}
    registered = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return BUILTIN + tuple(_registered(p) for p in registered if p.name not in names)


def get_sampler(sampler: Any, **options: object) -> Any:
    """A sampler by name, by class, or as it is.

    Args:
        sampler: a name that `list_samplers` has, a sampler class, or a sampler object.
        **options: handed to the constructor (names and classes only).

    Returns:
        An object with ``sample(bqm, ...)``; this package's also have ``sample_problem``.
        ``rows``, which solves whole layers, is a function: `solvers.rows.search.solve_rows`.

    Raises:
        UnknownSamplerError: no such name; the message lists the names.
        MissingPackageError: the sampler's package is not installed; has the command.
        UnknownOptionError: the constructor does not take an option.
        InvalidOptionError: the object is not a sampler.

    Example:
        >>> get_sampler("greedy").properties["counts"]
        True
    """
    if isinstance(sampler, str):
        entry = find_entry(sampler)
        made_by = entry.load()
        return made_by if entry.solves == "RowProblem" else _made(sampler, made_by, options)
    if isinstance(sampler, type):
        return _made(sampler.__name__, sampler, options)
    if options:
        raise InvalidOptionError(
            f"{type(sampler).__name__} is already made; pass its class to give it options"
        )
    if not callable(getattr(sampler, "sample", None)):
        raise InvalidOptionError(
            f"{sampler!r} is neither a sampler's name nor an object with sample(bqm, ...)"
        )
    return sampler


def find_entry(name: str) -> SamplerEntry:
    """The entry of one name.

    Raises:
        UnknownSamplerError: no such name; the message lists the names.

    Example:
        >>> find_entry("greedy").factory
        'solvers.search.descent:Greedy'
    """
    entries = {entry.name: entry for entry in list_samplers()}
    if name not in entries:
        raise UnknownSamplerError(
            f"no sampler is called {name!r}; there are: " + ", ".join(sorted(entries))
        )
    return entries[name]


def _made(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise UnknownOptionError(
            f"sampler {name!r} cannot be made with these options: {error}"
        ) from error
    try:
        return factory(**options)
    except SolverError:
        raise
    except ImportError as error:
        raise MissingPackageError(f"sampler {name!r}: {error}") from error
    except Exception as error:
        raise SamplerFailedError(
            f"sampler {name!r} cannot be made: {type(error).__name__}: {error}"
        ) from error


def _registered(point: EntryPoint) -> SamplerEntry:
    """A plugin's entry; its capabilities are read from its class, or its error is noted."""
    try:
        factory = point.load()
    except Exception as error:
        reason = f"{point.value}: {type(error).__name__}: {error}"
        return SamplerEntry(point.name, point.value, builtin=False, broken=reason)
    takes = _options_of(factory)
    return SamplerEntry(
        point.name,
        point.value,
        about=(inspect.getdoc(factory) or "").partition("\n")[0],
        counts=hasattr(factory, "sample_problem") or "cardinality" in takes,
        warm_start="initial_states" in takes,
        seed="seed" in takes,
        builtin=False,
    )


def _options_of(factory: Any) -> frozenset[str]:
    """Option names of a sampler class, without making one."""
    listed = [vars(base).get("options") for base in getattr(factory, "__mro__", ())]
    names = [set(options) for options in listed if isinstance(options, Mapping)]
    sample = getattr(factory, "sample", None)
    if sample is not None:
        names.append(set(inspect.signature(sample).parameters))
    return frozenset().union(*names)
