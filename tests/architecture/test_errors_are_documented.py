"""Every error that a caller can meet has its row in the README, and no row is about nothing."""

from __future__ import annotations

import re

from proxy import errors
from tests.architecture.source import ROOT

ROW = re.compile(r"^\| (?P<status>\d{3}) \| `(?P<code>\w+)` \| (?P<source>\w+) \| (?P<text>[^|]+) \|$", re.M)


def classes() -> set[type[errors.ProxyError]]:
    return {
        thing
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, errors.ProxyError)
    }


def documented() -> set[tuple[int, str, str]]:
    text = (ROOT / "README.md").read_text()
    return {(int(row["status"]), row["code"], row["source"]) for row in ROW.finditer(text)}


def test_the_table_of_errors_is_the_code():
    assert documented() == {(c.status, c.code, c.source.value) for c in classes()}
