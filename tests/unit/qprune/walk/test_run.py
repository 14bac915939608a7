"""What all actions of a run share, and the one entry to them."""

import ast
import inspect
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tiny_models
import torch

import qprune
from qprune.errors import ImpossibleRequestError
from qprune.moving.distill import Distillation
from qprune.walk import schedule
from qprune.walk.run import Run

PACKAGE = Path(qprune.__file__).parent


class Watched(Run):
    """A run that notes which of its fields are read, and by which action."""

    reads: list = []  # noqa: RUF012

    def __getattribute__(self, name):
        if name in Run.__dataclass_fields__:
            Watched.reads[-1].add(name)
        return super().__getattribute__(name)


def test_a_run_has_at_most_twelve_fields_each_read_by_two_actions_or_more(monkeypatch):
    pytest.importorskip("transformers")
    assert len(fields(Run)) <= 12

    attempted = schedule.attempted

    def watched(run, action, progress):
        Watched.reads.append(set())
        shared = {f.name: object.__getattribute__(run, f.name) for f in fields(Run)}
        return attempted(Watched(**shared), action, progress)

    Watched.reads = [set()]
    monkeypatch.setattr(schedule, "attempted", watched)
    model = tiny_models.make("llama")
    across = qprune.Networkwise(
        start=None, rounds=1, final_rounds=3, num_blocks=2, block_size=32, accept_share=0.25
    )
    qprune.prune(
        model,
        tiny_models.samples(model, 12),
        sparsity=0.5,
        method=(qprune.Layerwise("wanda"), across),
        compensate=Distillation(4, final_steps=1, at_end=True),
        augment=None,
    )
    actions = Watched.reads[1:]
    assert len(actions) == 2 + 1 + 3 + 1  # Blocks, the beginning of stage 2, rounds, the end.
    for name in (field.name for field in fields(Run)):
        assert sum(name in read for read in actions) >= 2, f"{name} is read by one action at most"


def names_of(kinds):
    """Every name that the package defines in one of the kinds of nodes, with its file."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds):
                yield node.name, path.relative_to(PACKAGE).as_posix()


def test_what_the_one_walk_replaced_is_gone():
    found = list(names_of(ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
    gone = {"Setting", "Request", "Plan", "prune_layerwise", "prune_network"}
    assert [(name, path) for name, path in found if name in gone] == []
    assert [path for name, path in found if name == "prune" and "/" not in path] == ["prune.py"]


MOVED = {
    "stages": "method=Networkwise(stages=...)",
    "start": "method=Networkwise(start=...)",
    "curvature": "method=Networkwise(curvature=...)",
    "select": "method=Networkwise(select=...)",
    "terms": "method=Networkwise(terms=...)",
    "block_size": "method=Networkwise(block_size=...)",
    "num_blocks": "method=Networkwise(num_blocks=...)",
    "rounds": "method=Networkwise(rounds=...)",
    "final_rounds": "method=Networkwise(final_rounds=...)",
    "samples_per_step": "method=Networkwise(samples_per_step=...)",
    "damping": "method=Networkwise(damping=...)",
    "accept_share": "method=Networkwise(accept_share=...)",
    "max_seconds": "limits=Limits(max_seconds=...)",
    "max_steps": "limits=Limits(max_steps=...)",
    "max_memory": "limits=Limits(max_memory=...)",
    "should_stop": "limits=Limits(should_stop=...)",
    "expect": "limits=Limits(expect=...)",
    "care": "on_fault=FaultPolicy(...)",
}


@pytest.mark.parametrize(("name", "place"), MOVED.items(), ids=MOVED)
def test_a_keyword_that_moved_is_refused_with_where_it_went(name, place):
    model = torch.nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with pytest.raises(ImpossibleRequestError) as caught:
        qprune.prune(model, torch.randn(8, 4), sparsity=0.5, **{name: None})
    assert str(caught.value) == f"prune() has no argument {name!r} any more; pass {place}"
    assert torch.equal(model.weight, before)
    # The place is one: the class is public, and takes the field.
    word, _, call = place.partition("=")
    maker = getattr(qprune, call.partition("(")[0])
    assert word in inspect.signature(qprune.prune).parameters
    if name != "care":
        assert name in {field.name for field in fields(maker)}


def test_a_keyword_that_never_was_is_python_s_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'sparsty'"):
        qprune.prune(torch.nn.Linear(4, 3), torch.randn(8, 4), sparsty=0.5)


def test_everything_that_the_signature_names_can_be_imported_from_the_package():
    tree = ast.parse((PACKAGE / "prune.py").read_text())
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "prune")
    every = [*function.args.args, *function.args.kwonlyargs]
    parts = [arg.annotation for arg in every] + function.args.kw_defaults + [function.returns]
    names = {n.id for part in parts if part for n in ast.walk(part) if isinstance(n, ast.Name)}
    others = {"Any", "Callable", "Mapping", "Path", "Sequence", "bool", "float", "int", "str", "nn"}
    ours = names - others
    assert {"Networkwise", "Limits", "Budget", "Pruned", "NofM", "Observer"} <= ours
    hidden = {"ALONE"}  # The default of ranks, for which None stands, too.
    assert {n for n in ours - hidden if n not in qprune.__all__ and not _alias(n)} == set()


def _alias(name):
    """Whether a public name means what prune.py calls ``name``."""
    meant = getattr(inspect.getmodule(qprune.prune), name)
    return any(public is meant for public in vars(qprune).values())


def test_fields_of_a_run_cannot_be_changed():
    assert replace(Run(*[None] * len(fields(Run))), seed=3).seed == 3
    with pytest.raises(AttributeError):
        Run(*[None] * len(fields(Run))).seed = 3
