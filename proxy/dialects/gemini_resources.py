"""What lives at Google under a name: contents that are cached, files. Data, and how a cache is priced.

A name ends in the same way wherever it stands: `files/x` in a link to it, `cachedContents/x` below a project
of Vertex AI. Files come in one request: the start of a resumable upload is answered with an address of the
vendor's that needs no key, so that it is refused here (a station that wants it declares a route for it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from proxy.dialects.answer import known_int
from proxy.dialects.base import OperationSpec, Rules, UsagePointers
from proxy.dialects.owned import DEEP, IdIn, IdOut, Listing
from proxy.dialects.rules import NOTHING
from proxy.metering.usage import Usage

CACHED, FILES = "cachedContents/", "files/"

# Links to what was uploaded; others are the world's.
_UPLOADED = (
    "https://generativelanguage.googleapis.com", "http://generativelanguage.googleapis.com", FILES,
)  # fmt: skip
NAMED_FILES = tuple(
    IdIn(("body", DEEP, holder, uri), only=_UPLOADED, since=FILES)
    for holder in ("fileData", "file_data")
    for uri in ("fileUri", "file_uri")
)
NAMED = (
    IdIn(("body", "cachedContent"), since=CACHED),
    IdIn(("body", "cached_content"), since=CACHED),
    *NAMED_FILES,
)


# -- what a cache costs ------------------------------------------------------------------------------


def _read_created(raw: dict[str, Any]) -> Usage | None:
    """What is cached is read once, and kept by the hour."""
    usage = _read_kept(raw)
    if usage is not None:
        usage.input = _tokens(raw)
    return usage


def _read_kept(raw: dict[str, Any]) -> Usage | None:
    """From its last change until it expires. One that is deleted earlier was paid for all the same."""
    begins = _time(raw.get("updateTime")) or _time(raw.get("createTime"))
    ends = _time(raw.get("expireTime"))
    if begins is None or ends is None:
        return None
    seconds = max(round((ends - begins).total_seconds()), 0)
    return Usage(units={"token_hour": -(-_tokens(raw) * seconds // 3600)}, calls=1)


def _tokens(raw: dict[str, Any]) -> int:
    usage = raw.get("usageMetadata")
    return known_int(usage.get("totalTokenCount")) if type(usage) is dict else 0


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if type(value) is str else None
    except ValueError:
        return None


# -- operations --------------------------------------------------------------------------------------


def _spread(read: Any) -> UsagePointers:
    return UsagePointers(places=(("usageMetadata",),), read=read, spread=True)


def _things(api: str, path: str, name: str, listing: Listing) -> Iterator[OperationSpec]:
    """List, get and delete: free."""
    of_one = (IdIn(("path", "id"), prefix=name),)
    get = OperationSpec(
        f"{api}.get",
        f"{path}/{{id}}",
        ("GET",),
        api=api,
        request="none",
        model_at="none",
        billed=False,
        guarded=(),
        rules=NOTHING,
        ids_in=of_one,
    )
    yield get
    yield replace(get, name=f"{api}.delete", methods=("DELETE",))
    yield replace(get, name=f"{api}.list", path=path, ids_in=(), lists=listing)


def _listing(kind: str, member: str) -> Listing:
    return Listing(
        kind, member, "pageSize", after="pageToken", token="nextPageToken", named="name", fixed={}  # noqa: S106
    )  # fmt: skip


def cached_contents(path: str) -> Iterator[OperationSpec]:
    """Under `path`, which their callers use."""
    yield from _things("cached_contents", path, CACHED, _listing("cached_content", CACHED.rstrip("/")))
    create = OperationSpec(
        "cached_contents.create",
        path,
        api="cached_contents",
        kind="caching",
        model_at="none",
        replayable=False,
        guarded=("contents", "ttl"),
        meter=_spread(_read_created),
        rules=Rules(model=(), vendor_id=(("name",),)),
        ids_in=NAMED_FILES,
        ids_out=(IdOut("cached_content", (("name",),), since=CACHED),),
    )
    yield create
    yield replace(
        create,
        name="cached_contents.patch",
        path=f"{path}/{{id}}",
        methods=("PATCH",),
        meter=_spread(_read_kept),
        ids_in=(IdIn(("path", "id"), prefix=CACHED),),
    )


UPLOAD_PATH = "/upload/v1beta/files"

FILE_OPERATIONS = (
    *_things("gemini_files", "files", FILES, _listing("gemini_file", "files")),
    OperationSpec(
        "gemini_files.upload",
        UPLOAD_PATH,
        api="gemini_files",
        request="opaque",
        model_at="none",
        billed=False,
        replayable=False,
        guarded=(),
        rules=NOTHING,
        ids_out=(IdOut("gemini_file", (("file", "name"),), holder=("file",)),),
        forms={
            "x-goog-upload-protocol": frozenset({"multipart", "raw"}),
            "x-goog-upload-command": frozenset(),
            "uploadType": frozenset({"multipart", "media"}),
            "upload_protocol": frozenset({"multipart", "raw"}),
            "upload_id": frozenset(),
        },
    ),
)
