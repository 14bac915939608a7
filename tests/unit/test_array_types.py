"""Shapes and dtypes in annotations are checked while the tests run."""

import ast
from importlib import import_module
from pathlib import Path

import array_types
import jaxtyping
import numpy as np
import pytest
import torch

from qprune.network.groups import Global, prune_lowest
from qprune.network.weights import find_weights
from qprune.steps.formulate import Block
from solvers import Dense


def _block(**other):
    vectors = dict.fromkeys(("current", "keep_value", "gradient"), np.zeros(3))
    whole = dict.fromkeys(("indices", "groups"), np.arange(3))
    return Block(
        **vectors | whole | {"pruned": np.zeros(3, np.int8), "counts": np.ones(1, int)} | other
    )


def _lowest(scores, kept):
    weights = find_weights(torch.nn.Linear(4, 2))
    return prune_lowest(scores, kept, Global().groups(weights, 0.5), 4)


def test_what_is_annotated_passes():
    assert _block().counts.tolist() == [1]
    assert _lowest(torch.rand(8), torch.ones(8, dtype=torch.bool)).sum() == 4


@pytest.mark.parametrize(
    "other",
    [{"gradient": np.zeros(4)}, {"pruned": np.zeros(3, bool)}, {"counts": np.ones((1, 1), int)}],
    ids=["length", "dtype", "dimensions"],
)
def test_a_dataclass_refuses_an_array_of_another(other):
    with pytest.raises(jaxtyping.TypeCheckError, match=next(iter(other))):
        _block(**other)


def test_arguments_must_agree():
    with pytest.raises(jaxtyping.TypeCheckError, match="kept"):
        _lowest(torch.rand(8), torch.ones(7, dtype=torch.bool))


def test_a_method_with_an_array_of_the_wrong_rank_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="x"):
        Dense(np.eye(3)).values(np.ones(3))


def _of_jaxtyping(module):
    """The names that the module imports from jaxtyping, and the annotations in it."""
    nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text())))
    imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "jaxtyping"]
    annotations = [n.annotation for n in nodes if isinstance(n, ast.arg | ast.AnnAssign)]
    annotations += [n.returns for n in nodes if isinstance(n, ast.FunctionDef)]
    told = {ast.unparse(found) for found in annotations if found is not None}
    return {alias.name for found in imports for alias in found.names}, told


@pytest.mark.parametrize("name", array_types.MODULES)
def test_every_annotation_of_an_array_is_found(name):
    """A name that is not found would leave the array unchecked, without a word."""
    module = import_module(name)
    kinds, told = _of_jaxtyping(module)
    arrays = [text for text in told if any(f"{kind}[" in text for kind in kinds)]
    assert arrays
    for text in arrays:
        assert array_types.is_array(eval(text, vars(module))), text


def test_every_module_with_such_annotations_is_checked():
    root = Path(array_types.__file__).parents[1]
    sources = [path for top in ("qprune", "solvers") for path in (root / top).rglob("*.py")]
    names = {
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in sources
        if "from jaxtyping import" in path.read_text()
    }
    assert names == set(array_types.MODULES)
