"""The measures of `graph`, each on small packages that break what it is there for."""

import graph
import pytest

LEVELS = (("errors",), ("low",), ("high", "beside"))


@pytest.fixture
def sources(tmp_path):
    """Makes packages of the files given, each with its text, or as many empty lines."""

    def make(files):
        for name, text in {"qprune/__init__.py": "", "solvers/__init__.py": "", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return graph.Sources(tmp_path)

    return make


@pytest.mark.parametrize(
    "text",
    [
        "from solvers.high import deep",
        "from solvers.high.deep import f",
        "from solvers.high.deep import f as g, h",
        "import solvers.high.deep",
        "def f():\n    import solvers.high.deep",
        "if TYPE_CHECKING:\n    from solvers.high.deep import f",
    ],
)
def test_an_upward_import_is_found_wherever_it_is_written(sources, text):
    made = sources(
        {"solvers/high/__init__.py": "", "solvers/high/deep.py": "", "solvers/low.py": text}
    )
    assert made.upward_imports("solvers", LEVELS) == [("solvers.low", "solvers.high.deep")]


def test_folders_of_one_level_may_not_import_one_another(sources):
    made = sources({"solvers/high.py": "import solvers.beside", "solvers/beside.py": ""})
    assert made.upward_imports("solvers", LEVELS) == [("solvers.high", "solvers.beside")]


def test_a_downward_import_is_as_it_should_be(sources):
    made = sources({"solvers/high/a.py": "import solvers.low", "solvers/low.py": ""})
    assert made.upward_imports("solvers", LEVELS) == []


def test_what_has_no_level_is_reported(sources):
    made = sources({"solvers/utils.py": "", "solvers/more/a.py": "", "solvers/low.py": ""})
    assert made.unplaced("solvers", LEVELS) == ["solvers.more", "solvers.utils"]


def test_depth_counts_a_folder_once_however_long_its_own_chain(sources):
    made = sources(
        {
            "solvers/top.py": "import solvers.low.a",
            "solvers/low/a.py": "import solvers.low.b",
            "solvers/low/b.py": "import solvers.low.c",
            "solvers/low/c.py": "import solvers.errors",
            "solvers/errors.py": "",
        }
    )
    assert made.longest_path("solvers") == ["solvers.top", "solvers.low", "solvers.errors"]


def test_depth_is_the_number_of_folders_on_the_longest_way(sources):
    made = sources(
        {"solvers/a.py": "import solvers.b", "solvers/b.py": "import solvers.c"}
        | {"solvers/c.py": "", "solvers/d.py": "import solvers.c"}
    )
    assert made.depth("solvers") == 3


def test_a_circle_of_modules_is_found_though_one_import_is_lazy(sources):
    made = sources(
        {
            "solvers/x/a.py": "import solvers.x.b",
            "solvers/x/b.py": "def f():\n    from solvers.x.a import g",
        }
    )
    assert made.module_circles() == [["solvers.x.a", "solvers.x.b"]]


def test_a_circle_of_folders_is_found_though_no_module_is_in_one(sources):
    made = sources(
        {
            "solvers/x/a.py": "import solvers.y.b",
            "solvers/y/b.py": "",
            "solvers/y/c.py": "import solvers.x.d",
            "solvers/x/d.py": "",
        }
    )
    assert (made.module_circles(), made.folder_circles()) == ([], [["solvers.x", "solvers.y"]])


def test_a_circle_deeper_down_is_found(sources):
    made = sources(
        {
            "solvers/x/a.py": "import solvers.x.inner.b",
            "solvers/x/inner/b.py": "import solvers.x.a",
        }
    )
    assert made.folder_circles() == [["solvers.x.a", "solvers.x.inner"]]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from solvers.x.a import _f", "solvers.x.a._f"),
        ("from solvers.x import a\na._f()", "solvers.x.a._f"),
        ("from solvers.x import _hidden", "solvers.x._hidden"),
    ],
)
def test_a_private_name_of_another_folder_is_found(sources, text, found):
    files = {"solvers/x/__init__.py": "", "solvers/x/a.py": "", "solvers/x/_hidden.py": ""}
    made = sources(files | {"solvers/y/b.py": text})
    assert made.private_imports() == [("solvers.y.b", found)]


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        ("solvers/x/b.py", "from solvers.x.a import _f"),
        ("solvers/y/b.py", "from solvers.x.a import __version__"),
        ("solvers/y/b.py", "from solvers.x import a\na.f()"),
    ],
)
def test_other_names_may_be_imported(sources, importer, text):
    files = {"solvers/x/__init__.py": "", "solvers/x/a.py": ""}
    assert sources(files | {importer: text}).private_imports() == []


def test_a_module_that_imports_its_own_folders_init_is_found(sources):
    made = sources(
        {"solvers/__init__.py": "from solvers.a import f"}
        | {"solvers/a.py": "", "solvers/x/b.py": "from solvers import f"}
    )
    assert made.imports_of_own_init() == [("solvers.x.b", "solvers")]


def test_a_name_that_the_init_exports_hides_the_module_so_named(sources):
    made = sources(
        {
            "solvers/__init__.py": "from solvers.solve import solve",
            "solvers/solve.py": "",
            "qprune/a.py": "from solvers import solve",
        }
    )
    assert ("qprune.a", "solvers") in made.graph.edges


def test_a_class_in_an_init_file_is_found(sources):
    made = sources({"qprune/__init__.py": "def __getattr__(name): ...\nclass Held: ..."})
    assert made.definitions_in_inits() == ["qprune.Held"]


def test_a_relative_import_is_found(sources):
    assert sources({"qprune/a.py": "from . import b"}).relative_imports() == ["qprune.a"]


def test_entries_are_modules_and_packages_and_inits_that_hold_something(sources):
    made = sources(
        {
            "qprune/__init__.py": '"""Empty."""',
            "solvers/__init__.py": '"""Not."""\nA = 1',
            "solvers/a.py": "",
            "solvers/x/b.py": "",
            "solvers/x/y/c.py": "",
        }
    )
    assert made.entries() == {"qprune": 0, "solvers": 3, "solvers.x": 2, "solvers.x.y": 1}


def test_a_body_is_counted_without_its_docstring(sources):
    made = sources(
        {
            "qprune/a.py": 'class C:\n    def f(self):\n        """One\n\n        two."""\n'
            "        # three\n        x = 1\n\n        return x\n"
        }
    )
    assert made.functions() == {"qprune.a.C.f": 3}


def test_entries_to_pruning_take_both_however_wrapped(sources):
    made = sources(
        {
            "qprune/a.py": "class Base:\n    sparsity: float\nclass Asked(Base):\n    model: str\n"
            "def prune_by(asked: Asked): ...\ndef other(asked: Asked): ...\n"
            "def bare(model, sparsity): ...\ndef _own(model, sparsity): ...\n",
            "qprune/cli/b.py": "def prune(model, sparsity): ...",
        }
    )
    assert made.entries_to_pruning() == ["qprune.a.prune_by", "qprune.a.bare"]


def test_parameters_and_fields_declare_and_calls_do_not(sources):
    made = sources(
        {
            "qprune/a.py": "def f(*, damping): ...",
            "qprune/b.py": "class C:\n    damping: float = 1.0",
            "qprune/c.py": "f(damping=2)\ndamping = 3",
        }
    )
    assert made.files_declaring("damping") == ["qprune.a", "qprune.b"]


def test_public_anys_are_found_through_what_is_exported(sources):
    made = sources(
        {
            "qprune/__init__.py": "",
            "qprune/__init__.pyi": "from .x import C as C, f as f",
            "qprune/x/__init__.py": "from qprune.x.a import C, f, hidden",
            "qprune/x/a.py": "def f(model: Any, loss: 'str | Any') -> Any: ...\n"
            "def hidden(a: Any): ...\n"
            "class C:\n    extra: Any\n    table: dict[str, Any]\n"
            "    def run(self, *args: Any): ...\n    def _own(self, a: Any): ...",
        }
    )
    assert made.public_anys() == [
        "qprune.C.extra",
        "qprune.C.run(args)",
        "qprune.f(loss)",
        "qprune.f -> Any",
    ]


def test_lines_are_counted_once(sources):
    made = sources({"solvers/a.py": "x\ny\n", "solvers/x/b.py": "z\n"})
    assert made.lines() == {"qprune": 0, "solvers": 2, "solvers.x": 1}


def test_ignored_findings_are_counted(sources):
    text = "x = 1  # pyright: ignore[reportX]\ny = 2  # pyright: ignore\n"
    assert sources({"qprune/a.py": text}).pyright_ignores() == 2


def test_measures_are_named_with_their_values(sources):
    made = sources({"qprune/prune.py": "def prune():\n    x = 1\n    return x\n"})
    assert dict(graph.measures(made))["body of prune()"] == 2
