"""Sign a request with an AWS key: Signature Version 4.

Owns the form of our AWS credentials and the header fields that prove them. Pure: the request is the block
of bytes that the relay is about to send, the time is an argument, so that what is signed is what goes out.
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import parse_qsl, quote

DEFAULT_REGION = "us-east-1"

_REGION = re.compile(r"(?:^|\.)([a-z]{2}(?:-[a-z]+)+-\d)(?:\.|$)")
_UNRESERVED = "-_.~"


class Key(NamedTuple):
    """A credential as routes.yaml has it: `ID:SECRET` or `ID:SECRET:SESSION_TOKEN`."""

    id: str
    secret: str
    session: str


def key_of(credential: str) -> Key | None:
    """None: it is no pair, but a Bedrock API key, which goes out as a bearer token."""
    key_id, colon, rest = credential.partition(":")
    secret, _, session = rest.partition(":")
    return Key(key_id, secret, session) if colon else None


def signed(head: bytes, body: bytes, credential: str, at_ms: int, *, service: str = "bedrock") -> bytes:
    """The lines that prove a request, to be put behind its other header fields.

    `head`: request line and header fields, each with its CRLF; `host` must be among them. Its region is
    the one in the host's name.
    """
    key = key_of(credential)
    if key is None:
        return b"authorization: Bearer %b\r\n" % credential.encode("latin-1")
    request_line, _, rest = head.partition(b"\r\n")
    method, target, _ = request_line.decode("latin-1").split(" ", 2)
    host = _value(rest, b"host")
    path, _, query = target.partition("?")
    # Escapes of the path are escaped again, except for S3.
    path = quote(path, safe="/" + _UNRESERVED)
    request = Request(method, path, query, {"host": host}, sha256(body).hexdigest())
    proof = signed_fields(request, key, at_ms, (region_of(host), service))
    return "".join(f"{name}: {value}\r\n" for name, value in proof.items()).encode("latin-1")


class Request(NamedTuple):
    """What is signed: `path` as the signature has it, `fields` with lower-case names, `host` among them."""

    method: str
    path: str
    query: str
    fields: Mapping[str, str]
    digest: str  # of the body: SHA-256 in hex


def signed_fields(request: Request, key: Key, at_ms: int, where: tuple[str, str]) -> dict[str, str]:
    """The fields that prove a request, to be sent beside those that it has; `where`: region and service."""
    region, service = where
    at = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    own = {"x-amz-date": at} | ({"x-amz-security-token": key.session} if key.session else {})
    fields = {**request.fields, **own}
    names = ";".join(sorted(fields))
    canonical = "\n".join(
        (
            request.method,
            request.path,
            _canonical_query(request.query),
            *(f"{name}:{fields[name]}" for name in sorted(fields)),
            "",
            names,
            request.digest,
        )
    )
    scope = f"{at[:8]}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new(_signing_key(key.secret, scope), text.encode(), sha256).hexdigest()
    proof = f"AWS4-HMAC-SHA256 Credential={key.id}/{scope}, SignedHeaders={names}, Signature={signature}"
    session = {name: value for name, value in own.items() if name != "x-amz-date"}
    return {"x-amz-date": at, "authorization": proof, **session}


def region_of(host: str) -> str:
    """`bedrock-runtime.eu-west-1.amazonaws.com` -> eu-west-1."""
    found = _REGION.search(host.partition(":")[0])
    return found[1] if found else DEFAULT_REGION


def _value(fields: bytes, name: bytes) -> str:
    for line in fields.split(b"\r\n"):
        field, _, value = line.partition(b":")
        if field.lower() == name:
            return value.strip().decode("latin-1")
    return ""


def _canonical_query(query: str) -> str:
    pairs = sorted(
        (quote(name, safe=_UNRESERVED), quote(value, safe=_UNRESERVED))
        for name, value in parse_qsl(query, keep_blank_values=True)
    )
    return "&".join(f"{name}={value}" for name, value in pairs)


@lru_cache(maxsize=256)  # one for each key and day
def _signing_key(secret: str, scope: str) -> bytes:
    key = b"AWS4" + secret.encode("latin-1")
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), sha256).digest()
    return key
