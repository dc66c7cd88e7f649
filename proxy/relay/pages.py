"""What the worker answers itself: models, endpoints, health, CORS preflight; and what it passes to
control's pages.

Owns these few paths. None of them is metered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson

from proxy.dialects.links import PREFIX as RESULTS
from proxy.errors import BodyTooLarge, MethodNotAllowed, StationFault, UnknownModel
from proxy.http1.head import Field
from proxy.relay.admission import Admission
from proxy.relay.answers import dialect_of, whole_answer
from proxy.relay.exchange import Exchange
from proxy.relay.hooks import Hooks, challenge_in
from proxy.routing.callbacks import PREFIX

PAGE_TIMEOUT_S = 10.0
BODY_BYTES_MAX = 64 << 10
CREATED = 1_700_000_000  # of every model: OpenAI's shape wants a date that nobody reads

CALLBACK_BYTES_MAX = 4 << 20  # a task with its pictures in it

HOLDER_PATHS = ("/me", "/receipts", "/dashboard/billing/subscription", "/dashboard/billing/usage")
HOLDER_PREFIXES = ("/receipts/", "/me/callback")
NOT_MEASURED = {"status": "unknown", "first_byte_ms": None, "measured_ms": None}
OPEN_PREFIXES = ("/portal", "/status")
KEY_HEADER = "x-headrace-key"  # set here, dropped from clients: control trusts it
ADDRESS_HEADER = "x-headrace-address"  # likewise
PASSED_ON = ("content-type", "accept", "cookie", "stripe-signature", "headrace-signature")

_PREFLIGHT: list[Field] = [
    (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, OPTIONS"),
    (b"access-control-allow-headers", b"*, authorization"),  # "*" does not cover authorization
    (b"access-control-max-age", b"86400"),
]

Page = Callable[[Exchange], Awaitable[None]]


class Pages:
    """`is_ready()` is what /readyz says; `web_path` is control's unix socket."""

    def __init__(
        self,
        admission: Admission,
        hooks: Hooks,
        results: Page,
        web_path: str,
        is_ready: Callable[[], bool],
    ) -> None:
        self._admission = admission
        self._hooks = hooks
        self._web_path = web_path
        self._is_ready = is_ready
        self._results = results
        self._session: aiohttp.ClientSession | None = None
        self.measured: dict[str, dict[str, Any]] = {}  # endpoint -> what control has measured of it
        self._pages: dict[str, Page] = {
            "/healthz": self._health,
            "/readyz": self._ready,
            "/endpoints": self._endpoints,
            "/models": self._models,
            "/v1beta/models": self._models,
            "/api/tags": self._models,
        }

    async def serve(self, x: Exchange) -> bool:
        """Answer if the path is one of ours. False: it is a route's."""
        path = x.path
        if x.method == "OPTIONS":
            return self._preflight(x)
        while path.startswith("/v1/"):  # base URLs are forgiving: with /v1, without, doubled
            path = path[3:]
        page = self._pages.get(path)
        if page is None:
            if path.startswith(("/models/", "/v1beta/models/")) and x.method in ("GET", "HEAD"):
                page = self._model
            elif path in HOLDER_PATHS or path.startswith(HOLDER_PREFIXES):
                page = self._holder_page
            elif path.startswith(PREFIX):
                page = self._callback
            elif path.startswith(RESULTS):
                page = self._results
            elif x.path.startswith(OPEN_PREFIXES) and x.path.split("/")[1] in ("portal", "status"):
                page = self._open_page
            else:
                return False
        elif x.method not in ("GET", "HEAD"):
            raise MethodNotAllowed
        await page(x)
        return True

    async def _identify(self, x: Exchange) -> None:
        assert x.heads is not None and x.facts is not None
        if (waiting := self._admission.identify(x, x.heads.digest(x, x.facts))) is not None:
            await waiting

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _preflight(self, x: Exchange) -> bool:
        """A browser asks before it sends a key, so this needs none (Fetch standard, CORS preflight)."""
        if x.endpoint is None or not x.endpoint.cors or "Access-Control-Request-Method" not in x.headers:
            raise MethodNotAllowed
        respond(x, 204, b"", _PREFLIGHT)
        return True

    async def _health(self, x: Exchange) -> None:
        respond_json(x, {"status": "ok"})

    async def _ready(self, x: Exchange) -> None:
        ready = self._is_ready()
        respond_json(x, {"status": "ready" if ready else "starting"}, 200 if ready else 503)

    async def _endpoints(self, x: Exchange) -> None:
        assert x.snapshot is not None
        await self._identify(x)
        table = x.snapshot.table
        largest = max(route.body_limit for route in table.routes)
        endpoints = [
            {
                "name": e.name,
                "url": e.url,
                "label": e.label,
                "region": e.region,
                "proxy_read_timeout_s": e.proxy_read_timeout_ms and e.proxy_read_timeout_ms / 1000,
                "slow_calls": e.slow_calls if e.proxy_read_timeout_ms else None,
                "body_limit_bytes": min(e.body_limit or largest, largest),
                "cors": e.cors,
                "tags": list(e.tags),
                **self.measured.get(e.name, NOT_MEASURED),
            }
            for e in table.endpoints.values()
        ]
        respond_json(x, {"object": "list", "data": endpoints})

    async def _models(self, x: Exchange) -> None:
        """The models that this key may use, in the shape of the caller's dialect."""
        await self._identify(x)
        one, many = _MODELS.get(dialect_of(x).name, (_openai_model, _openai_models))
        respond_json(x, many([one(name) for name in self._permitted(x)]))

    async def _model(self, x: Exchange) -> None:
        await self._identify(x)
        name = x.path.split("/models/", 1)[1]
        if name not in self._permitted(x):
            raise UnknownModel
        respond_json(x, _MODELS.get(dialect_of(x).name, (_openai_model, _openai_models))[0](name))

    def _permitted(self, x: Exchange) -> list[str]:
        assert x.snapshot is not None and x.key is not None
        snapshot, key = x.snapshot, x.key
        tier = snapshot.tier(key.tier_at(x.at_ms))
        return [
            name
            for name in snapshot.table.models
            if not any(c in name for c in "*?[")
            and snapshot.permitted(tier.models, name)
            and snapshot.permitted(key.models, name)
            and snapshot.sale(name, tier, key.overrides) is not None
            and any(
                snapshot.table.upstreams[c.upstream].enabled for c in snapshot.table.models[name].candidates
            )
        ]

    async def _callback(self, x: Exchange) -> None:
        """A vendor says that something became of a task; what, is asked for. Or it wants to know whether
        somebody is here, and its challenge back (MiniMax, before it accepts a submit)."""
        if x.method != "POST":
            raise MethodNotAllowed
        self._hooks.hear(x.path.rpartition("/")[2])
        pieces, size = [], 0
        while piece := await x.body.more():
            size += len(piece)
            if size > CALLBACK_BYTES_MAX:
                raise BodyTooLarge
            if size <= BODY_BYTES_MAX:
                pieces.append(piece)
        challenge = challenge_in(b"".join(pieces)) if size <= BODY_BYTES_MAX else None
        respond_json(x, {"status": "ok"} if challenge is None else {"challenge": challenge})

    async def _holder_page(self, x: Exchange) -> None:
        await self._identify(x)
        assert x.key is not None
        await self._pass_on(x, {KEY_HEADER: str(x.key.key_id)})

    async def _open_page(self, x: Exchange) -> None:
        await self._pass_on(x, {ADDRESS_HEADER: x.address})

    async def _pass_on(self, x: Exchange, headers: dict[str, str]) -> None:
        """Relay to control's own application; small, unmetered, with a header policy of its own."""
        content = b""
        while piece := await x.body.more():
            content += piece
            if len(content) > BODY_BYTES_MAX:
                raise BodyTooLarge
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._web_path),
                timeout=aiohttp.ClientTimeout(total=PAGE_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        for name in PASSED_ON:
            if (value := x.headers.get(name)) is not None:
                headers[name] = value
        path = x.path
        while path.startswith("/v1/"):
            path = path[3:]
        url = f"http://control{path}" + (f"?{x.query}" if x.query else "")
        try:
            async with self._session.request(
                x.method, url, headers=headers, data=content, allow_redirects=False
            ) as r:
                body = await r.read()
                fields = [
                    (name.encode(), r.headers[name].encode("latin-1"))
                    for name in (
                        "content-type",
                        "cache-control",
                        "content-disposition",
                        "content-security-policy",
                        "link",
                        "referrer-policy",
                        "set-cookie",
                        "location",
                        "x-content-type-options",
                    )
                    if name in r.headers
                ]
                respond(x, r.status, body, fields)
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            raise StationFault(retry_after_s=2.0, detail=type(e).__name__) from e


Row = dict[str, Any]


def _openai_model(name: str) -> Row:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "station"}


def _openai_models(rows: list[Row]) -> Row:
    return {"object": "list", "data": rows}


def _anthropic_model(name: str) -> Row:
    return {"type": "model", "id": name, "display_name": name, "created_at": "2023-11-14T22:13:20Z"}


def _anthropic_models(rows: list[Row]) -> Row:
    ids = [row["id"] for row in rows] or [None]
    return {"data": rows, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}


def _gemini_model(name: str) -> Row:
    methods = ["generateContent", "streamGenerateContent", "countTokens", "embedContent"]
    return {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": methods}


def _ollama_model(name: str) -> Row:
    return {"name": name, "model": name, "modified_at": "2023-11-14T22:13:20Z", "size": 0, "details": {}}


def _list(rows: list[Row]) -> Row:
    return {"models": rows}


_MODELS = {
    "anthropic": (_anthropic_model, _anthropic_models),
    "gemini": (_gemini_model, _list),
    "ollama": (_ollama_model, _list),
}


def respond_json(x: Exchange, document: object, status: int = 200) -> None:
    respond(x, status, orjson.dumps(document), [(b"content-type", b"application/json")])


def respond(x: Exchange, status: int, body: bytes, fields: list[Field]) -> None:
    """Write one whole answer of our own."""
    x.status = status
    x.response_bytes = len(body)
    x.client.write(whole_answer(x, status, fields, body))
