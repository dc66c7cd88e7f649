"""A routes.yaml on disk -> the compiled document, with this build's dialects and official prices.

Owns the reading of the file and of what it refers to. For the command line and for the child process in
which control compiles: a file that kills the parser must not kill more than that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from datetime import date
from functools import cache, partial
from importlib import resources
from pathlib import Path

from proxy.dialects import DIALECTS
from proxy.errors import ConfigError
from proxy.metering.pricedata import official_prices
from proxy.routing import loader
from proxy.routing.loader import Compiled, Vendors
from proxy.routing.loader.references import ReadFile

FILE_BYTES_MAX = 8 << 20  # four bytes a character; the loader counts characters
SECRET_BYTES_MAX = 64 << 10  # what a ${file:...} may hold


def load(text: str, filename: str, environ: Mapping[str, str], read_file: ReadFile) -> Compiled:
    """routing.loader.load with what this build knows. Raises ConfigError with every mistake."""
    # Today's prices: announced changes count from their day on, with the next reload.
    prices = partial(official_prices, on=date.today())  # noqa: DTZ011 - a vendor's day, to the day
    return loader.load(text, filename, environ, read_file, Vendors(DIALECTS, prices, builtin_families()))


@cache
def builtin_families() -> dict[str, str]:
    """name -> text, of the task families in the package."""
    folder = resources.files("proxy.routing") / "families"
    names = (file.name for file in folder.iterdir())
    return {name.removesuffix(".yaml"): (folder / name).read_text() for name in sorted(names)}


def compile_file(path: str | os.PathLike[str], environ: Mapping[str, str]) -> Compiled:
    """Raises ConfigError with every mistake, also when the file cannot be read."""
    name = os.fspath(path)
    folder = Path(name).parent

    def read_file(relative: str) -> str:
        return read_regular(folder / relative, SECRET_BYTES_MAX).decode()

    try:
        content = read_regular(name, FILE_BYTES_MAX)
    except OSError as e:
        raise ConfigError([f"{name}:1:1: cannot be read: {e.strerror or e}"]) from e
    return load(decoded(content, name), name, environ, read_file)


def decoded(content: bytes, name: str) -> str:
    """Raises ConfigError at the first byte that is not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as e:
        before = content[: e.start].decode()
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise ConfigError([f"{name}:{line}:{column}: is not UTF-8"]) from e


def read_regular(path: str | os.PathLike[str], bytes_max: int) -> bytes:
    """A whole regular file. Raises OSError for anything else: a FIFO would wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a regular file")
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise OSError(0, f"it is larger than {bytes_max >> 10} KiB")
    return content
