"""How a command reaches its station's database, and how it prints what it found.

Owns `--data` and `--json`, the embedded server that a command starts for itself when the station is not
running, and tables of text. Changes nothing by itself, except that it migrates an older database.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from proxy.embedded import EmbeddedPostgres
from proxy.store.database import Database

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("HEADRACE_DATA", ".headrace")
    parser.add_argument(
        "--data", metavar="DIR", type=Path, default=Path(default),
        help=f"the station's data folder, unless DATABASE_URL is set ({default})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for machines")


def ask(args: argparse.Namespace, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the database of the station that was named.

    Raises LookupError: there is no station in that folder. EmbeddedError, DatabaseUnavailable.
    """
    url = os.environ.get("DATABASE_URL")
    if url:
        return asyncio.run(_on_database(url, work))
    if not (args.data / "pg").is_dir():
        raise LookupError(
            f"there is no station in {args.data}: start one with 'headrace serve', or set DATABASE_URL"
        )
    server = EmbeddedPostgres(args.data)
    try:
        return asyncio.run(_on_database(server.start(patience_s=0), work))
    finally:
        server.stop()


async def _on_database(url: str, work: Callable[[Database], Awaitable[T]]) -> T:
    database = await Database.connect(url, size=1)
    try:
        await database.migrate()
        return await work(database)
    finally:
        await database.close()


def show(args: argparse.Namespace, document: Any, lines: Sequence[str]) -> None:
    """The document for machines, or the lines for people."""
    print(orjson.dumps(document, default=str).decode() if args.json else "\n".join(lines))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Columns as wide as they must be; numbers to the right. A model's name is whatever a client sent:
    what a terminal would obey is shown as its escape."""
    cells = [list(head), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[n], int) for row in rows) for n in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    ]


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
