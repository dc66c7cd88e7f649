"""What is matched is what is forwarded, whatever the spelling and however often it is decoded."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import MalformedRequest
from proxy.routing.canonical import canonical


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/v1/chat/completions", "/v1/chat/completions", ""),
        ("/v1/messages?beta=true", "/v1/messages", "beta=true"),
        ("//v1///chat/completions", "/v1/chat/completions", ""),
        ("//EVIL/x", "/EVIL/x", ""),
        ("/v1/%63hat/completions", "/v1/chat/completions", ""),
        ("/v1/models/x%3agenerate", "/v1/models/x:generate", ""),
        ("/openai/deployments/org%2fmodel/chat", "/openai/deployments/org%2Fmodel/chat", ""),
        ("/files/caf%c3%a9", "/files/caf%C3%A9", ""),
        ("/a/.hidden", "/a/.hidden", ""),
        ("/a/b..c", "/a/b..c", ""),
        ("/", "/", ""),
        ("/a/", "/a/", ""),
        ("/a?x=http://y/../z", "/a", "x=http://y/../z"),
    ],
)
def test_one_spelling_comes_out(target, path, query):
    assert canonical(target) == (path, query)


@pytest.mark.parametrize(
    "target",
    [
        "http://api.openai.com/v1/models",
        "file:///etc/passwd",
        "example.com:443",
        "*",
        "",
        "v1/chat",
        "/v1/../admin",
        "/v1/./x",
        "/v1/x/%2e%2e/organization/admin_api_keys",
        "/v1/x/.%2E/y",
        "/v1/..%2f..%2fadmin",
        "/v1/a%2f..",
        "/v1/..;/admin",
        "/v1/..;x=1/admin",
        "/v1/%252e%252e/admin",
        "/v1/%2525",
        "/v1\\..\\admin",
        "/v1/%5c..%5cadmin",
        "/v1/x%00",
        "/v1/x%0d%0aHost:%20y",
        "/v1/x y",
        "/v1/x\ty",
        "/v1/x#y",
        "/v1/x?a#b",
        "/v1/x?a b",
        "/v1/%zz",
        "/v1/%2",
        "/v1/%ff",
        "/v1/caf\u00e9",
        "/v1/\ud800",
        "/v1/x?\u00e9",
        '/v1/"x"',
        "/v1/{model}",
    ],
)
def test_tricks_are_refused(target):
    with pytest.raises(MalformedRequest):
        canonical(target)


PIECES = st.sampled_from(
    [
        "/",
        "//",
        ".",
        "..",
        "%2e",
        "%2E",
        "%2f",
        "%2F",
        "%5c",
        "\\",
        "%25",
        "%00",
        ";",
        "?",
        "#",
        "a",
        "v1",
        "%41",
        "%3A",
    ]
) | st.text(max_size=3)
TARGETS = st.lists(PIECES, max_size=12).map(lambda pieces: "/" + "".join(pieces))


def accepted(target: str) -> tuple[str, str] | None:
    try:
        return canonical(target)
    except MalformedRequest:
        return None


@given(TARGETS)
def test_it_is_idempotent(target):
    once = accepted(target)
    if once is not None:
        path, query = once
        assert canonical(f"{path}?{query}" if query else path) == once


@given(TARGETS)
def test_no_number_of_decodings_makes_a_traversal(target):
    found = accepted(target)
    if found is None:
        return
    once = unquote(found[0])
    assert unquote(once) == once
    segments = once.replace("\\", "/").split("/")
    assert not {".", ".."} & {segment.partition(";")[0] for segment in segments}


@given(TARGETS)
def test_nothing_in_it_can_end_a_request_line(target):
    found = accepted(target)
    if found is not None:
        assert all("!" <= c <= "~" and c not in "#\\" for c in found[0])
        assert all("!" <= c <= "~" and c != "#" for c in found[1])
