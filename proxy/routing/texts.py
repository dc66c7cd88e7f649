"""Texts of routes.yaml that name something: names, models, URLs, hosts, headers, paths.

Owns what each must look like. Pure; every function returns the normal form or raises ValueError with
words for the operator, which never repeat the text: it may come from a secret.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_network
from urllib.parse import urlsplit

from proxy.errors import MalformedRequest
from proxy.routing.canonical import canonical
from proxy.routing.paths import capture_name

NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
HEADER = "[A-Za-z0-9][A-Za-z0-9-]{0,63}"

_NAME = re.compile(NAME)
_HEADER = re.compile(HEADER)
_CAPTURE = re.compile("[a-z][a-z0-9_]{0,31}")
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]+\]")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_METHOD = re.compile("[A-Z]{3,10}")
_MEMBER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MEMBER_PATH = re.compile(
    r"[A-Za-z_][A-Za-z0-9_-]{0,63}(?:\[\])?(?:\.[A-Za-z_][A-Za-z0-9_-]{0,63}(?:\[\])?){0,7}"
)
_PREFIX = re.compile(r"(?:[A-Za-z0-9._-][A-Za-z0-9._/-]{0,127})?")
MODEL_CHARACTERS_MAX = 256


def name(text: str) -> str:
    """Of an upstream, a mirror, a tier: it is journaled and shown."""
    if not _NAME.fullmatch(text):
        raise ValueError("a name has letters, digits, '.', '_' and '-', at most 64 of them")
    return text


def model_name(text: str) -> str:
    """A model's name or a glob of such names."""
    if not text or len(text) > MODEL_CHARACTERS_MAX or not text.isprintable() or " " in text:
        raise ValueError("must be the name of a model, in which * stands for anything")
    return text


def literal_model(text: str) -> str:
    """A model's name without a `*`."""
    if "*" in text:
        raise ValueError("must be the name of one model, without *")
    return model_name(text)


def base_url(text: str) -> str:
    """Without a slash at its end."""
    wrong = "must be a base URL such as https://api.example.com"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(wrong) from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise ValueError(wrong)
    if url.username is not None or "?" in text or "#" in text:
        raise ValueError("a base URL has no user, query or fragment")
    host(f"[{url.hostname}]" if ":" in url.hostname else url.hostname)
    if url.path:
        _canonical(url.path, wrong)
    return text.rstrip("/")


def bucket_url(text: str) -> str:
    """Of a bucket's server; `{bucket}` in the host stands for the bucket's name."""
    base_url(text.replace("{bucket}", "bucket", 1))
    return text.rstrip("/")


def object_prefix(text: str) -> str:
    """In front of objects' names: `headrace/`."""
    if not _PREFIX.fullmatch(text):
        raise ValueError(
            "has letters, digits, '.', '_', '-' and '/', at most 128 of them, and does not begin with /"
        )
    return text


def egress_url(text: str) -> str:
    """A proxy: http://, on which CONNECT is asked, or socks5://; a user and a password may be in it."""
    wrong = "must be a proxy such as http://proxy:3128 or socks5://user:password@proxy:1080"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(wrong) from None
    if url.scheme not in ("http", "socks5") or not url.hostname or not port or url.path.strip("/"):
        raise ValueError(wrong)
    if "?" in text or "#" in text or max(map(len, (url.username or "", url.password or ""))) > 255:
        raise ValueError(wrong)
    host(f"[{url.hostname}]" if ":" in url.hostname else url.hostname)
    return text


def host(text: str) -> str:
    """In lower case."""
    lower = text.lower()
    if not _HOST.fullmatch(lower) or ".." in lower:
        raise ValueError("must be a host name without scheme, port and path")
    return lower


def network(text: str) -> str:
    """An address counts as the network of itself."""
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8") from None


def header_name(text: str) -> str:
    """As it is written. No underscores: to many servers they are the same as dashes."""
    if not _HEADER.fullmatch(text):
        raise ValueError("must be a header name of letters, digits and '-'")
    return text


def header_value(text: str) -> str:
    """What a field may hold in one line (RFC 9110 5.5)."""
    if not _HEADER_VALUE.fullmatch(text) or text != text.strip():
        raise ValueError("has a character that may not be in a header")
    return text


def secret(text: str) -> str:
    """It is sent in a header."""
    if not text:
        raise ValueError("is empty")
    return header_value(text)


def method(text: str) -> str:
    """An HTTP method."""
    if not _METHOD.fullmatch(text):
        raise ValueError("must be an HTTP method such as POST")
    return text


def member_name(text: str) -> str:
    """A top-level member of a JSON request body."""
    if not _MEMBER.fullmatch(text):
        raise ValueError("must be the name of a parameter such as temperature")
    return text


def member_path(text: str) -> str:
    """A member of a JSON request body, also inside of others: `response_format.type`, `messages[].role`."""
    if not _MEMBER_PATH.fullmatch(text):
        raise ValueError("must be a parameter such as temperature or messages[].role")
    return text


def path_template(text: str) -> str:
    """A path in which whole segments may be `{captures}`, also with a verb behind: `{model}:predict`."""
    if not text.startswith("/"):
        raise ValueError("must begin with /")
    segments = text.split("/")
    captures = [n for n in map(capture_name, segments) if n is not None]
    if not all(_CAPTURE.fullmatch(n) for n in captures) or len(set(captures)) != len(captures):
        raise ValueError("a capture is a whole segment such as {id} or {model}:verb, each name once")
    plain = "/".join("x" if capture_name(s) is not None else s for s in segments)
    _canonical(plain, "is not a plain path: no query, no '..', no '//', no needless escapes")
    return text


def upstream_path(text: str) -> str:
    """A path in which `{names}` stand for what the call fills in."""
    if not text.startswith("/"):
        raise ValueError("must begin with /")
    plain = _PLACEHOLDER.sub("x", text)
    if "{" in plain or "}" in plain:
        raise ValueError("has a brace that belongs to no {name}")
    _canonical(plain, "is not a plain path: no query, no '..', no '//', no needless escapes")
    return text


def placeholders(template: str) -> set[str]:
    """The names in braces."""
    return set(_PLACEHOLDER.findall(template))


def _canonical(path: str, wrong: str) -> None:
    try:
        same = canonical(path) == (path, "")
    except MalformedRequest:
        same = False
    if not same:
        raise ValueError(wrong)


# -- of task families ------------------------------------------------------------------------------

SOURCES = ("path", "query", "body")  # of a request
_STEP = re.compile(r"[A-Za-z0-9_$@-][A-Za-z0-9_$@:-]{0,63}|\*")
_NAME_PART = re.compile(r"\{(?P<at>[A-Za-z_][A-Za-z0-9_.-]{0,63})(?:=(?P<default>[A-Za-z0-9._/-]{1,64}))?\}")
_NAME_TEXT = re.compile(r"[A-Za-z0-9._:/-]*")


def steps(place: str) -> list[str]:
    """Of a `place` or a `request_place`."""
    return place.split(".") if place else []


def place(text: str) -> str:
    """Where something is in a JSON value: `data.*.id`; the value itself, if it is empty."""
    if not all(map(_STEP.fullmatch, steps(text))):
        raise ValueError("must be a place such as data.task_id or data.*.id, in which * is each of a list")
    return text


def request_place(text: str) -> str:
    """Where something is in a request: `path.id`, `query.task_id`, `body.input.url`."""
    source, _, rest = text.partition(".")
    if source not in SOURCES or not rest or (source != "body" and "." in place(rest)):
        raise ValueError("must be a place such as path.id, query.task_id or body.input.url")
    return text


def prefix(text: str) -> str:
    """What stands in front of paths: `/mj-fast`, or nothing."""
    if text and (not path_template(text) or text.endswith("/") or "{" in text):
        raise ValueError("must be a path such as /fast, or empty")
    return text


def name_template(text: str) -> str:
    """A model's name in which `{member}` or `{member=default}` stands for what the request says."""
    if not text or not _NAME_TEXT.fullmatch(_NAME_PART.sub("", text)):
        raise ValueError("must be a model's name, in which {member} or {member=default} may stand")
    return text


def name_parts(template: str) -> list[tuple[str, str | None]]:
    """(member, default) of each brace in a name_template."""
    return [(found["at"], found["default"]) for found in _NAME_PART.finditer(template)]


def name_glob(template: str) -> str:
    """What a name_template may become, as a glob."""
    return _NAME_PART.sub("*", template)


def json_template(text: str) -> str:
    """A JSON value; where braces stand in its strings is its reader's."""
    try:
        json.loads(text)
    except ValueError:
        raise ValueError('must be JSON in one text, such as \'{"code":4,"message":"{message}"}\'') from None
    return text
