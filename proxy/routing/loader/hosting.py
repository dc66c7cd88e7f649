"""What is kept of what tasks have made, compiled: the section `results`.

Owns its mistakes, and the row of the document; the members of the row are the fields of routing.results.
"""

from __future__ import annotations

from typing import Any

from proxy.routing import keeping
from proxy.routing.loader.draft import Draft
from proxy.routing.loader.mistakes import Path
from proxy.routing.loader.references import ABSENT, has_reference

Row = dict[str, Any]

HERE: Path = ("results", "keep")
_LOOPBACK = ("http://127.", "http://localhost", "http://[::1]")


def results(draft: Draft) -> Row | None:
    """None: nothing is kept."""
    given = draft.file.results
    if given is None:
        return None
    _check(draft, given)
    return {
        "directory": given.keep.directory or "",
        "bucket": given.keep.s3 and _bucket(given.keep.s3),
        "days": given.days,
        "size_limit": given.size_limit,
        "rewrite": given.rewrite,
        "tasks": given.tasks,
    }


def _bucket(given: keeping.ObjectStore) -> Row:
    return {
        "endpoint": given.endpoint,
        "region": given.region,
        "name": given.bucket,
        "prefix": given.prefix,
        "access_key": given.access_key,
        "secret": given.secret_key,
    }


def _check(draft: Draft, given: keeping.Results) -> None:
    keep = given.keep
    if (keep.directory is None) == (keep.s3 is None) and draft.shaped.is_whole(HERE):
        draft.wrong(HERE, "says one of 'directory' and 's3'", of_key=True)
    if keep.directory is not None and not keep.directory.strip():
        draft.wrong((*HERE, "directory"), "is empty")
    if keep.s3 is not None:
        for member in ("access_key", "secret_key"):
            if not has_reference(draft.root.text_at((*HERE, "s3", member))):
                what = "a secret is not written into the file: use ${env:NAME} or ${file:PATH}"
                draft.wrong((*HERE, "s3", member), what)
        if keep.s3.endpoint.startswith("http:") and not keep.s3.endpoint.startswith((*_LOOPBACK, ABSENT)):
            draft.warn((*HERE, "s3", "endpoint"), "is not https: files go in the clear")
    silent = {one.name for one in draft.families if not one.said.task.files}
    for number, name in enumerate(given.tasks or ()):
        if name not in draft.file.tasks:
            draft.unknown(("results", "tasks", number), "task family", draft.file.tasks)
        elif name in silent:
            draft.warn(("results", "tasks", number), "does not tell where its files are", of_key=False)
    if not draft.file.tasks:
        draft.warn(("results",), "there are no tasks: nothing will be kept")
