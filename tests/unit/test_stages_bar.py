"""The bar of a language model's run, on a terminal."""

import io
import re

from rich.console import Console

from qprune.cli.bars import StagesBar
from qprune.results import Step
from qprune.walk.layerwise import LayerOutcome

STEP = {
    **{"index": 1, "stage": 0, "round": 0, "sparsity": 0.5, "predicted": None, "fit_loss": 0.0},
    **{"real": -0.1, "loss": 0.25, "flips": 0, "price": 0.0},
}


def test_it_says_where_the_run_is():
    console = Console(file=io.StringIO(), force_terminal=True, width=140)

    def shown():
        bar._progress.refresh()
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue().splitlines()[-1])

    with StagesBar(console) as bar:
        assert list(bar.track([5, 6], "evaluating")) == [5, 6]
        assert "evaluating" in shown()
        bar.text(3, 9)
        assert "the model writes text" in shown()
        assert "3 of 9 sequences" in shown()
        bar.layer(LayerOutcome("mlp.up", (2, 4), 8, 4, 0.125, 9, 1.0, 1.0), 1, 7)
        assert "1 of 7: mlp.up, output error 0.125" in shown()
        bar.moves(2, 40)
        assert "2 of 40 moves" in shown()
        bar.step(Step(kind="start", accepted=True, **STEP))
        assert "2 of 40 moves" in shown()
        bar.step(Step(kind="blocks", accepted=False, **STEP))
        assert "blocks not taken, loss 0.25 nats" in shown()


def test_without_a_terminal_nothing_is_drawn():
    console = Console(file=io.StringIO())
    with StagesBar(console) as bar:
        bar.moves(1, 2)
        assert list(bar.track([1], "evaluating")) == [1]
    assert console.file.getvalue() == ""
