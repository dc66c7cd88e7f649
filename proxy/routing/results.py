"""What the station keeps of what tasks have made: where, how long, of which families.

Owns the shape of the compiled section `results`, and the names of files. Immutable and pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.routing.buckets import Bucket

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Results:
    """Exactly one of `directory` and `bucket` is there."""

    directory: str  # absolute, or within the data folder; "": a bucket
    bucket: Bucket | None
    days: int
    size_limit: int  # bytes of one file
    rewrite: bool  # answers show our links instead of the vendor's
    tasks: frozenset[str] | None  # families; None: all that tell where their files are

    @property
    def lasts_ms(self) -> int:
        return self.days * DAY_MS

    def keeps(self, family: str) -> bool:
        return self.tasks is None or family in self.tasks


def path_of(id_: str) -> str:
    """Of a file within a directory: no folder gets too many."""
    return f"{id_[:2]}/{id_}"


def results_from(data: Mapping[str, Any] | None) -> Results | None:
    """From the table's document; None: nothing is kept."""
    if data is None:
        return None
    bucket, tasks = data["bucket"], data["tasks"]
    return Results(
        **{
            **data,
            "bucket": None if bucket is None else Bucket(**bucket),
            "tasks": None if tasks is None else frozenset(tasks),
        }
    )
