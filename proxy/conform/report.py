"""What a run found, as a table per family and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from proxy.conform.verdict import Outcome, Result

HEADINGS = ("family", "recordings", "replays", "bytes equal", "usage equal", "mapped", "unknown", "differ")


def is_clean(results: Iterable[Result], skipped: Container[str] = ()) -> bool:
    """Nothing differs, and everything was replayed but the recordings of these names."""
    return all(
        result.outcome is not Outcome.DIFFERS
        and (result.outcome is not Outcome.UNKNOWN or result.name in skipped)
        for result in results
    )


def families(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row per family. `bytes_equal` and `usage_equal`: how many of the replays that could be compared."""
    by_family = sorted(results, key=lambda r: r.family)
    return [_row(family, list(group)) for family, group in groupby(by_family, key=lambda r: r.family)]


def _row(family: str, results: list[Result]) -> dict[str, Any]:
    outcomes = [result.outcome for result in results]
    return {
        "family": family,
        "recordings": len({result.name for result in results}),
        "replays": sum(1 for result in results if result.how),
        "bytes_equal": _equal([result.bytes_equal for result in results]),
        "usage_equal": _equal([result.usage_equal for result in results]),
        **{str(o): outcomes.count(o) for o in (Outcome.MAPPED, Outcome.UNKNOWN, Outcome.DIFFERS)},
    }


def _equal(verdicts: Iterable[bool | None]) -> list[int]:
    """How many are equal, and how many could have been."""
    held = [verdict for verdict in verdicts if verdict is not None]
    return [sum(held), len(held)]


def table(results: Sequence[Result]) -> str:
    """For a person: the families, then every difference and everything that was not replayed."""
    rows = [_cells(row) for row in families(results)]
    total = _cells(_row("all", list(results)))
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, total, strict=True)]
    lines = [_line(cells, widths) for cells in (HEADINGS, *rows, total)]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for result in results:
        if result.outcome is not Outcome.EQUAL:
            how = f" ({result.how})" if result.how else ""
            told = result.differences or [result.note]
            lines += ["", f"{result.outcome}: {result.name}{how}", *(f"  {what}" for what in told)]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    return ["/".join(map(str, value)) if isinstance(value, list) else str(value) for value in row.values()]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if number == 0 else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def document(results: Sequence[Result], skipped: Container[str] = ()) -> dict[str, Any]:
    """For machines: everything."""
    return {
        "clean": is_clean(results, skipped),
        "families": families(results),
        "results": [asdict(result) for result in results],
    }
