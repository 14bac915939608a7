"""The notebooks run, in a smaller setting, and show what their sources produced."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
NAMES = [source.stem for source in SOURCES]

#: Replaces what the cell tagged "parameters" sets.
SMALLER = {
    "block_problem": "run |= {'block_size': 96, 'num_blocks': 1}\nreads = 5\n",
    "comparing_samplers": "sizes, copies, budgets, repeats = [16, 48], 1, ['0.02s'], 2\n",
    "first_pruning": (
        "sparsities, shown = [0.8, 0.95], 0.95\n"
        "steps = {'stages': 2, 'rounds': 1, 'final_rounds': 1}\n"
    ),
    "language_model": (
        "width, layers, steps = 32, 2, 40\nnum_samples, length = 16, 32\n"
        "sparsities, shown = [0.5, 0.8], 0.8\ndistilled = 8\n"
    ),
    "qubo_to_qpu": "n, reads, factors, many_reads = 10, 20, factors[::4], [1, 10]\n",
    "what_a_sample_is_worth": (
        "expansion |= {'block_size': 256, 'samples_per_step': 1200}\n"
        "in_stages |= {'stages': 2, 'block_size': 128}\n"
        "spoilt, seeds = 12, [0, 1]\n"
    ),
    "own_sampler": "run |= {'stages': 2, 'final_rounds': 1, 'num_blocks': 2}\n",
}
#: The tests' own policy; the last line is the kernel's own warning, when it is shut down.
STRICT = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", DeprecationWarning)
warnings.filterwarnings("ignore", "For consistency across impl", PendingDeprecationWarning)
"""


def _source(name):
    return jupytext.read(FOLDER / f"{name}.py")


def _stored(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def _tagged(notebook, tag):
    return [c for c in notebook.cells if tag in c.metadata.get("tags", [])]


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _texts(cells):
    """All that cells show, but for pictures."""
    for cell in cells:
        for output in cell.outputs:
            shown = output.get("data", {"text/plain": output.get("text", "")})
            yield from (text for kind, text in shown.items() if kind.startswith("text/"))


def test_the_smaller_settings_are_for_notebooks_that_exist():
    assert set(SMALLER) == set(NAMES)


def _run(name, monkeypatch, folder):
    """All that the source shows in a fresh kernel of this environment, warnings being errors."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = _source(name)
    (parameters,) = _tagged(notebook, "parameters")
    parameters.source += "\n" + SMALLER[name]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    resources = {"metadata": {"path": folder}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in _code(notebook) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert "image/png" in [o for o in outputs if "data" in o][-1].data
    return "\n".join(_texts(_code(notebook)))


def test_first_pruning_keeps_more_than_one_shot(monkeypatch, tmp_path):
    shown = _run("first_pruning", monkeypatch, tmp_path)
    table = shown[shown.index("sparsity") :].splitlines()[:4]
    last = {line.split()[0]: float(line.split()[-1].rstrip("%")) for line in table}
    assert last["sparsity"] == 95
    assert last["qprune"] > max(last["magnitude"], last["Wanda"])


def test_block_problem_is_proved_and_its_relaxation_a_bound(monkeypatch, tmp_path):
    shown = _run("block_problem", monkeypatch, tmp_path)
    energy = {
        line.split("  ")[0]: float(re.findall(r"-?\d+\.\d+", line)[0])
        for line in shown.splitlines()
        if " nats" in line
    }
    assert energy["relaxation"] <= energy["best decision"] <= energy["staying as we are"] == 0
    assert "proved: True" in shown


def test_comparing_samplers_loses_no_run_and_writes_the_report(monkeypatch, tmp_path):
    shown = _run("comparing_samplers", monkeypatch, tmp_path)
    assert re.search(r"^ok +24$", shown, re.MULTILINE)
    assert "p = " in shown
    assert "energy_against_time.pdf" in shown


def test_qubo_to_qpu_embeds_asks_and_says_the_cost(monkeypatch, tmp_path):
    pytest.importorskip("dwave.system")
    shown = _run("qubo_to_qpu", monkeypatch, tmp_path)
    assert re.search(r"10 variables take \d\d qubits", shown)
    cost = [float(ms) for ms in re.findall(r"reads: +([0-9.]+) ms announced", shown)]
    assert 0 < cost[0] < cost[1]


def test_language_model_prunes_by_every_method_and_shares_what_layers_lose(monkeypatch, tmp_path):
    pytest.importorskip("transformers", reason="the extra 'notebooks' is not installed")
    shown = _run("language_model", monkeypatch, tmp_path)
    table = shown[shown.rindex("magnitude  Wanda") :].splitlines()
    assert table[0].split() == ["magnitude", "Wanda", "SparseGPT", "reconstruct", "qprune"]
    found = [[float(cell) for cell in line.split()] for line in table[2:4]]
    assert [line[0] for line in found] == [0.5, 0.8]
    assert all(1 < perplexity < 100 for line in found for perplexity in line[1:])
    budgets = shown[shown.index("q_proj") :].splitlines()[1:3]
    shares = [float(cell) for line in budgets for cell in line.split()[1:]]
    assert len(shares) == 14
    assert min(shares) < 80 < max(shares)
    assert re.search(r"^qprune +\.\.\.", shown, re.MULTILINE)


def test_own_sampler_is_checked_listed_and_used(monkeypatch, tmp_path):
    shown = _run("own_sampler", monkeypatch, tmp_path)
    assert "'same_seed'" in shown  # of the check that passed
    assert re.search(r"MeanField fails .*\noptimal_when_small", shown)
    assert re.search(r"^mean-field +counts: False", shown, re.MULTILINE)
    assert "90.0% of the weights are zero" in shown


def test_what_a_sample_is_worth_ranks_answers_by_their_loss(monkeypatch, tmp_path):
    shown = _run("what_a_sample_is_worth", monkeypatch, tmp_path)
    rank = float(re.search(r"promise and outcome: (-?[0-9.]+)", shown)[1])
    assert rank > 0.85
    promised = dict(re.findall(r"^(\w+) +promises +(-?[0-9.]+) nats", shown, re.MULTILINE))
    assert float(promised["relax"]) <= float(promised["greedy"]) < 0 < float(promised["random"])
    ends = {name: float(x) for name, x in re.findall(r"^(\w+) .*ends at ([0-9.]+)", shown, re.M)}
    assert ends["relax"] < ends["random"]


def test_own_sampler_takes_under_twenty_lines():
    lines = [
        line for cell in _tagged(_source("own_sampler"), "mine") for line in cell.source.split("\n")
    ]
    assert 0 < sum(bool(line.strip()) for line in lines) < 20


@pytest.mark.parametrize("name", NAMES)
def test_source_and_notebook_are_in_step(name):
    source, stored = _source(name), _stored(name)
    assert [(c.cell_type, c.source) for c in stored.cells] == [
        (c.cell_type, c.source) for c in source.cells
    ], f"write {name}.ipynb again, see CONTRIBUTING.md"
    assert [c.metadata.get("tags", []) for c in stored.cells] == [
        c.metadata.get("tags", []) for c in source.cells
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_notebook_was_run_from_top_to_bottom(name):
    stored = _code(_stored(name))
    assert [cell.execution_count for cell in stored] == list(range(1, len(stored) + 1))
    kinds = {(o.output_type, o.get("name")) for cell in stored for o in cell.outputs}
    assert kinds <= {("stream", "stdout"), ("execute_result", None), ("display_data", None)}
    assert any("image/png" in o.get("data", {}) for cell in stored for o in cell.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_notebook_is_small_and_free_of_machine_paths(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 300_000
    shown = "\n".join(_texts(_code(_stored(name))))
    assert not re.search(r"(/home|/root|/tmp|/usr|/work|/Users|[A-Z]:\\)", shown)
