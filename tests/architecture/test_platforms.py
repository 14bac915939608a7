"""What stands in docs/platforms.md: nothing that only Unix has is needed to import anything."""

import ast
import builtins
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import psutil

import qprune
import solvers
from qprune.errors import DISK
from solvers.host.disk import flush_folder
from solvers.host.machine import peak_memory

ROOT = Path(__file__).parents[2]
#: Modules of the standard library that Windows lacks.
UNIX_ONLY = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "crypt")
#: What the ``os``, ``signal`` and ``time`` of Windows lack.
LACKING = {
    "os": {
        *("O_DIRECTORY", "O_NONBLOCK", "O_NOFOLLOW", "fork", "forkpty", "getuid", "geteuid"),
        *("getpgid", "setsid", "killpg", "mkfifo", "mknod", "fchown", "chown", "statvfs", "wait"),
        *("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "register_at_fork", "nice"),
        *("getloadavg", "uname", "sysconf", "sync", "pipe2", "openpty", "fchdir", "chroot"),
    },
    "signal": {
        *("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGSTOP", "SIGPIPE"),
        *("alarm", "setitimer", "pause", "pthread_sigmask", "sigwait", "pthread_kill"),
    },
    "time": {"clock_gettime", "tzset", "pthread_getcpuclockid", "clock_settime"},
}
#: Where they are used all the same, behind a question whether they are there.
ASKED_FOR = {
    ("solvers/host/disk.py", "os.O_DIRECTORY"),
    ("solvers/host/worker.py", "time.clock_gettime"),
    ("solvers/testing.py", "signal.pthread_kill"),
}

# Only what our own modules import is refused: others have their own versions for Windows.
IMPORT_ALL = """
import builtins, importlib, sys
real = builtins.__import__
def refusing(name, globals=None, locals=None, fromlist=(), level=0):
    asking = str((globals or {}).get("__name__")).partition(".")[0]
    if asking in ("qprune", "solvers") and name.partition(".")[0] in UNIX_ONLY:
        raise ModuleNotFoundError(f"No module named {name!r}, which {globals['__name__']} imports")
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = refusing
without = []
for name in NAMES:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Of Linux with an NVIDIA card; they are imported behind a question.
        if error.name != "triton":
            raise
        without.append(name)
print(len(NAMES), set(without) <= {"solvers.rows.fused_restore",
"solvers.search.batched.fused_swaps"})
"""


def _modules():
    for package in (qprune, solvers):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        yield from (one.name for one in found if not one.name.endswith("__main__"))


def test_every_module_is_imported_where_unix_only_modules_are_not():
    names = sorted(_modules())
    assert len(names) > 150
    code = f"UNIX_ONLY = {UNIX_ONLY!r}\nNAMES = {names!r}\n{IMPORT_ALL}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"{len(names)} True", done.stderr[-2000:]


def test_what_windows_lacks_is_asked_for_before_it_is_used():
    used = set()
    for path in sorted([*(ROOT / "qprune").rglob("*.py"), *(ROOT / "solvers").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                if node.attr in LACKING.get(node.value.id, ()):
                    used.add((path.relative_to(ROOT).as_posix(), name))
    assert used <= ASKED_FOR


def test_the_memory_of_a_process_is_known_without_the_module_resource(monkeypatch):
    class Process:
        def memory_info(self):
            return type("Info", (), {"peak_wset": 123456789})

    usual = peak_memory()
    assert 5e7 < usual < 1e12
    real = builtins.__import__

    def refusing(name, *rest):
        if name == "resource":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refusing)
    monkeypatch.setattr(psutil, "Process", Process)
    assert peak_memory() == 123456789.0


def test_files_are_written_whole_where_folders_cannot_be_opened(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "O_DIRECTORY")
    opened = []
    monkeypatch.setattr(os, "open", lambda *given: opened.append(given))
    flush_folder(tmp_path)
    assert not opened
    monkeypatch.undo()
    monkeypatch.delattr(os, "O_DIRECTORY")
    (tmp_path / "a").write_bytes(b"old")
    DISK.write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
