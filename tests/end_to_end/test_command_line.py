"""The command line as a user has it: a real run on real digits, and what mistakes get."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from qprune.cli import main as cli
from qprune.models.zoo import load_model
from qprune.network.mask_file import packed_bytes, read_mask
from qprune.record.checkpoint import CHECKPOINTS
from qprune.record.folder import CHECKSUMS, CONFIG, FILES, MASK, MODEL, REPORT_JSON, STEPS
from solvers.host.disk import LOCK

PRUNE = ["prune", "--model", "digits-mlp", "--data", "digits"]
SHORT = ["--stages", "3", "--rounds", "1", "--final-rounds", "2", "--block-size", "256"]
TRIAL = [*PRUNE, *SHORT, "--sparsity", "0.9", "--num-calibration-samples", "400"]


MAIN = "import sys; from qprune.cli.main import main; sys.argv[0] = 'qprune'; main()"


def run(*arguments):
    """`qprune` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run: its folder and its process."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, run(*TRIAL, "--output", folder, "--json")


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    """The dense network's weights, so that it need not be trained again."""
    path = tmp_path_factory.mktemp("dense") / "digits.safetensors"
    save_file(load_model("digits-mlp").state_dict(), path)
    return path


@pytest.fixture
def folder(finished, tmp_path):
    """A copy to tamper with."""
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def qprune(monkeypatch, capsys):
    """`qprune` in this process: exit code, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["qprune", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        done = capsys.readouterr()
        return stopped.value.code or 0, done.out, done.err

    return call


def test_a_run_says_what_it_did_in_the_last_line(finished):
    _, done = finished
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["asked_sparsity"] == 0.9
    assert outcome["achieved_sparsity"] == pytest.approx(0.9, abs=1 / 8832)
    assert outcome["dense"]["accuracy"] == pytest.approx(0.974)
    for name in ("dense", "start", "final"):
        assert set(outcome[name]) == {"accuracy", "loss", "perplexity"}
    assert outcome["final"]["loss"] < outcome["start"]["loss"]
    assert 0 < outcome["accepted"] <= outcome["steps"]
    assert outcome["seconds"] > 0
    assert outcome["cpu_seconds"] > 0
    assert outcome["seed"] == 0


def test_a_finished_run_has_nothing_to_go_on_with(finished, qprune):
    code, out, err = qprune("resume", finished[0])
    assert (code, err) == (0, "")
    assert "nothing to go on with" in out


def test_resume_tidies_what_a_kill_at_the_very_end_left(folder, qprune):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    left = [*CHECKPOINTS, ".model.safetensors.99.tmp"]
    for name in left:
        (folder / name).write_bytes(b"left")
    # An earlier version, or `report` killed between page and checksum.
    sums = (folder / CHECKSUMS).read_text().splitlines(keepends=True)
    (folder / CHECKSUMS).write_text("".join(line for line in sums if "report.html" not in line))
    code, _, err = qprune("verify", folder)
    assert code == 1
    assert "report.html is not in checksums.sha256; `qprune report` writes both" in err
    code, out, _ = qprune("resume", folder)
    assert code == 0
    assert "is finished (done)" in out
    assert {path.name for path in folder.iterdir()} == {*before}
    same = {*before} - {"report.html", CHECKSUMS}
    assert all((folder / name).read_bytes() == before[name] for name in same)
    assert qprune("verify", folder)[0] == 0


def test_resume_makes_the_outcome_again_where_its_checksums_are_gone(folder, qprune):
    before = {name: (folder / name).read_bytes() for name in (MODEL, MASK, "fingerprint.json")}
    (folder / CHECKSUMS).unlink()
    assert qprune("verify", folder)[0] == 1
    assert qprune("resume", folder)[0] == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert qprune("verify", folder)[0] == 0


def test_resume_wants_the_fingerprint(folder, qprune):
    (folder / "fingerprint.json").unlink()
    code, out, err = qprune("resume", folder)
    assert (code, out) == (2, "")
    assert "its fingerprint.json is missing" in err
    (folder / REPORT_JSON).unlink()
    code, _, err = qprune("resume", folder)
    assert code == 2
    assert "fingerprint.json is missing, so that the run of steps.jsonl" in err


def test_verify_computes_the_figures_again(finished, qprune):
    code, out, err = qprune("verify", finished[0])
    assert code == 0, err
    assert "are what the folder says" in out


def _another_model(folder):
    path = folder / CONFIG
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))


def _better_score(folder):
    path = folder / REPORT_JSON
    record = json.loads(path.read_text())
    record["final"]["loss"] /= 2
    path.write_text(json.dumps(record))


def _other_kept_weights(folder):
    weights = load_file(folder / MODEL)
    name = next(iter(read_mask(folder / MASK)))
    weights[name] *= 1.5
    save_file(weights, folder / MODEL)


def _another_page(folder):
    page = folder / "report.html"
    page.write_bytes(page.read_bytes().replace(b"pruned", b"Pruned", 1))


@pytest.mark.parametrize(
    ("tamper", "complaints"),
    [
        (_another_model, ["config.yaml does not match", "calibration data are not those"]),
        (_better_score, ["report.json does not match", "the report says final accuracy"]),
        (_other_kept_weights, ["model.safetensors does not match", "computed again"]),
        (_another_page, ["report.html does not match"]),
    ],
)
def test_verify_finds_what_the_files_alone_do_not_show(folder, qprune, tamper, complaints):
    tamper(folder)
    assert qprune("check", folder)[0] == 0
    code, _, err = qprune("verify", folder)
    assert code == 1
    for complaint in complaints:
        assert complaint in err


@pytest.mark.parametrize("command", ["resume", "verify"])
def test_a_folder_cannot_make_the_user_import_code(folder, qprune, command):
    path = folder / CONFIG
    path.write_text(path.read_text().replace("model: digits-mlp", "model: antigravity:fly"))
    (folder / REPORT_JSON).unlink()
    code, _, err = qprune(command, folder)
    assert code == 2
    assert "ask to import 'antigravity:fly'" in err
    assert "antigravity" not in sys.modules
    assert "--model antigravity:fly, not" in qprune(command, folder, "--model", "digits-mlp")[2]


def test_the_folder_holds_all_and_checks_out(finished, qprune):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {*FILES, LOCK}
    weights, mask = load_file(folder / MODEL), read_mask(folder / MASK)
    assert set(mask) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    zeros = sum(int((weights[name] == 0).sum()) for name in mask)
    assert zeros == sum(int((~kept).sum()) for kept in mask.values())
    load_model("digits-mlp", folder / MODEL)
    code, out, err = qprune("check", folder)
    assert (code, err) == (0, "")
    assert f"{zeros} of 8832" in out


def test_the_written_configuration_repeats_the_run(finished, tmp_path, qprune):
    folder, _ = finished
    code, _, err = qprune("prune", "--config", folder / CONFIG, "--output", tmp_path / "again")
    assert code == 0, err
    first, again = read_mask(folder / MASK), read_mask(tmp_path / "again" / MASK)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (folder / MODEL).read_bytes() == (tmp_path / "again" / MODEL).read_bytes()


def test_recorded_blocks_go_to_a_comparison_and_the_run_is_as_without(finished, tmp_path, qprune):
    blocks, again = tmp_path / "blocks", tmp_path / "again"
    config = ["--config", finished[0] / CONFIG]
    code, _, err = qprune("prune", *config, "--output", again, "--record-blocks", blocks)
    assert code == 0, err
    assert re.search(rf"{blocks} holds \d+ problems, [\d.]+ MB", err)
    assert (again / MODEL).read_bytes() == (finished[0] / MODEL).read_bytes()
    samplers = ["--sampler", "greedy", "--sampler", "random", "--budget", "1reads"]
    done = run("compare", blocks, *samplers, "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"] == 2 * len(list(blocks.glob("*.npz"))) > 4
    code, _, err = qprune("prune", *config, "--record-blocks", blocks)
    assert code == 2
    assert "is not empty; choose a new folder" in err


def test_a_pruning_run_with_sampler_after_sampler_goes_on_after_a_kill(dense, tmp_path, qprune):
    config, folder = tmp_path / "run.yaml", tmp_path / "study"
    config.write_text(
        f"model: digits-mlp\nweights: {dense}\ndata: digits\nsparsity: 0.9\nstages: 2\n"
        "rounds: 1\nfinal_rounds: 1\nblock_size: 64\nnum_calibration_samples: 200\n"
    )
    samplers = ["--sampler", "greedy", "--sampler", "floor=random", "--repeats", "1"]
    asked = ["compare", "--prune", config, *samplers, "--output", folder, "--json"]
    command = [sys.executable, "-c", MAIN, *map(str, asked), "--budget", "2reads"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    rows = folder / "rows.jsonl"
    while not (rows.exists() and rows.read_text().count("\n")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before = rows.read_text().splitlines()
    done = run(*asked, "--budget", "2reads")
    assert done.returncode == 0, done.stderr
    assert rows.read_text().splitlines()[: len(before)] == before
    outcome = json.loads(done.stdout)
    assert outcome["runs"] == 2
    assert {one["sampler"] for one in outcome["samplers"]} == {"greedy", "floor"}
    assert all(0 < one["test accuracy"] < 1 for one in outcome["samplers"])
    assert "digits-mlp pruned to 90 %, by sampler" in (folder / "report.html").read_text()
    code, _, err = qprune(*asked, "--budget", "3reads")
    assert code == 2
    assert "holds another study: its budgets reads amount is 2.0, not 3.0" in err


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ((["--generate", "fisher:n=8"]), "leave --generate out"),
        ((["problem.qubo"]), "leave a problem out"),
        ((["--sampler", "no-such"]), "no sampler is called 'no-such'"),
    ],
)
def test_a_pruning_study_that_cannot_be_is_refused(tmp_path, qprune, asked, complaint):
    config = tmp_path / "run.yaml"
    config.write_text("model: digits-mlp\ndata: digits\nsparsity: 0.9\n")
    code, _, err = qprune("compare", *asked, "--prune", config, "--budget", "1s")
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1


def test_a_pruning_study_imports_nothing_that_only_its_file_names(tmp_path, qprune):
    config = tmp_path / "run.yaml"
    config.write_text("model: antigravity:fly\ndata: digits\nsparsity: 0.9\n")
    asked = ["compare", "--prune", config, "--sampler", "greedy", "--budget", "1s"]
    code, _, err = qprune(*asked)
    assert code == 2
    assert "ask to import 'antigravity:fly'" in err
    assert "antigravity" not in sys.modules
    code, _, err = qprune("compare", "--model", "antigravity:fly", *asked[3:])
    assert code == 2
    assert "--model and --data go with --prune" in err


def test_a_model_and_data_of_the_users_own(tmp_path, monkeypatch, qprune):
    (tmp_path / "my_own_network.py").write_text(
        "import torch\n"
        "from qprune.models.datasets import DataSet\n"
        "from qprune.models.zoo import MLP\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    return MLP((6, 8, 3), bias=True)\n"
        "def data():\n"
        "    inputs = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))\n"
        "    labels = net()(inputs).argmax(1)\n"
        "    return DataSet(inputs[:60], labels[:60], inputs[60:], labels[60:])\n"
    )
    monkeypatch.chdir(tmp_path)
    own = ["--model", "my_own_network:net", "--data", "my_own_network:data"]
    small = ["--num-calibration-samples", "60", "--block-size", "16", "--stages", "2"]
    code, out, err = qprune("prune", *own, *small, "--rounds", "1", "--sparsity", "0.5", "--json")
    assert code == 0, err
    outcome = json.loads(out)
    assert outcome["dense"]["accuracy"] == 1
    assert outcome["achieved_sparsity"] == 0.5


@pytest.mark.parametrize(
    ("options", "pruned_in_a_row"),
    [
        (["--mask-structure", "2:4"], {"fc1.weight": 32, "fc3.weight": 32}),
        (["--mask-structure", "1:4", "--sparsity", "0.75"], {"fc1.weight": 48}),
        (["--budget", "row", "--density", "0.25"], {"fc1.weight": 48, "fc3.weight": 48}),
        (["--budget", "layer", "--sparsity", "0.5", "--ignore", "fc3"], None),
    ],
)
def test_structures_and_budgets_are_kept(dense, tmp_path, qprune, options, pruned_in_a_row):
    folder = tmp_path / "run"
    one_shot = ["--stages", "1", "--rounds", "1", "--final-rounds", "1", "--mask-only"]
    code, _, err = qprune(
        *PRUNE, "--weights", dense, *one_shot, "--block-size", "64", *options, "--output", folder
    )
    assert code == 0, err
    assert qprune("check", folder)[0] == 0
    mask, before, after = read_mask(folder / MASK), load_file(dense), load_file(folder / MODEL)
    for name, count in (pruned_in_a_row or {}).items():
        assert set((~mask[name]).sum(1).tolist()) == {count}
    if "--ignore" in options:
        assert set(mask) == {"fc1.weight", "fc2.weight"}
        assert {name: int((~kept).sum()) for name, kept in mask.items()} == dict.fromkeys(
            mask, 2048
        )
    if "2:4" in options:
        assert (mask["fc1.weight"].unflatten(1, (-1, 4)).sum(-1) == 2).all()
    for name, kept in mask.items():  # Masks only: what is kept has not moved.
        assert torch.equal(after[name], before[name] * kept)


def test_report_writes_the_page_again_even_of_a_stopped_run(folder, qprune):
    page = folder / "report.html"
    page.unlink()
    assert qprune("report", folder)[0] == 0
    assert "digits-mlp pruned to 90 %" in page.read_text()
    (folder / REPORT_JSON).unlink()
    assert qprune("report", folder)[0] == 0
    assert "The run ended early: unfinished" in page.read_text()


def _restore_a_weight(folder):
    weights, mask = load_file(folder / MODEL), read_mask(folder / MASK)
    weights["fc1.weight"][tuple((~mask["fc1.weight"]).nonzero()[0])] = 1.0
    save_file(weights, folder / MODEL)


def _lose_a_kept_weight(folder):
    weights, mask = load_file(folder / MODEL), read_mask(folder / MASK)
    weights["fc2.weight"][tuple(mask["fc2.weight"].nonzero()[0])] = 0.0
    save_file(weights, folder / MODEL)


def _spoil_a_weight(folder):
    weights, mask = load_file(folder / MODEL), read_mask(folder / MASK)
    weights["fc2.weight"][tuple(mask["fc2.weight"].nonzero()[0])] = float("nan")
    save_file(weights, folder / MODEL)


def _keep_another(folder):
    mask = read_mask(folder / MASK)
    mask["fc2.weight"][tuple((~mask["fc2.weight"]).nonzero()[0])] = True
    (folder / MASK).write_bytes(packed_bytes(mask))


def _boast(folder):
    record = json.loads((folder / REPORT_JSON).read_text())
    record["achieved_sparsity"] = 0.95
    (folder / REPORT_JSON).write_text(json.dumps(record))


def _forget_a_step(folder):
    lines = (folder / STEPS).read_text().splitlines(keepends=True)
    (folder / STEPS).write_text("".join(lines[:-1]))


def _improve_a_step(folder):
    lines = (folder / STEPS).read_text().splitlines(keepends=True)
    step = json.loads(lines[-1])
    lines[-1] = json.dumps(step | {"loss": 0.0}) + "\n"
    (folder / STEPS).write_text("".join(lines))


def _ask_for_more(folder):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("sparsity: 0.9\n", "sparsity: 0.95\n"))


def _claim_structure(folder):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("mask_structure: null\n", "mask_structure: '1:8'\n"))


def _lose_the_mask(folder):
    (folder / MASK).unlink()


def _rename_a_mask(folder):
    mask = read_mask(folder / MASK)
    mask["fc9.weight"] = mask.pop("fc1.weight")
    (folder / MASK).write_bytes(packed_bytes(mask))


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (_restore_a_weight, "fc1.weight: 1 weights that the mask prunes are not exactly zero"),
        (_lose_a_kept_weight, "weights that the mask keeps have changed"),
        (_spoil_a_weight, "fc2.weight: weights are NaN or infinite"),
        (_keep_another, "fc2.weight: report.json says"),
        (_boast, "report.json says sparsity 0.95"),
        (_forget_a_step, "steps.jsonl has"),
        (_improve_a_step, "steps.jsonl and report.json differ in step"),
        (_ask_for_more, "0.95 was asked, report.json says 0.9"),
        (_claim_structure, "mask structure 1:8"),
        (_lose_the_mask, "mask.safetensors is missing"),
        (_rename_a_mask, "name different weights"),
    ],
)
def test_check_catches_a_folder_that_lies(folder, qprune, tamper, reason):
    tamper(folder)
    code, out, err = qprune("check", folder)
    assert (code, out) == (1, "")
    assert reason in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*PRUNE, "--sparsity", "1.5"],
            "is at least 0 and below 1, not 1.5",
        ),
        ([*PRUNE, "--sparsity", "-0.1"], "--sparsity must be a number that is at least 0"),
        ([*PRUNE, "--sparsity", "0.5", "--sampler", "nope"], "relax"),
        ([*PRUNE, "--sparsity", "0.5", "--sampler-option", "sweeps=3"], "sweeps"),
        ([*PRUNE, "--sparsity", "0.5", "--sampler-option", "sweeps"], "name=value"),
        ([*PRUNE, "--sparsity", "0.5", "--start", "nope"], "there are: "),
        ([*PRUNE, "--sparsity", "0.5", "--curvature", "nope"], "there are: "),
        ([*PRUNE, "--sparsity", "0.5", "--mask-structure", "2:7"], "2:7"),
        ([*PRUNE, "--sparsity", "0.5", "--mask-structure", "two"], "two"),
        ([*PRUNE, "--sparsity", "0.5", "--block-size", "100000"], "8832"),
        ([*PRUNE, "--sparsity", "0.5", "--targets", "Conv3d"], "Conv3d"),
        ([*PRUNE, "--sparsity", "0.5", "--target", "labels"], "--loss cross-entropy"),
        ([*PRUNE, "--sparsity", "0.5", "--loss", "nope"], "'bce'"),
        ([*PRUNE, "--sparsity", "0.5", "--num-calibration-samples", "5000"], "1 to 1297"),
        (["prune", "--data", "digits", "--sparsity", "0.5"], "--model is missing"),
        (["prune", "--model", "vgg", "--data", "digits", "--sparsity", "0.5"], "no model named"),
        ([*PRUNE, "--sparsity", "0.5", "--frobnicate"], "No such option: --frobnicate"),
        ([*PRUNE, "--sparsity", "half"], "--sparsity"),
        (["prune", "--config", "/no/such.yaml"], "/no/such.yaml"),
        (["frobnicate"], "No such command"),
        (["check", "/no/such"], "holds no run"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(tmp_path, qprune, arguments, message):
    output = ["--output", tmp_path / "run"] if "prune" in arguments else []
    code, out, err = qprune(*arguments, *output)
    assert (code, out) == (2, "")
    assert err.startswith("qprune: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_refused_before_any_work(finished, qprune):
    folder, _ = finished
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, err = qprune(*TRIAL, "--output", folder)
    assert code == 2
    assert "holds another run" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_mistake_in_a_process_of_its_own_shows_no_traceback():
    done = run(*PRUNE, "--sparsity", "0.5", "--sampler", "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qprune: ")
    assert done.stderr.count("\n") == 1
