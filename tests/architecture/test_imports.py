"""Which package may import which, and what a user sees first."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: The walk's modules in the order in which they may import one another: only leftwards.
CORE = (
    "errors",
    "threads",
    "inputs",
    "estimate",
    "gauge",
    "folder",
    "steps",
    "records",
    "ranks",
    "workers",
    "sharding",
    "placement",
    "weights",
    "admission",
    "patterns",
    "layers",
    "padding",
    "batches",
    "signature",
    "binding",
    "calibration",
    "kinds",
    "recognise",
    "losses",
    "loss_names",
    "calls",
    "derivable",
    "traces",
    "persample",
    "preflight",
    "curvature",
    "sparsity",
    "solve",
    "layerwise",
    "scores",
    "augment",
    "selftext",
    "masks",
    "blocks",
    "formulate",
    "answers",
    "faults",
    "trust",
    "terms",
    "effort",
    "compensate",
    "distill",
    "request",
    "samples",
    "journal",
    "needs",
    "plan",
    "setting",
    "rounds",
    "walk",
    "fingerprint",
    "checkpoint",
    "recording",
    "prune",
)
#: What lives around the walk; no module of the walk may import it.
AROUND = (
    "parcels",
    "executors",
    "networks",
    "factories",
    "datasets",
    "zoo",
    "metrics",
    "cli_options",
    "plain_yaml",
    "config",
    "run",
    "plots",
    "language",
    "report",
    "findings",
    "check",
    "job",
    "verify",
    "terminal",
    "progress",
    "interrupt",
    "packed",
    "hold",
    "measure",
    "cli_compare",
    "tracking",
    "block_folder",
    "study",
    "cli_prune",
    "cli_prune_language",
    "cli_run",
    "cli_language",
    "cli",
)


def _run(code, *, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _imports(path):
    """Modules that the file imports anywhere, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who needs whom"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def _module(path):
    """The name within qprune that `CORE` and `AROUND` know the file by."""
    return path.relative_to(ROOT / "qprune").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _sources("solvers"), ids=lambda p: p.name)
def test_solvers_know_nothing_of_networks(path):
    assert not [name for name in _imports(path) if name.split(".")[0] == "qprune"]


@pytest.mark.parametrize("path", _sources("qprune"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_walk_imports_only_what_comes_before_it(path):
    module = _module(path)
    if module not in CORE:
        return
    needed = {name.split(".")[1] for name in _imports(path) if name.startswith("qprune.")}
    allowed = {module, *CORE[: CORE.index(module)]}
    assert needed <= allowed, f"{module} imports {sorted(needed - allowed)}"


def test_every_module_of_qprune_has_its_place():
    found = {_module(path) for path in _sources("qprune")} - {"__init__"}
    assert found <= {*CORE, *AROUND, "cli_solvers"}
    assert set(AROUND) <= found


@pytest.mark.parametrize("package", ["qprune", "solvers"])
def test_no_library_module_prints(package):
    for path in _sources(package):
        calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
        printing = [n.lineno for n in calls if getattr(n.func, "id", None) == "print"]
        assert not printing, f"{path} prints in line {printing[0]}"


def test_solvers_import_neither_torch_nor_qprune():
    done = _run(
        "import sys, solvers, solvers.registry\n"
        "print([m for m in ('torch', 'qprune', 'dwave.system') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_command_line_loads_what_a_command_needs_only_then():
    done = _run(
        "import sys, qprune.cli\nprint([m for m in ('sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_public_namespace_is_flat_and_complete():
    import qprune

    assert sorted(qprune.__all__) == qprune.__all__
    for name in qprune.__all__:
        public = getattr(qprune, name)
        assert public.__doc__, f"{name} has no docstring"
    visible = {name for name in vars(qprune) if not name.startswith("_")}
    submodules = {_module(path) for path in _sources("qprune")}
    assert visible - submodules - {"solvers"} == set(qprune.__all__) - submodules


def test_a_solvers_module_of_the_users_own_is_told_apart(tmp_path):
    (tmp_path / "solvers.py").write_text("x = 1\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = _run("import qprune", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: qprune needs its own package `solvers`")
    assert str(tmp_path / "solvers.py") in last
    assert "rename that file" in last
