"""Requests to an S3-compatible bucket: URL and signed header fields of one.

Owns what is the same for whoever sends them: control puts and deletes, workers get. Pure.
https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from urllib.parse import quote, urlsplit

from proxy.routing.sigv4 import Key, Request, signed_fields

BUCKET = "{bucket}"  # in an endpoint: the bucket is part of the host's name
NOTHING = sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where objects are kept. Endpoint: `https://s3.example.com`, or `https://{bucket}.oss.example.com`."""

    endpoint: str
    region: str
    name: str
    prefix: str  # in front of the keys of objects
    access_key: str
    secret: str = field(repr=False)

    def request(
        self,
        method: str,
        name: str,
        at_ms: int,
        *,
        digest: str = NOTHING,
        more: Mapping[str, str] | None = None,
    ) -> tuple[str, dict[str, str]]:
        """URL and header fields of a request about an object; `digest` is the SHA-256 of the body in hex,
        `more` are fields to be sent as well."""
        path = "/" + quote(self.prefix + name)
        if BUCKET not in self.endpoint:
            path = f"/{self.name}{path}"
        url = self.endpoint.replace(BUCKET, self.name) + path
        parts = urlsplit(url)
        fields = {"x-amz-content-sha256": digest} | dict(more or {})
        asked = Request(method, parts.path, "", {"host": parts.netloc, **fields}, digest)
        proof = signed_fields(asked, Key(self.access_key, self.secret, ""), at_ms, (self.region, "s3"))
        return url, fields | proof
