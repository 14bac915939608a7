"""The bar of a run, on a terminal."""

import io
import re

from rich.console import Console

from qprune.cli.bars import ProgressBar
from qprune.results import LayerRecord, Step

STEP = {
    **{"index": 1, "stage": 2, "round": 0, "sparsity": 0.25, "predicted": None, "fit_loss": 0.0},
    **{"real": -0.1, "loss": 0.25, "flips": 0, "price": 0.0},
}


def test_it_says_where_the_run_is():
    console = Console(file=io.StringIO(), force_terminal=True, width=140)

    def shown():
        bar._progress.refresh()
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue().splitlines()[-1])

    with ProgressBar(0.5, console) as bar:
        bar.tell("the model writes text", 3, 9)
        assert "the model writes text" in shown()
        assert "3 of 9" in shown()
        layers = tuple(LayerRecord(f"up{e}", (2, 4), 8, 4, error=e) for e in (0.125, 0.0625))
        bar(Step(kind="block", accepted=True, layers=layers, **STEP))
        assert "block 1" in shown()
        assert "25.0 % zero, output error 0.125" in shown()
        assert bar._progress.tasks[0].percentage == 50
        bar.tell("moves", 2, 40)
        assert "2 of 40" in shown()
        bar(Step(kind="blocks", accepted=False, **STEP))
        assert "stage 3" in shown()
        assert "25.0 % zero, loss 0.25, 1 of 2 steps taken" in shown()


def test_without_a_terminal_nothing_is_drawn():
    console = Console(file=io.StringIO())
    with ProgressBar(0.5, console) as bar:
        bar.tell("moves", 1, 2)
        bar(Step(kind="blocks", accepted=False, **STEP))
    assert console.file.getvalue() == ""
