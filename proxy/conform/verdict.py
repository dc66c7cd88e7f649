"""What is held against a recording: status, path, header fields, bytes and bill. Pure.

A difference is a sentence for a person; none is left out. Owns the outcome of a replay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from proxy.conform.recordings import Figures, Recording, figures
from proxy.dialects.base import Dialect, OperationSpec
from proxy.http1.head import Head
from proxy.http1.headers import Admission, ResponseRules
from proxy.metering.usage import Usage
from proxy.relay.answers import Verdict, judge

Fields = Sequence[tuple[str, str]]  # names in lower case
# What the relay writes itself, in place of what its upstream said or beside it.
OURS = frozenset({
    "cache-control", "connection", "content-length", "date", "retry-after", "server", "server-timing",
    "transfer-encoding", "vary", "x-accel-buffering", "x-request-id", "x-should-retry",
})  # fmt: skip
_SHOWN = 60  # bytes of a difference, on each side of where it begins


class Outcome(StrEnum):
    EQUAL = "equal"
    DIFFERS = "differs"
    MAPPED = "mapped"  # an answer that the policy replaces by one of our own
    UNKNOWN = "unknown"  # nothing here that it could be replayed through


@dataclass(slots=True)
class Result:
    """How one replay of a recording went. None: there was nothing to compare."""

    name: str
    family: str
    protocol: str
    how: str  # identity | gzip | websocket, and how it was framed; "" where it was not replayed
    outcome: Outcome = Outcome.EQUAL
    bytes_equal: bool | None = None
    usage_equal: bool | None = None
    note: str = ""
    differences: list[str] = field(default_factory=list)

    def differ(self, *what: str) -> None:
        if what:
            self.outcome = Outcome.DIFFERS
            self.differences += what


def result(recording: Recording, how: str = "", **facts: Any) -> Result:
    return Result(recording.name, recording.family, recording.protocol, how, **facts)


def is_mapped(status: int, body: bytes) -> bool:
    """Does the client get an answer of our own in place of this one?"""
    if status < 300:
        return False
    return judge(Head.of(status), body) is not Verdict.VERBATIM


def path_differences(asked: str, recorded: str) -> Iterable[str]:
    """Vendors that have their paths with and without a version, or once more for another plan, count as
    one."""
    asked = asked.partition("?")[0]
    if _plain(asked) != _plain(recorded):
        yield f"the upstream was asked for {asked}, not {recorded}"


def _plain(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment not in ("v1", "coding", "")]


def header_differences(
    sent: Fields, received: Fields, vendor: Dialect, policy: ResponseRules, caller: Dialect
) -> Iterable[str]:
    """`sent`: by the vendor. What the policy passes arrives as it was, and nothing else does."""
    ours = OURS.union(name.decode() for name in caller.own_id_headers)
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in sent]
    admission = Admission(vendor.response_pass, vendor.response_pass_prefixes, policy)
    passing = admission.fields(Head.of(200, raw))
    due = [
        (n, value.decode("latin-1").strip()) for name, value in passing if (n := name.decode()) not in ours
    ]
    arrived = [field for field in received if field[0] not in ours]
    yield from (f"header {name} was lost" for name, value in due if (name, value) not in arrived)
    known = {name for name, _ in due}
    yield from (f"header {name} passed" for name, _ in arrived if name not in known)


def byte_differences(what: str, sent: bytes, received: bytes) -> Iterable[str]:
    if sent == received:
        return
    pairs = enumerate(zip(sent, received, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), min(len(sent), len(received)))
    around = slice(max(0, at - _SHOWN), at + _SHOWN)
    yield (
        f"{what}: {len(received)} bytes, not {len(sent)}; from {at} on: "
        f"{received[around]!r}, not {sent[around]!r}"
    )


def usage_differences(told: Figures, metered: Usage) -> Iterable[str]:
    ours = figures(metered)
    for name, wanted in told.items():
        if ours[name] != wanted:
            yield f"{name} {ours[name]}, not {wanted}"


def bill_differences(
    recording: Recording, operation: OperationSpec, row: Mapping[str, Any] | None
) -> Iterable[str]:
    """Of one call over HTTP. `row`: its usage row, or None."""
    is_error = recording.status >= 300
    if is_error or not operation.billed:
        if row is not None and row["cost_nanos"]:
            yield f"{'an error' if is_error else 'a free call'} cost {row['cost_nanos']} nanos"
        return
    if row is None:
        yield "the call was never billed"
        return
    if recording.told is not None:
        if row["provenance"] != "final":
            yield f"its figures are {row['provenance']}"
        yield from usage_differences(recording.told, usage_of(row))
    elif recording.is_paid is not None and recording.is_paid != bool(row["cost_nanos"]):
        yield f"it cost {row['cost_nanos']} nanos"


def usage_of(row: Mapping[str, Any]) -> Usage:
    stored = row["usage"]
    return Usage.from_dict(orjson.loads(stored) if isinstance(stored, str | bytes) else stored)
