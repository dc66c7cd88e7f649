"""routes.yaml -> compiled document, in a child process: a bomb or a crash of the parser stays there.

Owns both ends: `compile_routes` asks, `python -m proxy.control.compilation FILE` answers. What happens
in between is `proxy.compiler`'s.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from proxy.errors import ConfigError

COMPILE_S = 120.0  # for what never ends; ten thousand models take 3 s, and a busy machine its time
CHILD_BYTES_MAX = 2 << 30  # of address space; ten thousand models take a tenth of it


@dataclass(frozen=True, slots=True)
class Compilation:
    """`files` are those that the routes refer to, to be watched as well."""

    document: dict[str, Any]
    warnings: list[str]
    files: tuple[Path, ...]


async def compile_routes(path: Path) -> Compilation:
    """Raises ConfigError."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "proxy.control.compilation",
        str(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMPILE_S):
            answer, errors = await child.communicate()
    except TimeoutError as e:
        raise ConfigError([f"{path.name}: takes longer than {COMPILE_S:.0f} s to compile"]) from e
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        reason = errors.decode(errors="replace").strip().rpartition("\n")[2][:300]
        raise ConfigError([f"{path.name}: the compiler ended with {child.returncode}: {reason}"])
    said = orjson.loads(answer)
    if said["mistakes"]:
        raise ConfigError(said["mistakes"])
    files = tuple(path.parent / name for name in said["files"])
    return Compilation(said["document"], said["warnings"], files)


def main(filename: str) -> int:
    """The child: one JSON object on stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES_MAX, CHILD_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold secrets
    from proxy.compiler import compile_file

    said: dict[str, Any] = {"mistakes": []}
    try:
        compiled = compile_file(filename, os.environ)
        said |= {"document": compiled.document, "warnings": compiled.warnings, "files": compiled.files}
    except ConfigError as e:
        said["mistakes"] = e.mistakes
    sys.stdout.buffer.write(orjson.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
