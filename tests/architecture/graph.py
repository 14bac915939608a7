"""The imports of both packages as graphs, and measures of their sources.

An import counts wherever it is written: at the top, inside a function, or for type checkers
alone. What is named by a string (the table of `solvers.registry`) is no import, and neither
are the `__init__` files that Python runs on the way to a module.

`python -m tests.architecture.graph` prints the measures.
"""

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[2]
PACKAGES = ("qprune", "solvers")
#: Options whose declarations are counted.
OPTIONS = ("num_blocks", "damping")
#: Arguments that may be of any type.
UNTYPED = frozenset({"model", "calibration", "sampler", "executor"})

Function = ast.FunctionDef | ast.AsyncFunctionDef
#: What lies directly in a folder, by the names there, lowest first.
Levels = Sequence[Collection[str]]


@dataclass(frozen=True)
class Import:
    """One imported module, and the name taken from it: None for the module itself."""

    module: str
    name: str | None


@dataclass(frozen=True)
class Module:
    """A source file.

    Attributes:
        name: dotted; an `__init__` file goes by its folder's.
    """

    name: str
    path: Path
    text: str

    @property
    def is_init(self) -> bool:
        """True for the `__init__` file of a folder."""
        return self.path.name == "__init__.py"

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.text)

    @property
    def folder(self) -> str:
        """The dotted folder it lies in; a file at a package's top counts as one of its own."""
        above = self.name.rpartition(".")[0]
        return self.name if self.is_init or above in PACKAGES else above

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Every function and method with its dotted name, those inside others too."""
        yield from _functions(self.tree, self.name)


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, Function | ast.ClassDef):
            name = f"{prefix}.{child.name}"
        if isinstance(child, Function):
            yield name, child
        yield from _functions(child, name)


def _is_private(name: str | None) -> bool:
    return name is not None and name.startswith("_") and not name.endswith("__")


@dataclass(frozen=True)
class Sources:
    """Both packages as they lie under ``root``."""

    root: Path = ROOT

    @cached_property
    def modules(self) -> Mapping[str, Module]:
        """By dotted name."""
        found = {}
        for path in (p for package in PACKAGES for p in (self.root / package).rglob("*.py")):
            name = ".".join(path.relative_to(self.root).with_suffix("").parts)
            name = name.removesuffix(".__init__")
            text = path.read_text(encoding="utf-8") + _lazy_imports(name, path)
            found[name] = Module(name, path, text)
        return dict(sorted(found.items()))

    @cached_property
    def parents(self) -> list[str]:
        """Every folder with modules or packages in it, by dotted name."""
        inits = {module.name for module in self.modules.values() if module.is_init}
        above = (module.name.rpartition(".")[0] for module in self.modules.values())
        return sorted(inits.union(name for name in above if name))

    def of(self, package: str) -> list[Module]:
        """The modules of one package."""
        return [m for m in self.modules.values() if (m.name + ".").startswith(package + ".")]

    # --- imports

    def imports(self, module: Module) -> Iterator[Import]:
        """What it imports from the two packages."""
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in self.modules:
                        yield Import(alias.name, None)
            elif isinstance(node, ast.ImportFrom) and (base := node.module or "") in self.modules:
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    taken = inner in self.modules and alias.name not in self._bound(base)
                    yield Import(inner, None) if taken else Import(base, alias.name)

    def _bound(self, name: str) -> set[str]:
        """Names that an `__init__` file imports: they hide submodules of the same name."""
        nodes = (n for n in self.modules[name].tree.body if isinstance(n, ast.ImportFrom))
        return {alias.asname or alias.name for node in nodes for alias in node.names}

    @cached_property
    def graph(self) -> nx.DiGraph:
        """Modules of both packages; an edge leads from who imports to what is imported."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.modules)
        for module in self.modules.values():
            needed = {found.module for found in self.imports(module)} - {module.name}
            graph.add_edges_from((module.name, other) for other in needed)
        return graph

    def folders(self, parent: str) -> nx.DiGraph:
        """The imports inside ``parent``, between what lies directly in it.

        Every folder there is one node with all that is in it; ``parent`` itself stands for its
        `__init__` file.
        """
        inside = {m.name: _child(m.name, parent) for m in self.of(parent)}
        graph = nx.DiGraph()
        graph.add_nodes_from(inside.values())
        graph.add_edges_from(
            (inside[a], inside[b])
            for a, b in self.graph.edges
            if a in inside and b in inside and inside[a] != inside[b]
        )
        return graph

    def depth(self, package: str) -> int:
        """Folders on the longest way down; those of a circle count as one."""
        return nx.dag_longest_path_length(self._condensed(package)) + 1

    def _condensed(self, package: str) -> nx.DiGraph:
        """Its folders, circles as one node; without its `__init__`, which only exports names."""
        graph = self.folders(package)
        graph.remove_nodes_from([package])
        return nx.condensation(graph)

    def longest_path(self, package: str) -> list[str]:
        """One longest way down."""
        condensed = self._condensed(package)
        members = condensed.nodes(data="members")
        return [" + ".join(sorted(members[node])) for node in nx.dag_longest_path(condensed)]

    def module_circles(self) -> list[list[str]]:
        """Modules that import one another in a circle."""
        return _circles(self.graph)

    def folder_circles(self) -> list[list[str]]:
        """Files and folders of one folder that import one another in a circle."""
        return [circle for parent in self.parents for circle in _circles(self.folders(parent))]

    def upward_imports(self, parent: str, levels: Levels) -> list[tuple[str, str]]:
        """Modules in ``parent`` with what they import from its other parts, not levels below."""
        level = _level_by_name(parent, levels)
        part = {m.name: _child(m.name, parent) for m in self.of(parent)}
        return [
            (a, b)
            for a, b in self.graph.edges
            if part.get(a) in level and part.get(b) in level and part[a] != part[b]
            if level[part[b]] >= level[part[a]]
        ]

    def unplaced(self, parent: str, levels: Levels) -> list[str]:
        """What lies in ``parent`` and has no level, its `__init__` file aside."""
        return sorted(set(self.folders(parent)) - set(_level_by_name(parent, levels)) - {parent})

    def private_imports(self) -> list[tuple[str, str]]:
        """Underscore names, or modules so named, that another folder imports."""
        return [
            (module.name, f"{found.module}.{found.name}" if found.name else found.module)
            for module in self.modules.values()
            for found in (*self.imports(module), *self._reached_through_modules(module))
            if module.folder != self.modules[found.module].folder
            and (_is_private(found.name) or _is_private(found.module.rpartition(".")[2]))
        ]

    def _reached_through_modules(self, module: Module) -> Iterator[Import]:
        """Names used as ``module.name`` after ``from folder import module``."""
        known = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                target = known.get(node.value.id, "")
                if target in self.modules:
                    yield Import(target, node.attr)

    def imports_of_own_init(self) -> list[tuple[str, str]]:
        """Modules that import the `__init__` file of a folder they lie in."""
        return [(a, b) for a, b in self.graph.edges if a.startswith(b + ".")]

    def relative_imports(self) -> list[str]:
        """Modules with relative imports: they hide who needs whom."""
        return [
            module.name
            for module in self.modules.values()
            if any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(module.tree))
        ]

    # --- folders and files

    def entries(self) -> Mapping[str, int]:
        """How many modules and packages lie directly in each folder.

        An `__init__` file counts where it holds more than its docstring.
        """
        inside = {name: set(self.folders(name)) - {name} for name in self.parents}
        for module in self.modules.values():
            if module.is_init and len(module.tree.body) > 1:
                inside[module.name].add(module.name)
        return {name: len(entries) for name, entries in inside.items()}

    def lines(self) -> Mapping[str, int]:
        """Lines by the folder they lie in, those of its own folders not counted again."""
        counts: dict[str, int] = {}
        for module in self.modules.values():
            folder = module.name if module.is_init else module.name.rpartition(".")[0]
            counts[folder] = counts.get(folder, 0) + len(module.text.splitlines())
        return counts

    def definitions_in_inits(self) -> list[str]:
        """Classes and functions of `__init__` files; `__getattr__` may import what is asked for."""
        return [
            f"{module.name}.{node.name}"
            for module in self.modules.values()
            if module.is_init
            for node in ast.walk(module.tree)
            if isinstance(node, Function | ast.ClassDef) and node.name != "__getattr__"
        ]

    def pyright_ignores(self) -> int:
        """How many findings of pyright are silenced."""
        return sum(module.text.count("pyright: ignore") for module in self.modules.values())

    # --- functions

    def functions(self) -> Mapping[str, int]:
        """Lines of every body, docstring left out, by dotted name; longest first."""
        sizes = {
            name: _body_lines(function)
            for module in self.modules.values()
            for name, function in module.functions()
        }
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    def entries_to_pruning(self) -> list[str]:
        """Public functions of `qprune`, commands aside, that take a model and a sparsity.

        A function with a name in `prune` may also be given them inside of other arguments.
        """
        return [
            name
            for module in self.of("qprune")
            if not module.name.startswith("qprune.cli.")
            for name, function in _public_functions(module)
            if _asks_for_pruning(_parameters(function))
            or (function.name.startswith("prune") and _asks_for_pruning(self._taken(function)))
        ]

    def _taken(self, function: Function) -> set[str]:
        """Its parameters, and the fields of those that are of a class of `qprune`."""
        named = {
            node.id
            for argument in _arguments(function)
            if argument.annotation is not None
            for node in ast.walk(argument.annotation)
            if isinstance(node, ast.Name)
        }
        fields = (field for name in named for field in self._fields_by_class.get(name, ()))
        return _parameters(function) | set(fields)

    @cached_property
    def _fields_by_class(self) -> Mapping[str, set[str]]:
        """The fields of every class of `qprune`, with those of the bases defined there."""
        classes = {
            node.name: node
            for module in self.of("qprune")
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef)
        }

        def fields(name: str) -> set[str]:
            node = classes[name]
            bases = (b.id for b in node.bases if isinstance(b, ast.Name) and b.id in classes)
            own = {field for field, _ in _fields(node)}
            return own.union(*(fields(base) for base in bases if base != name))

        return {name: fields(name) for name in classes}

    def declarations(self, name: str) -> list[str]:
        """Functions and classes of `qprune` that have a parameter or a field of that name."""
        return [found for module in self.of("qprune") for found in _declaring(module, name)]

    def files_declaring(self, name: str) -> list[str]:
        """Modules of `qprune` that declare a parameter or a field of that name."""
        return [module.name for module in self.of("qprune") if any(_declaring(module, name))]

    def public_anys(self) -> list[str]:
        """What the packages export with the bare type `Any`, but for the few that may have it."""
        return [found for package in PACKAGES for found in self._anys(self.modules[package])]

    def _anys(self, package: Module) -> Iterator[str]:
        for name in exported(package):
            found = self._definition(package, name)
            if isinstance(found, ast.ClassDef):
                yield from _anys_of_class(found, f"{package.name}.{name}")
            elif isinstance(found, Function):
                yield from _anys_of_function(found, f"{package.name}.{name}")

    def _definition(self, module: Module, name: str) -> ast.AST | None:
        for node in ast.walk(module.tree):
            if isinstance(node, Function | ast.ClassDef) and node.name == name:
                return node
            if isinstance(node, ast.ImportFrom) and (base := node.module or "") in self.modules:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._definition(self.modules[base], alias.name)
        return None


def _lazy_imports(package: str, init: Path) -> str:
    """The imports that an `__init__` file leaves to the stub beside it, by absolute names."""
    stub = init.with_suffix(".pyi")
    text = stub.read_text(encoding="utf-8") if stub.exists() else ""
    return re.sub(r"^from \.", f"from {package}.", text, flags=re.MULTILINE)


def exported(package: Module) -> list[str]:
    """The names that it imports as themselves: ``from ... import A as A``."""
    imported = (node for node in package.tree.body if isinstance(node, ast.ImportFrom))
    return sorted(a.name for node in imported for a in node.names if a.name == a.asname)


def _asks_for_pruning(taken: set[str]) -> bool:
    return "sparsity" in taken and not taken.isdisjoint({"model", "network"})


def _level_by_name(parent: str, levels: Levels) -> dict[str, int]:
    return {f"{parent}.{name}": at for at, names in enumerate(levels) for name in names}


def _child(name: str, parent: str) -> str:
    """``name`` cut to what lies directly in ``parent``."""
    depth = parent.count(".") + 2
    return ".".join(name.split(".")[:depth])


def _circles(graph: nx.DiGraph) -> list[list[str]]:
    return [sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1]


def _body_lines(function: Function) -> int:
    body = function.body[ast.get_docstring(function) is not None :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def _public_functions(module: Module) -> Iterator[tuple[str, Function]]:
    for node in module.tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield f"{module.name}.{node.name}", node


def _arguments(function: Function) -> Iterator[ast.arg]:
    taken = function.args
    yield from (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)
    yield from (argument for argument in (taken.vararg, taken.kwarg) if argument)


def _parameters(function: Function) -> set[str]:
    return {argument.arg for argument in _arguments(function)}


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            yield line.target.id, line.annotation


def _declaring(module: Module, name: str) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function) and name in _parameters(node):
            yield f"{module.name}.{node.name}"
        if isinstance(node, ast.ClassDef) and name in dict(_fields(node)):
            yield f"{module.name}.{node.name}"


def _is_any(annotation: ast.expr | None) -> bool:
    """Bare, or as a part of a union; not inside a container."""
    if isinstance(annotation, ast.BinOp):
        return _is_any(annotation.left) or _is_any(annotation.right)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _is_any(ast.parse(annotation.value, mode="eval").body)
    return annotation is not None and ast.unparse(annotation) in ("Any", "typing.Any")


def _anys_of_function(function: Function, name: str) -> Iterator[str]:
    for argument in _arguments(function):
        if argument.arg not in UNTYPED and _is_any(argument.annotation):
            yield f"{name}({argument.arg})"
    if _is_any(function.returns) and function.name.removeprefix("get_") not in UNTYPED:
        yield f"{name} -> Any"


def _anys_of_class(node: ast.ClassDef, name: str) -> Iterator[str]:
    for field, annotation in _fields(node):
        if not field.startswith("_") and field not in UNTYPED and _is_any(annotation):
            yield f"{name}.{field}"
    for method in node.body:
        if isinstance(method, Function) and not _is_private(method.name):
            yield from _anys_of_function(method, f"{name}.{method.name}")


def measures(sources: Sources) -> Iterator[tuple[str, object]]:
    """Every measure by what it is called."""
    for package in PACKAGES:
        yield f"import depth of {package}, by folder", sources.depth(package)
        yield "    one longest way", " - ".join(sources.longest_path(package))
    for circles, where in (
        (sources.module_circles(), "modules"),
        (sources.folder_circles(), "folders"),
    ):
        yield f"circles of {where}", len(circles)
        yield from (("    ", " ".join(circle)) for circle in circles)
    entries = sources.entries()
    for name in sorted(entries, key=lambda name: -entries[name]):
        yield f"entries in {name}", entries[name]
    functions = sources.functions()
    yield "body of prune()", functions["qprune.prune.prune"]
    longest = [name for name in functions if name != "qprune.prune.prune"][:5]
    yield from ((f"body of {name}", functions[name]) for name in longest)
    yield from _listed("entries to pruning", sources.entries_to_pruning())
    for option in OPTIONS:
        yield from _listed(f"files that declare {option}", sources.files_declaring(option))
    yield from _listed("holders of sparsity", sources.declarations("sparsity"))
    yield from _listed("private imports across folders", sources.private_imports())
    yield from _listed("imports of the own folder's __init__", sources.imports_of_own_init())
    yield from _listed("definitions in __init__ files", sources.definitions_in_inits())
    yield from _listed("public Any", sources.public_anys())
    yield "pyright: ignore", sources.pyright_ignores()
    lines = sources.lines()
    yield from ((f"lines in {name}", lines[name]) for name in sorted(lines))
    yield "lines in all", sum(lines.values())


def _listed(name: str, found: Sequence[object]) -> Iterator[tuple[str, object]]:
    yield name, len(found)
    yield from (("    ", one) for one in found)


if __name__ == "__main__":
    for measure, value in measures(Sources()):
        print(f"{measure}: {value}" if measure.strip() else f"    {value}")
