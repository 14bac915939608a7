"""Third parties' readers in a process of their own, since a broken file can crash them.

The contents of a problem file: read from a regular file, unpacked within a memory limit.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO, cast

from solvers.errors import InvalidProblemError, ProblemTooLargeError
from solvers.formats.text import Text, decoded
from solvers.host import machine as memory


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


#: Bytes that are unpacked between two looks at the limit.
_CHUNK = 1 << 20
#: Share of the free memory that unpacked contents may take; reading them takes several times more.
_SHARE = 1 / 8
#: Nested packings of one file, at most.
_DEPTH = 4


@dataclass(frozen=True)
class Packing:
    """A way to compress one file: its suffix, the bytes it starts with, both directions.

    ``open`` and ``pack`` are None where this Python lacks the module.
    """

    name: str
    suffix: str
    magic: bytes
    open: Callable[[BinaryIO], Any] | None
    pack: Callable[[bytes], bytes] | None = None


#: A zip file is told apart from an .npz by what is in it, see `_zipped`.
PACKINGS = (
    Packing("gzip", ".gz", b"\x1f\x8b", gzip.open, lambda data: gzip.compress(data, mtime=0)),
    Packing("bzip2", ".bz2", b"BZh", bz2.open, bz2.compress),
    Packing("xz", ".xz", b"\xfd7zXZ\x00", lzma.open, lzma.compress),
    Packing("lzma", ".lzma", b"\x5d\x00\x00", lzma.open),
    Packing("zstd", ".zst", b"\x28\xb5\x2f\xfd", None),
    Packing("compress", ".z", b"\x1f\x9d", None),
    Packing("7-Zip", ".7z", b"7z\xbc\xaf", None),
)


@dataclass(frozen=True)
class Contents:
    """An unpacked file.

    Attributes:
        name: the file's name without suffixes of packings, in small letters.
        data: its bytes.

    Example:
        >>> Contents("two.json", b'{"n": 2}').json
        {'n': 2}
    """

    name: str
    data: bytes

    @property
    def suffix(self) -> str:
        """The name's last suffix, with its dot; "" if it has none."""
        return PurePath(self.name).suffix

    @cached_property
    def text(self) -> Text | None:
        """The bytes as text; None if they are not text."""
        found = decoded(self.data)
        if found is None:
            return None
        memory.require_memory(20.0 * len(found), "reading this text", "split the problem")
        return Text(found)

    @cached_property
    def json(self) -> dict[str, Any] | None:
        """The JSON object in the file; None for other contents.

        Raises:
            ValueError: it begins like JSON but cannot be parsed.
        """
        found = decoded(self.data)
        if found is None or not found.lstrip().startswith("{"):
            return None
        value: Any = json.loads(found)
        return cast(dict[str, Any], value) if isinstance(value, dict) else None


def read_contents(path: Path) -> Contents:
    """The contents of the file at ``path``.

    Raises:
        InvalidProblemError: it is no regular file, is empty, holds several files, or is packed in
            a way that cannot be unpacked here.
        ProblemTooLargeError: the unpacked contents would not fit into memory.
        OSError: it cannot be read.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InvalidProblemError("this is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise InvalidProblemError(
            "this is a pipe, socket or device; save what it holds as a file first"
        )
    limit = memory.available_memory() * _SHARE
    if path.stat().st_size > limit:
        raise _too_large(limit)
    return unpacked(path.name, path.read_bytes(), limit)


def unpacked(name: str, data: bytes, limit: float) -> Contents:
    """The contents of a file of that name, at most ``limit`` bytes of them; see `read_contents`."""
    name = name.lower()
    for _ in range(_DEPTH):
        packing = _packing_of(name, data)
        if packing is not None:
            if packing.open is None:
                raise InvalidProblemError(
                    f"it is packed with {packing.name}, which cannot be unpacked here; unpack it "
                    "first, or pack it with gzip, bzip2, xz or zip"
                )
            with packing.open(io.BytesIO(data)) as stream:
                data = _limited(stream, limit)
            name = name.removesuffix(packing.suffix)
        elif (inner := _zipped(data)) is not None:
            with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(inner) as stream:
                data = _limited(stream, limit)
            name = PurePath(inner.filename).name.lower()
        else:
            break
    for packing in PACKINGS:
        # A browser may have unpacked the file and kept its suffix.
        name = name.removesuffix(packing.suffix)
    if data[257:262] == b"ustar":
        raise InvalidProblemError("it is a tar archive; unpack it and name one of its files")
    if not data.strip():
        raise InvalidProblemError("the file is empty")
    return Contents(name, data)


def stem(path: PurePath) -> str:
    """The file's name without its suffix and those of packings: ``bqp50.1.txt.gz`` is bqp50.1."""
    name = path.name
    for suffix in (*(packing.suffix for packing in PACKINGS), ".zip"):
        name = name.removesuffix(suffix)
    return name.rpartition(".")[0] or name


def _packing_of(name: str, data: bytes) -> Packing | None:
    for packing in PACKINGS:
        # The older lzma format has no signature, so the suffix is required as well.
        named = packing.suffix != ".lzma" or name.endswith(packing.suffix)
        if data.startswith(packing.magic) and named:
            return packing
    return None


def _zipped(data: bytes) -> zipfile.ZipInfo | None:
    """The one file in a zip file; None for other contents, an .npz among them."""
    if not data.startswith(b"PK"):
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        inside = [
            info
            for info in archive.infolist()
            if not info.is_dir() and not info.filename.startswith("__MACOSX/")
        ]
    if any(info.filename.endswith(".npy") for info in inside):
        return None
    if len(inside) != 1:
        raise InvalidProblemError(
            f"it is a zip file of {len(inside)} files; unpack it and name one of them"
        )
    return inside[0]


def _limited(stream: IO[bytes], limit: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := stream.read(_CHUNK):
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: float) -> ProblemTooLargeError:
    return ProblemTooLargeError(
        f"its contents are more than {limit / 2**30:.2f} GiB, an eighth of the memory that is "
        "free; split the problem, or read it on a larger machine"
    )
