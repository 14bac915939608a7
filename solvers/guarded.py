"""Third parties' readers in a process of their own, since a broken file can crash them."""

from __future__ import annotations

import subprocess
import sys

from solvers.errors import InvalidProblemError


def run_apart(imports: str, statement: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a statement, of ``given`` and ``answer`` (streams), apart from this process.

    Raises:
        InvalidProblemError: the process crashed.
    """
    # Output of C code goes to stderr, apart from the answer.
    program = (
        f"import io, os, sys; {imports}\n"
        "out = os.fdopen(os.dup(1), 'wb'); os.dup2(2, 1)\n"
        "given = io.BytesIO(sys.stdin.buffer.read()); answer = io.BytesIO()\n"
        f"{statement}\n"
        "out.write(answer.getvalue()); out.flush()"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode < 0:
        raise InvalidProblemError("its reader crashes on it: it is damaged")
    return done
