"""Fuzzing: every parser of a file that may come from elsewhere, fed with what is no such file.

    python -m benchmarks.reliability.fuzz --seconds 3600
    python -m benchmarks.reliability.fuzz --seconds 600 --only page "report page"

The second line also draws what was read, which takes as long as a hundred inputs of the others.

Inputs begin as real files, of runs and studies made here, and are changed in bytes and in
structure (values of JSON, YAML, safetensors headers and npz arrays). With atheris (``pip install
'qprune[fuzz]'``) libFuzzer chooses which inputs to go on from by the code that they reach; without
it, that is left to chance. A parser may refuse an input with an error of the project's own tree and
in no other way; whatever else it raises, and 20 seconds without an end, is a crash, told with its
place and kept with its input. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gzip
import hashlib
import io
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

_LONGEST = 20
#: What the hunt writes beside the inputs that crashed a parser.
TOLD = "told.json"
#: Parsers that draw what they read.
SLOW = ("page", "report page")
_NO_SEEDS = ("folders", "kept", "small")
#: Instrumented by atheris; compiled kernels cannot be.
_WATCHED = (
    *(
        "qprune.jobs.settings",
        "qprune.results",
        "qprune.record.folder",
        "qprune.jobs.audit",
        "qprune.network.mask_file",
    ),
    *(
        "qprune.record.checkpoint",
        "qprune.record.fingerprint",
        "solvers.ask.store",
        "qprune.network.groups",
    ),
    *(
        "solvers.formats.files",
        "solvers.formats.table",
        "solvers.problem.problem",
        "solvers.problem.quadratic",
    ),
    *(
        "solvers.formats.contents",
        "solvers.formats.text",
        "solvers.formats.texts",
        "solvers.formats.models",
    ),
    *(
        "solvers.formats.models",
        "solvers.formats.text",
        "solvers.formats.evidence",
        "solvers.formats.arrays",
    ),
    *("solvers.study.storage", "solvers.study.instances", "solvers.study.storage"),
)

Parser = Callable[[bytes], object]


def targets(seeds: Path, scratch: Path) -> dict[str, Parser]:
    """Parsers by name, each from the bytes of one file; the seeds of each are in a folder."""
    from qprune.jobs.audit import check_run
    from qprune.jobs.page import render_html
    from qprune.jobs.settings import make_settings, read_run
    from qprune.network.mask_file import read_mask
    from qprune.record.checkpoint import Snapshot
    from qprune.record.fingerprint import Fingerprint
    from qprune.record.folder import read_scores, stopped_by
    from solvers.ask.store import AnswerStore
    from solvers.formats.files import read_problem
    from solvers.formats.table import FORMATS
    from solvers.study.compare import read_study
    from solvers.study.instances import read_instances, read_known

    def at(*parts: str) -> Path:
        return scratch.joinpath(*parts)

    def placed(data: bytes, *parts: str) -> Path:
        path = at(*parts)
        path.write_bytes(data)
        return path

    for kind in ("whole", "stopped", "study"):
        at(kind).mkdir(exist_ok=True)
        for file in (seeds / "folders" / kind).iterdir():
            placed(file.read_bytes(), kind, file.name)
    at("blocks").mkdir(exist_ok=True)
    at("answers").mkdir(exist_ok=True)
    problem = read_problem(seeds / "problem" / "asked.npz")
    print_ = Fingerprint.from_json((seeds / "fingerprint" / "0").read_bytes())
    _write_block(at("blocks"))

    def settings(data: bytes) -> object:
        made = make_settings({}, placed(data, "settings.yaml"))
        return made.title, made.structure, made.to_yaml()

    def run_settings(data: bytes) -> object:
        return read_run(placed(data, "stopped", "config.yaml").parent).settings.title

    def journal(data: bytes) -> object:
        return read_run(placed(data, "stopped", "steps.jsonl").parent)

    def page(data: bytes, *file: str) -> object:
        saved = read_run(placed(data, *file).parent)
        return render_html(saved.report, title=saved.settings.title, scores=saved.scores)

    def scores(data: bytes) -> object:
        return read_scores(placed(data, "whole", "scores.jsonl").parent)

    def report(data: bytes) -> object:
        folder = placed(data, "whole", "report.json").parent
        return stopped_by(folder), check_run(folder)

    def run_mask(data: bytes) -> object:
        return check_run(placed(data, "whole", "mask.safetensors").parent)

    def answer(data: bytes) -> object:
        placed(data, "answers", "key.json")
        found = AnswerStore(at("answers")).find("key", problem)
        assert found is None or problem.feasible(found.sample[None]).all()
        return found

    def study(data: bytes) -> object:
        return read_study(placed(data, "study", "study.json").parent).complete

    def rows(data: bytes) -> object:
        return read_study(placed(data, "study", "rows.jsonl").parent).problems

    return {
        "settings": settings,
        "run settings": run_settings,
        "journal": journal,
        "page": lambda data: page(data, "stopped", "steps.jsonl"),
        "scores": scores,
        "report": report,
        "report page": lambda data: page(data, "whole", "report.json"),
        "run mask": run_mask,
        "mask": lambda data: read_mask(placed(data, "mask.safetensors")),
        "fingerprint": lambda data: Fingerprint.from_json(data).differences(print_),
        "checkpoint": Snapshot.unpack,
        "facts": lambda data: Snapshot.unpack(_sealed(data)),
        "answer": answer,
        "study": study,
        "rows": rows,
        "blocks": lambda data: read_instances(placed(data, "blocks", "blocks.jsonl").parent),
        "known": lambda data: read_known(placed(data, "known.csv")),
        "problem": lambda data: read_problem(placed(data, "problem")),
        "problem txt": lambda data: read_problem(placed(data, "problem.txt")),
        "problem gset": lambda data: read_problem(placed(data, "g1.gset")),
        **{
            f"problem as {one.name}": partial(
                lambda name, data: read_problem(placed(data, "asked"), format=name), one.name
            )
            for one in FORMATS
        },
    }


def _sealed(data: bytes) -> bytes:
    """A checkpoint whose digest fits, whatever is in it: as if its writer had gone wrong."""
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    from qprune.record.checkpoint import digest_of_facts, metadata_of

    try:
        tensors, text = load(data), metadata_of(data)["facts"]
        return save(tensors, {"facts": text, "sha256": digest_of_facts(tensors, text)})
    except (SafetensorError, LookupError, ValueError, TypeError, RecursionError):
        return data


# -- seeds ----------------------------------------------------------------------------------


def make_seeds(folder: Path) -> None:
    """Real files of every kind, in a folder for each parser and whole folders in ``folders``."""
    import numpy as np
    import torch

    from benchmarks.reliability.small_run import stop_after
    from qprune.jobs.job import run_job
    from qprune.jobs.settings import Settings
    from qprune.network.mask_file import packed_bytes
    from qprune.record.checkpoint import CHECKPOINTS
    from solvers import Answer, QuadraticProblem
    from solvers.ask.store import AnswerStore
    from solvers.formats.files import write_problem
    from solvers.study import compare, generate

    torch.set_num_threads(1)
    asked = {"model": "digits-mlp", "data": "digits", "sparsity": 0.9, "stages": 2, "rounds": 1}
    asked |= {"num_calibration_samples": 60, "block_size": 32, "final_rounds": 2}
    settings = Settings(**asked, augment=False, samples_per_step=40)
    whole, stopped = folder / "folders" / "whole", folder / "folders" / "stopped"
    run_job(settings, whole)
    run_job(settings, stopped, should_stop=stop_after(12))
    _make_checkpoints(folder / "small")
    for name in ("report.json", "checksums.sha256"):
        (stopped / name).unlink()
    language = Settings(
        method="qprune", model="hf:m", data="text:f", sparsity=0.5, mask_structure="2:4"
    )
    compare([generate("fisher:n=12")], ["greedy", "sa"], ["2reads"], 2, folder=folder / "study")
    (folder / "study").rename(folder / "folders" / "study")
    study = folder / "folders" / "study"
    generator = torch.Generator().manual_seed(0)
    mask = {f"{i}.weight": torch.rand(5, 7, generator=generator) < 0.5 for i in range(3)}
    rng = np.random.default_rng(0)
    half = rng.integers(-5, 5, (6, 6)).astype(float)
    plain = QuadraticProblem(rng.integers(-5, 5, 6).astype(float), half + half.T)
    counted = QuadraticProblem(plain.linear, plain.quadratic, counts=3)
    states = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], np.int8)
    answer = Answer(states, counted.energies(states), -1.0, {"reads": 2}, seconds=0.1)
    AnswerStore(folder / "kept").keep("0", answer)
    _write_block(folder / "kept")
    given: dict[str, Sequence[bytes]] = {
        "settings": [settings.to_yaml().encode(), language.to_yaml().encode()],
        "run settings": [settings.to_yaml().encode()],
        "journal": [(stopped / "steps.jsonl").read_bytes()],
        "page": [(stopped / "steps.jsonl").read_bytes()],
        "scores": [(whole / "scores.jsonl").read_bytes()],
        "report": [(whole / "report.json").read_bytes()],
        "report page": [(whole / "report.json").read_bytes()],
        "run mask": [(whole / "mask.safetensors").read_bytes()],
        "mask": [packed_bytes(mask), (whole / "mask.safetensors").read_bytes()],
        "fingerprint": [(whole / "fingerprint.json").read_bytes()],
        "checkpoint": [(folder / "small" / name).read_bytes() for name in CHECKPOINTS],
        "answer": [(folder / "kept" / "0.json").read_bytes()],
        "study": [(study / "study.json").read_bytes()],
        "rows": [(study / "rows.jsonl").read_bytes()],
        "blocks": [(folder / "kept" / "blocks.jsonl").read_bytes()],
        "known": [b"problem,energy,proved,bound\nfisher,-3.5,true,-4\ng1,-2,false,\n"],
    }
    given["facts"] = given["checkpoint"]
    for name, contents in given.items():
        (folder / name).mkdir()
        for number, content in enumerate(contents):
            (folder / name / str(number)).write_bytes(content)
    for name in ("problem", "problem txt", "problem gset"):
        (folder / name).mkdir()
    for suffix in (".coo", ".qubo", ".npz", ".bqm", ".json", ".cqm"):
        write_problem(plain, folder / "problem" / f"plain{suffix}")
    write_problem(counted, folder / "problem" / "asked.npz")
    write_problem(counted, folder / "problem" / "asked.cqm")
    write_problem(plain, folder / "problem txt" / "plain.txt")
    write_problem(plain, folder / "problem txt" / "plain.txt.gz")
    (folder / "problem gset" / "g").write_text("4 3\n1 2 1\n2 3 -1\n1 4 2\n")
    _make_problems(folder, plain)


#: A small file of each format that is only read.
_ONLY_READ: dict[str, bytes] = {
    "edges": b"1 2 1\n2 3 -1\n# three\n1 4 2.5D0\n",
    "qubist": b"6 4\n1 1 1.3\n5 5 -0.7\n1 3 -0.2\n1 5 1.5\n",
    "mtx": b"%%MatrixMarket matrix coordinate real general\n3 3 2\n1 1 5\n1 2 -12\n",
    "bqpjson": json.dumps(
        {
            "variable_ids": [2, 4],
            "variable_domain": "spin",
            "scale": 2.0,
            "offset": 1.0,
            "linear_terms": [{"id": 2, "coeff": 1.3}],
            "quadratic_terms": [{"id_tail": 2, "id_head": 4, "coeff": -0.2}],
        }
    ).encode(),
    "lp": b"Maximize\n obj: 2 a - 3 b + [ 4 a * b ] / 2\nst\n c: a + b = 1\nBinary\n a b\nEnd\n",
    "qplib": b"N\nQBL\nminimize\n3\n1\n1\n2 1 -3\n1.0\n0\n0.5\n3\n1 1 1\n1 2 1\n1 3 1\n1e30\n"
    b"2\n0\n2\n0\n",
}


def _make_problems(folder: Path, plain: Any) -> None:
    """A file of each format, packed and not, for the parser of that format and for all."""
    import numpy as np

    from solvers import QuadraticProblem
    from solvers.formats.files import problem_bytes
    from solvers.formats.table import FORMATS

    pull = np.array([[0.0, 2.0], [2.0, 0.0]])
    cut = QuadraticProblem([-1.0, -1.0], pull)
    matrix = io.BytesIO()
    np.save(matrix, pull)
    only_read = _ONLY_READ | {"npy": matrix.getvalue()}
    for one in FORMATS:
        given = cut if one.name == "rudy" else plain
        whole = only_read.get(one.name) or problem_bytes(given, "x", one.name)
        (folder / f"problem as {one.name}").mkdir()
        (folder / f"problem as {one.name}" / "0").write_bytes(whole)
        packed = gzip.compress(whole) if one.name != "coo" else bz2.compress(whole)
        (folder / f"problem as {one.name}" / "1").write_bytes(packed)


def _make_checkpoints(folder: Path) -> None:
    """Two checkpoints of a network so small that their facts are most of them."""
    import torch

    import qprune
    from benchmarks.reliability.small_run import stop_after
    from qprune.record.checkpoint import Checkpoints

    offer, Checkpoints.offer = Checkpoints.offer, Checkpoints.write
    qprune.prune(
        torch.nn.Linear(6, 4),
        torch.randn(40, 6, generator=torch.Generator().manual_seed(0)),
        sparsity=0.5,
        method=qprune.Networkwise(stages=2),
        output_dir=folder,
        limits=qprune.Limits(should_stop=stop_after(12)),
    )
    Checkpoints.offer = offer


def _write_block(folder: Path) -> None:
    """A folder of recorded blocks with one block in it."""
    from solvers.formats.files import write_problem
    from solvers.study import generate

    folder.mkdir(exist_ok=True)
    write_problem(generate("fisher:n=6").problem, folder / "block-0.npz")
    line = {"file": "block-0.npz", "step": 3, "stage": 0, "layers": {"fc1": 6}}
    (folder / "blocks.jsonl").write_text(json.dumps(line) + "\n")


# -- changes --------------------------------------------------------------------------------

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308),
    *(1e-320, float("nan"), float("inf"), "", "x", "\0", "../../etc/passwd", "é" * 50, [], {}),
    *([[]], {"": {}}, [0] * 40, "os:system", "1:2", "!!python/object:os.system"),
)


def changed(data: bytes, rng: random.Random) -> bytes:
    """``data`` with a change or some, in its structure if it has one, or in its bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        ways = (_bytes_changed, _bytes_changed, _structure_changed)
        with contextlib.suppress(Exception):
            data = rng.choice(ways)(data, rng)
    return data


def _bytes_changed(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 8, 64))
    way = rng.randrange(5)
    if way == 0 and data:
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if way == 1:
        return data[:at] + data[at + size :]
    if way == 2:
        return data[:at] + rng.randbytes(size) + data[at + size :]
    if way == 3:
        return data[:at] + data[at : at + size] * rng.choice((2, 30)) + data[at + size :]
    return data[:at]


def _structure_changed(data: bytes, rng: random.Random) -> bytes:
    if data[:2] == b"PK":
        return _arrays_changed(data, rng)
    length = int.from_bytes(data[:8], "little")
    if 2 <= length <= len(data) - 8 and data[8:9] == b"{":
        head = json.dumps(_value_changed(json.loads(data[8 : 8 + length]), rng)).encode()
        return len(head).to_bytes(8, "little") + head + data[8 + length :]
    try:
        lines = data.decode().split("\n")
        whole = json.loads(data)
    except ValueError:
        with contextlib.suppress(ValueError):
            at = rng.randrange(max(1, len(lines) - 1))
            lines[at] = json.dumps(_value_changed(json.loads(lines[at]), rng))
            return "\n".join(lines).encode()
        return _yaml_changed(data, rng)
    return json.dumps(_value_changed(whole, rng)).encode()


def _value_changed(value: Any, rng: random.Random) -> Any:
    """One value inside, at any depth, put in another's place, left out, or made odd."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        way = rng.random()
        if way < 0.1:
            del value[key]
        elif way < 0.2:
            value[key] = rng.choice(list(value.values()) if isinstance(value, dict) else value)
        else:
            inner = value[key]
            # Records inside of text are records too.
            if isinstance(inner, str) and inner[:1] == "{":
                value[key] = json.dumps(_value_changed(json.loads(inner), rng))
            else:
                value[key] = _value_changed(inner, rng)
        return value
    return rng.choice(_ODD)


def _yaml_changed(data: bytes, rng: random.Random) -> bytes:
    import yaml

    return yaml.safe_dump(_value_changed(yaml.safe_load(data), rng)).encode()


def _arrays_changed(data: bytes, rng: random.Random) -> bytes:
    import numpy as np

    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays: dict[str, Any] = dict(file)
    name = rng.choice([*arrays, "groups", "counts", "labels", "U", "Q", "data", "indices"])
    odd: list[Any] = [np.zeros(0), np.zeros((2, 3)), np.array("x"), np.array([True]), np.nan]
    odd += [np.array([2**40]), np.array([-1.0]), np.full((3, 3), np.inf), np.array([1j])]
    odd += [np.array(json.dumps(rng.choice(_ODD), default=str)), arrays[rng.choice(list(arrays))]]
    arrays[name] = rng.choice(odd)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


# -- the hunt --------------------------------------------------------------------------------


class Hunt:
    """Feeds parsers, counts, and keeps every new way in which one crashes.

    The first byte of an input says which parser it is for.

    Args:
        parsers: by name.
        folder: for inputs that crash a parser.
    """

    def __init__(self, parsers: dict[str, Parser], folder: Path) -> None:
        from qprune.errors import QpruneError
        from solvers.errors import SolverError

        self._parsers, self._folder = list(parsers.items()), folder
        self._refusals = (QpruneError, SolverError)
        self._written = time.monotonic()
        self.executions, self.refused = Counter[str](), Counter[str]()
        self.crashes: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGALRM, self._too_long)

    def __call__(self, data: bytes) -> None:
        name, parser = self._parsers[(data[0] if data else 0) % len(self._parsers)]
        self.executions[name] += 1
        signal.alarm(_LONGEST)
        try:
            parser(data[1:])
        except self._refusals as error:
            self.refused[name] += 1
            if not str(error).strip():
                self._keep(name, data, AssertionError("an error without a message"))
        except Exception as error:
            self._keep(name, data, error)
        finally:
            signal.alarm(0)
        if time.monotonic() > self._written + 2:
            self.write()

    def write(self) -> None:
        """Tell the parent how far this is; libFuzzer ends the process without a word."""
        told = {"executions": self.executions, "refused": self.refused, "crashes": self.crashes}
        path = self._folder / TOLD
        path.with_suffix(".tmp").write_text(json.dumps(told))
        path.with_suffix(".tmp").replace(path)
        self._written = time.monotonic()

    def _too_long(self, number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end within {_LONGEST} s")

    def _keep(self, name: str, data: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/qprune/" in f.filename or "/solvers/" in f.filename]
        last = (ours or frames or [None])[-1]
        place = f"{last.filename}:{last.lineno}" if last else "?"
        key = f"{name}: {type(error).__name__} at {place}"
        if key not in self.crashes:
            digest = hashlib.sha256(data).hexdigest()[:12]
            (self._folder / digest).write_bytes(data[1:])
            self.crashes[key] = f"{' '.join(str(error).split())[:200]} (input {digest})"
            self.write()


def hunt(names: Sequence[str], given: argparse.Namespace, seeds: Path) -> None:
    """Feed parsers for a while; does not return where atheris is there."""
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    atheris = _atheris()
    watching = contextlib.nullcontext()
    if atheris is not None:
        watching = atheris.instrument_imports(include=list(_WATCHED))
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir=seeds))
    with watching:
        parsers = targets(seeds, scratch)
    import solvers.host.machine

    # As on a small machine, so that what is refused there is refused here, and soon.
    solvers.host.machine.available_memory = lambda: 2.0**28
    one = Hunt({name: parsers[name] for name in names}, given.crashes)
    known = [
        bytes([number]) + path.read_bytes()
        for number, name in enumerate(names)
        for path in sorted((seeds / name).iterdir())
    ]
    if atheris is not None:
        corpus = scratch / "corpus"
        corpus.mkdir()
        for number, data in enumerate(known):
            (corpus / str(number)).write_bytes(data)
        flags = [f"-max_total_time={int(given.seconds)}", f"-seed={given.seed + 1}"]
        flags += ["-rss_limit_mb=0", "-verbosity=0", "-max_len=65536", str(corpus)]
        atheris.Setup(
            [sys.argv[0], *flags],
            one,
            custom_mutator=lambda data, size, number: _mixed(atheris, data, size, number),
        )
        atheris.Fuzz()
        return
    rng, end = random.Random(given.seed), time.monotonic() + given.seconds
    while time.monotonic() < end:
        data = rng.choice(known)
        one(data[:1] + changed(data[1:], rng))
    one.write()


def _mixed(atheris: Any, data: bytes, size: int, number: int) -> bytes:
    rng = random.Random(number)
    which, rest = data[:1], data[1:]
    if rng.random() < 0.3:
        return which + atheris.Mutate(rest, size - 1)
    return (which + changed(rest, rng))[:size]


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        return None
    return atheris


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for all parsers together")
    parser.add_argument("--only", nargs="*", help="names of parsers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crashes", type=Path, default=Path("crashes"), help="folder for inputs")
    parser.add_argument("--seeds", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.seeds:
        hunt(given.only, given, given.seeds)
        return
    (given.crashes / TOLD).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as scratch:
        make_seeds(Path(scratch))
        found = {path.name for path in Path(scratch).iterdir()} - set(_NO_SEEDS)
        names = given.only or sorted(found - set(SLOW))
        command = [sys.executable, "-m", "benchmarks.reliability.fuzz", "--seeds", scratch]
        command += ["--seconds", str(given.seconds), "--seed", str(given.seed)]
        # In a process of its own, since libFuzzer does not return, and parsers may crash it.
        done = subprocess.run(
            [*command, "--crashes", str(given.crashes), "--only", *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    sys.exit(told(given.crashes / TOLD, done))


def told(path: Path, done: subprocess.CompletedProcess[bytes]) -> int:
    """Print what was found; the exit code."""
    if done.returncode or not path.exists():
        print(done.stdout.decode(errors="replace")[-3000:])
        print(f"the hunt ended with exit code {done.returncode}")
    found = json.loads(path.read_text()) if path.exists() else {}
    executions, refused = found.get("executions", {}), found.get("refused", {})
    for name, number in sorted(executions.items()):
        print(f"{name}: {number:,} executions, {refused.get(name, 0):,} refused in one line")
    for place, message in found.get("crashes", {}).items():
        print(f"{place}: {message}")
    crashes = len(found.get("crashes", {}))
    print(f"{sum(executions.values()):,} executions, {crashes} crashes", flush=True)
    return int(bool(crashes or done.returncode or not executions))


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    main()
