"""A small S3 that believes nobody: it works out each signature by itself, from the words of AWS's document.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. Shares no code with what it
checks. Knows PUT, GET with one range, HEAD and DELETE of objects of one bucket.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import quote, unquote

from aiohttp import web

_PROOF = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<day>\d{8})/(?P<region>[^/]+)/s3/aws4_request, "
    r"SignedHeaders=(?P<names>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class BucketServer:
    """`objects` is what is there: name -> (content, type). `fails` answers that status to so many puts."""

    def __init__(self, bucket: str = "files", key: str = "AKID", secret: str = "s3-canary-secret") -> None:
        self.bucket, self.key, self.secret = bucket, key, secret
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.puts: list[str] = []
        self.refused: list[str] = []
        self.fails: list[int] = []
        self.app = web.Application(client_max_size=1 << 30)
        self.app.router.add_route("*", "/{path:.*}", self.answer)

    def why_not(self, request: web.Request, body: bytes) -> str:
        """Why a request is not proven; "": it is."""
        proof = _PROOF.fullmatch(request.headers.get("Authorization", ""))
        if proof is None or proof["key"] != self.key:
            return "no proof"
        names = proof["names"].split(";")
        if names != sorted(names) or not {"host", "x-amz-date", "x-amz-content-sha256"} <= set(names):
            return "signs too little"
        digest = request.headers["x-amz-content-sha256"]
        if digest != hashlib.sha256(body).hexdigest():
            return "another body"
        at = request.headers["x-amz-date"]
        text = "\n".join(
            [
                request.method,
                quote(unquote(request.raw_path), safe="/-_.~"),
                "",
                *(f"{name}:{request.headers[name].strip()}" for name in names),
                "",
                ";".join(names),
                digest,
            ]
        )
        scope = f"{proof['day']}/{proof['region']}/s3/aws4_request"
        signed = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(text.encode()).hexdigest()}"
        key = ("AWS4" + self.secret).encode()
        for word in scope.split("/"):
            key = _hmac(key, word)
        return "" if _hmac(key, signed).hex() == proof["signature"] else "another signature"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if why := self.why_not(request, body):
            self.refused.append(why)
            return web.Response(status=403, text=f"<Error><Code>SignatureDoesNotMatch</Code>{why}</Error>")
        bucket, _, name = request.match_info["path"].partition("/")
        if bucket != self.bucket:
            return web.Response(status=404, text="<Error><Code>NoSuchBucket</Code></Error>")
        if request.method == "PUT":
            if "Content-Length" not in request.headers:
                return web.Response(status=411, text="<Error><Code>MissingContentLength</Code></Error>")
            if self.fails:
                return web.Response(status=self.fails.pop())
            self.puts.append(name)
            self.objects[name] = (body, request.headers.get("Content-Type", ""))
            return web.Response()
        if request.method == "DELETE":
            self.objects.pop(name, None)
            return web.Response(status=204)
        if name not in self.objects:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        return self._part(request, *self.objects[name])

    @staticmethod
    def _part(request: web.Request, content: bytes, kind: str) -> web.Response:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked is None:
            return web.Response(body=content, content_type=kind)
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        fields = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return web.Response(status=206, body=content[first : last + 1], content_type=kind, headers=fields)
