"""Rows of a study to an experiment tracker: with one of its interface, and with the real one."""

import json
import sqlite3
import subprocess
import sys
import types

import pytest

from qprune.cli.compare import tracker
from qprune.errors import ImpossibleRequestError

ROW = {"sampler": "sa", "energy": -1.5, "beaten": False, "reason": "", "trace": [1], "state": None}


class Noisy(types.ModuleType):
    """Has trackio's interface, and its habit of printing."""

    def __init__(self):
        super().__init__("trackio")
        self.calls = []

    def init(self, **options):
        print("initialized")
        self.calls.append(("init", options["project"]))
        return self

    def log(self, metrics):
        self.calls.append(("log", metrics))

    def finish(self):
        print("finished")
        self.calls.append(("finish",))


@pytest.fixture
def noisy(monkeypatch):
    module = Noisy()
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def test_plain_values_of_every_row_are_logged_and_nothing_is_printed(noisy, capsys):
    with tracker("mine") as observers:
        for number in (1, 2):
            observers[0](ROW, number, 2)
    plain = {"sampler": "sa", "energy": -1.5, "beaten": False, "reason": "", "total": 2}
    assert noisy.calls == [
        ("init", "mine"),
        ("log", plain | {"done": 1}),
        ("log", plain | {"done": 2}),
        ("finish",),
    ]
    assert capsys.readouterr().out == ""


def test_a_run_that_fails_is_finished_too(noisy):
    with pytest.raises(KeyError), tracker("mine"):
        raise KeyError
    assert noisy.calls[-1] == ("finish",)


def test_nothing_is_tracked_unasked(noisy):
    with tracker(None) as observers:
        assert observers == []
    assert noisy.calls == []


def test_without_the_package_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with (
        pytest.raises(ImpossibleRequestError, match=r"pip install 'qprune\[track\]'"),
        tracker("x"),
    ):
        pass


def test_the_real_one_keeps_rows_on_this_machine(tmp_path):
    pytest.importorskip("trackio", reason="the extra 'track' is not installed")
    code = (
        "import sys\nfrom qprune.cli.compare import tracker\n"
        f"with tracker('mine') as told:\n    told[0]({ROW!r}, 1, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "1"}
        | {"TRACKIO_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    connection = sqlite3.connect(tmp_path / "mine.db")
    ((metrics,),) = connection.execute("select metrics from metrics").fetchall()
    connection.close()
    assert json.loads(metrics)["energy"] == -1.5
