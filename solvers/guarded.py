"""Foreign readers in a process of their own, for files on which they would end this one."""

from __future__ import annotations

import subprocess
import sys

from solvers.errors import InvalidProblemError


def run_apart(imports: str, statement: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a statement, of ``given`` and ``answer`` (streams), apart from this process.

    Raises:
        InvalidProblemError: the process did not survive it.
    """
    # What is printed below Python goes to the error output, apart from the answer.
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
