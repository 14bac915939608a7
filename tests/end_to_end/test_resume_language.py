"""Runs of language models that are stopped, killed, lied about: resume, check, verify, report."""

import json
import os
import shutil
import signal
import sys

import pytest
import tiny_language as tiny
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from qprune.cli.bars import ProgressBar
from qprune.cli.main import main
from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.network.mask_file import packed_bytes, read_mask
from qprune.record.checkpoint import CHECKPOINTS, Checkpoints
from qprune.record.folder import STEPS
from solvers.host.disk import LOCK

MODEL, MASK = "model.safetensors", "mask.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny model in half precision, and a text."""
    folder = tmp_path_factory.mktemp("source")
    tiny.llama().half().save_pretrained(folder / "llama")
    tiny.tokenizer().save_pretrained(folder / "llama")
    (folder / "text.txt").write_text(tiny.text(2000))
    return folder


@pytest.fixture(scope="module")
def command(source):
    """`qprune` in this process: exit code, standard output, standard error."""

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch, capture() as streams:
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(sys, "argv", ["qprune", *map(str, arguments)])
            with pytest.raises(SystemExit) as ending:
                main()
        return ending.value.code or 0, *(stream.getvalue() for stream in streams)

    return run


class capture:  # noqa: N801 - reads as a function
    """Both standard streams, also where pytest's own fixture is of a narrower scope."""

    def __enter__(self):
        import contextlib
        import io

        self._stack = contextlib.ExitStack()
        streams = io.StringIO(), io.StringIO()
        self._stack.enter_context(contextlib.redirect_stdout(streams[0]))
        self._stack.enter_context(contextlib.redirect_stderr(streams[1]))
        return streams

    def __exit__(self, *_):
        self._stack.close()


@pytest.fixture(scope="module")
def options(source):
    asked = ["--model", source / "llama", "--data", f"text:{source / 'text.txt'}"]
    asked += ["--max-seq-length", 16, "--num-calibration-samples", 16, "--sparsity", 0.7]
    return asked


ACROSS = ["--stage2-steps", 8, "--rounds", 1, "--block-size", 64]


@pytest.fixture(scope="module")
def whole(command, options, tmp_path_factory):
    """A finished run, and what a kill at some moments of it would have left."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "offer", Checkpoints.write)
        leave_copies(patch, folder / "whole")
        code, out, err = command("prune", *options, *ACROSS, "--output", folder / "whole", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == 5
    assert kinds_of(folder / "whole") == ["block", "block", "start", "blocks", "compensate"]
    return folder


def leave_copies(patch, run):
    """At every step, what a kill would leave."""
    original = ProgressBar.__call__

    def observe(bar, step):
        original(bar, step)
        target = run.with_name(f"killed-{step.index}")
        shutil.copytree(run, target, ignore=shutil.ignore_patterns(LOCK))

    patch.setattr(ProgressBar, "__call__", observe)


def kinds_of(folder):
    return [json.loads(line)["kind"] for line in (folder / STEPS).read_text().splitlines()]


def assert_same(folder, whole):
    for name in (MODEL, MASK):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    reports = [json.loads((place / "report.json").read_text()) for place in (folder, whole)]
    layers = [
        [(one["name"], one["num_pruned"], one["error"]) for one in report["layers"]]
        for report in reports
    ]
    assert layers[0] == layers[1]
    assert kinds_of(folder) == kinds_of(whole)


@pytest.mark.parametrize("moment", range(5))
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(whole, command, tmp_path, moment):
    folder = tmp_path / "run"
    shutil.copytree(whole / f"killed-{moment}", folder)
    assert not (folder / MODEL).exists()
    code, out, err = command("resume", folder, "--json")
    assert code == 0, err
    outcome = json.loads(out.splitlines()[-1])
    assert outcome["stopped"] == "done"
    assert_same(folder, whole / "whole")
    assert not any((folder / name).exists() for name in CHECKPOINTS)


def test_a_signal_ends_it_in_order_and_it_goes_on(whole, command, options, tmp_path, monkeypatch):
    original = ProgressBar.__call__

    def stopping(bar, step):
        original(bar, step)
        if step.index == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ProgressBar, "__call__", stopping)
    folder = tmp_path / "run"
    code, _, err = command("prune", *options, *ACROSS, "--output", folder)
    assert code == 130, err
    assert f"`qprune resume {folder}` goes on" in err
    mask = read_mask(folder / MASK)
    size = sum(kept.numel() for kept in mask.values())
    assert sum(int((~kept).sum()) for kept in mask.values()) == round(0.7 * size)
    monkeypatch.undo()
    assert command("check", folder)[0] == 0
    code, _, err = command("resume", folder)
    assert code == 0, err
    assert_same(folder, whole / "whole")


def test_a_finished_run_checks_out_and_its_figures_are_computed_again(whole, command):
    for verb, words in (
        ("check", "targeted weights are exactly zero"),
        ("verify", "scores are what the folder says"),
        ("report", "report.html"),
        ("resume", "is finished (done)"),
    ):
        code, out, err = command(verb, whole / "whole")
        assert code == 0, err
        assert words in " ".join(out.split())
    page = (whole / "whole" / "report.html").read_text()
    assert "model.layers.0.self_attn.q_proj" in page
    code, _, err = command("prune", "--config", whole / "whole" / "config.yaml", "--output", whole)
    assert code == 2
    assert "is not empty" in err


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole / "whole", tmp_path / "run")
    return tmp_path / "run"


def tamper_weight(folder):
    weights = load_file(folder / MODEL)
    weights["model.layers.0.mlp.up_proj.weight"] += 1
    save_file(weights, folder / MODEL, {"format": "pt"})


def lose_kept_weight(folder):
    weights, mask = load_file(folder / MODEL), read_mask(folder / MASK)
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][tuple(mask[name].nonzero()[0])] = 0
    save_file(weights, folder / MODEL, {"format": "pt"})


def tamper_mask(folder):
    mask = read_mask(folder / MASK)
    mask["model.layers.0.mlp.up_proj.weight"][:] = True
    (folder / MASK).write_bytes(packed_bytes(mask))


def tamper_card(folder):
    text = (folder / "pruning.json").read_text()
    (folder / "pruning.json").write_text(text.replace('"num_pruned": ', '"num_pruned": 1'))


def tamper_steps(folder):
    lines = (folder / STEPS).read_text().splitlines()
    (folder / STEPS).write_text("\n".join(lines[:-1]) + "\n")


def remove_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (tamper_weight, "that the mask prunes are not exactly zero"),
        (lose_kept_weight, "weights that the mask keeps have changed"),
        (tamper_mask, "report.json says"),
        (tamper_card, "pruning.json says"),
        (tamper_steps, "steps.jsonl has "),
        (remove_config, "config.json is missing"),
    ],
)
def test_check_catches_a_folder_that_lies(folder, command, tamper, complaint):
    tamper(folder)
    code, _, err = command("check", folder)
    assert code == 1
    assert complaint in err


def test_verify_finds_what_the_files_alone_do_not_show(folder, command, source):
    weights = load_file(folder / MODEL)
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name] * 3
    save_file(weights, folder / MODEL, {"format": "pt"})
    assert command("check", folder)[0] == 0
    code, _, err = command("verify", folder)
    assert code == 1
    assert "model.safetensors does not match" in err
    assert "the report says final accuracy None" in err


def test_one_pass_methods_leave_such_folders_too(command, options, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        leave_copies(patch, tmp_path / "run")
        arguments = [*options, "--method", "wanda", "--mask-only", "--output", tmp_path / "run"]
        code, _, err = command("prune", *arguments)
    assert code == 0, err
    for verb in ("check", "verify", "report"):
        code, _, err = command(verb, tmp_path / "run")
        assert code == 0, err
    code, _, err = command("resume", tmp_path / "killed-0")
    assert code == 0, err
    assert_same(tmp_path / "killed-0", tmp_path / "run")
    weights = load_file(tmp_path / "run" / MODEL)
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name] * 2
    save_file(weights, tmp_path / "run" / MODEL, {"format": "pt"})
    code, _, err = command("verify", tmp_path / "run")
    assert code == 1
    assert f"{name}: kept weights differ from the dense ones" in err


def test_another_model_is_refused_by_name(whole, command, source, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole / "killed-3", folder)
    config = (folder / "config.yaml").read_text()
    tiny.llama(seed=1).half().save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    (folder / "config.yaml").write_text(
        config.replace(str(source / "llama"), str(tmp_path / "other"))
    )
    code, _, err = command("resume", folder)
    assert code == 2
    assert "the model is another one" in err


def test_a_run_that_fails_in_stage_1_leaves_nothing(command, options, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise ImpossibleRequestError("no further")

    monkeypatch.setattr("qprune.walk.layerwise.quadratic", failing)
    code, _, err = command("prune", *options, *ACROSS, "--output", tmp_path / "runs" / "run")
    assert code == 2
    assert "qprune: no further" in err
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_disk_that_fills_at_the_end_loses_nothing(whole, command, options, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RunFolderError("cannot write it: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qprune.jobs.kinds.save_model", full)
        code, _, err = command("prune", *options, *ACROSS, "--output", tmp_path / "run")
    assert code == 2
    assert "No space left" in err
    assert not (tmp_path / "run" / "config.json").exists()
    code, _, err = command("resume", tmp_path / "run")
    assert code == 0, err
    assert_same(tmp_path / "run", whole / "whole")
