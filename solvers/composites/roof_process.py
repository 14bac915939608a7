"""A program for the maximum flow of a roof dual, since ``dwave.preprocessing`` can crash.

Reads a BINARY model from standard input (an ``.npz`` of linear, row, column, coupling) and writes
to standard output, as JSON, the bound and the variables that have one value in every optimum. It
is run by its path and imports nothing of `solvers`, so that it starts fast.
"""

from __future__ import annotations

import io
import json
import sys


def main() -> None:
    """Run one flow."""
    import dimod
    import numpy as np
    from dwave.preprocessing import roof_duality

    with np.load(io.BytesIO(sys.stdin.buffer.read())) as given:
        couplings = given["row"], given["column"], given["coupling"]
        bqm = dimod.BinaryQuadraticModel.from_numpy_vectors(
            given["linear"], couplings, 0.0, dimod.BINARY
        )
    bound, fixed = roof_duality(bqm, strict=True)
    found = {"bound": float(bound), "fixed": {int(i): int(value) for i, value in fixed.items()}}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
