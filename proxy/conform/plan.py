"""Where a recording goes: the call that a key holder makes, and the routes.yaml that takes it there.

The caller exchanges only the host, the key and the model's name. Each recording has an upstream of its own,
so that one that is refused cools nobody else's credential. Pure but for the compiling of a small file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import orjson

from proxy import compiler
from proxy.conform.recordings import Recording
from proxy.dialects import DIALECTS
from proxy.dialects.base import Dialect, OperationSpec
from proxy.dialects.owned import Places
from proxy.errors import ProxyError
from proxy.metering.pricing import tool_kinds
from proxy.routing.canonical import canonical
from proxy.routing.loader.builtin import OWN_PATHS
from proxy.routing.loader.presets import PRESETS
from proxy.routing.paths import MODEL, capture_name, spellings
from proxy.routing.table import Table
from proxy.snapshot import Snapshot

CREDENTIAL = "HEADRACE_CONFORM_CREDENTIAL"  # the variable that holds what upstreams are shown
# What is written is billed; a sum that is not zero shows that something was.
PRICE = {
    "call": "0.001 USD", "input": "1 USD", "output": "2 USD", "cache_read": "0.1 USD", "image": "0.04 USD",
    "second": "0.001 USD",
}  # fmt: skip
BOUNDARY = "headrace-conform"
_SILENCE = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80>\0\0\0}\0\0\2\0\x10\0data\0\0\0\0"
_CUT_OUT = re.compile(r"<[^/>]*>")  # what a recording's maker took out of its path
_KEYS = ("authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie", "x-amz-security-token")
_OF_THE_HOP = ("host", "connection", "content-length", "transfer-encoding", "accept-encoding", "expect")
_HANDSHAKE = ("upgrade", "sec-websocket-")


class UnknownHere(Exception):
    """A station has no route for a recording, and its protocol names none of our operations."""


class AnsweredHere(Exception):
    """The station answers such a request itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a station takes a request in, and where its vendor did. Paths are canonical."""

    path: str
    theirs: str
    dialect: str
    operation: OperationSpec
    captures: Mapping[str, str] = field(default_factory=dict)
    pattern: str = ""  # of the route; "": one has to be declared


@dataclass(frozen=True, slots=True)
class Replay:
    """One recording as a call."""

    recording: Recording
    place: Place
    model: str  # by which the station knows it
    upstream: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    ids: Mapping[str, str]  # what it names that lives at the vendor
    key_in: tuple[str, str]  # ("header", name) | ("query", name)

    @property
    def theirs(self) -> str:
        """The path on which the vendor is to be asked."""
        known, model = self.place.captures.get(MODEL), self.recording.model or self.model
        return _renamed(self.place.theirs, known, model) if known else self.place.theirs

    def starts_task(self) -> bool:
        """Its bill would come later, from a poll."""
        task = self.place.operation.task
        return task is not None and not task.asked and self.place.operation.billed


@dataclass(slots=True)
class Plan:
    """`unknown` and `answered_here` are told with a reason, never left out."""

    document: dict[str, Any]
    replays: list[Replay] = field(default_factory=list)
    unknown: list[tuple[Recording, str]] = field(default_factory=list)
    answered_here: list[Recording] = field(default_factory=list)


def station(**sections: Any) -> dict[str, Any]:
    """A routes.yaml as JSON, which is YAML."""
    return {
        "station": {"currency": "USD", "default_tier": "Conform"},
        "endpoints": {"direct": {"url": "http://127.0.0.1:1"}},
        "upstreams": {},
        "models": {},
        "routes": [],
        "tasks": {},
        "prices": {},
        "tiers": {"Conform": {"rank": 0, "models": ["*"], "limits": {"concurrency": 1000}}},
        **sections,
    }


def compiled(document: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The table's document of such a file. Raises ConfigError."""
    text = orjson.dumps(document).decode()
    return compiler.load(text, "conform.yaml", environ, lambda _: "").document


@cache
def _everything() -> tuple[Snapshot, list[dict[str, Any]]]:
    """A station that speaks all dialects and has all families of tasks, and which paths its file has to
    declare."""
    mirrors = {"direct": {"url": "http://127.0.0.1:1"}}
    families = compiler.builtin_families()
    upstreams = {
        name: {"dialect": name, "mirrors": mirrors, "credentials": {"main": f"${{env:{CREDENTIAL}}}"}}
        for name in (*DIALECTS, *families)
    }
    environ = {CREDENTIAL: "id:secret"}
    tasks = {name: {"upstream": name} for name in families}
    builtin = Snapshot.from_document(compiled(station(upstreams=upstreams, tasks=tasks), environ))
    known = {(route.dialect, route.operation) for route in builtin.table.routes}
    declared = {
        path: {"path": path, "operation": operation.name, "dialect": dialect.name}
        for dialect in DIALECTS.values()
        for operation in dialect.operations.values()
        if (dialect.name, operation.name) not in known
        if "{model}" in (path := dialect.paths[operation.name].replace("{operation_path}", operation.path))
    }
    models = {"*": {"candidates": [{"upstream": name} for name in DIALECTS]}}
    routes = [*declared.values()]
    document = station(upstreams=upstreams, tasks=tasks, models=models, prices={"*": PRICE}, routes=routes)
    return Snapshot.from_document(compiled(document, environ)), routes


def dialects() -> Mapping[str, Dialect]:
    """Those of this build, and the built-in families of tasks."""
    return _everything()[0].dialects


def plan(recordings: Iterable[Recording], url: str, socket_url: str) -> Plan:
    """`url`: where the vendors' part is played; `socket_url`: that of sessions."""
    snapshot, declared = _everything()
    made = Plan(station(routes=[*declared]))
    for number, recording in enumerate(recordings):
        try:
            place = find(snapshot.table, recording)
            _add(made, recording, place, number, socket_url if place.operation.session else url)
        except AnsweredHere:
            made.answered_here.append(recording)
        except (UnknownHere, ProxyError) as e:
            made.unknown.append((recording, str(e) or type(e).__name__))
    made.replays.sort(key=Replay.starts_task)  # a poll of theirs meets nobody else's turn
    return made


def _add(made: Plan, recording: Recording, place: Place, number: int, url: str) -> None:
    operation, name = place.operation, f"u{number}"
    replay = _replay(recording, place, name, f"r{number}")
    made.replays.append(replay)
    document = made.document
    document["upstreams"][name] = _upstream(replay, url)
    if place.dialect not in DIALECTS:
        family = document["tasks"].setdefault(place.dialect, {"candidates": [], "prices": {"*": PRICE}})
        family["candidates"].append({"upstream": name})
        return
    theirs = {"as": recording.model} if recording.model else {}
    document["models"][replay.model] = {"candidates": [{"upstream": name, **theirs}]}
    asked = orjson.loads(replay.body) if replay.body[:1] == b"{" else {}
    price = {**PRICE, "tools": dict.fromkeys(tool_kinds(asked), "0.01 USD")}
    document["prices"][replay.model] = price
    if operation.model_at == "none":
        document["prices"][operation.name] = PRICE
    if not place.pattern or (operation.model_at == "none" and not replay.ids):
        path = place.pattern or place.path
        route: dict[str, Any] = {"path": path, "operation": operation.name, "dialect": place.dialect}
        if operation.model_at == "none":
            route["candidates"] = [{"upstream": name}]
        if path not in {known["path"] for known in document["routes"]}:
            document["routes"].append({**route, "methods": list(operation.methods)})


# -- where it belongs ------------------------------------------------------------------------------


def find(table: Table, recording: Recording) -> Place:
    """Raises UnknownHere, AnsweredHere, MalformedRequest."""
    if ":" in recording.protocol:
        dialect, name = recording.protocol.split(":")
        return _of_operation(table, dialect, name, re.sub(r"\W", "-", recording.name))
    path, _ = canonical(_CUT_OUT.sub("redacted", recording.target))
    if recording.method == "GET" and not OWN_PATHS.isdisjoint(spellings(path)):
        raise AnsweredHere
    named = _named(recording)
    offered = _offered(preset_at(recording.host))
    # A gateway's prefix is left away where the rest is a path of ours.
    for at in [at for at, character in enumerate(path) if character == "/"]:
        try:
            match = table.match(recording.method, path[at:])
        except ProxyError:
            continue
        operation = dialects()[match.route.dialect].operations[match.route.operation]
        if operation.lists is not None or operation.api == "models":
            raise AnsweredHere
        if named and named[1] in offered and operation.name not in offered:
            break  # one path, two vendors: this one means something else by it
        return Place(path[at:], path, match.route.dialect, operation, match.captures, match.route.path)
    if named is None:
        raise UnknownHere(f"no route has {recording.method} {path}")
    return replace(_of_operation(table, *named), theirs=path)


def _named(recording: Recording) -> tuple[str, str] | None:
    """Dialect and operation that the recording's protocol names, where its model is in the body."""
    dialect, _, name = recording.protocol.rpartition(".")
    known = DIALECTS.get(dialect or "openai")
    operation = known and (known.operations.get(name) or known.operations.get(recording.protocol))
    if not known or not operation or recording.method not in operation.methods:
        return None
    return None if operation.model_at == "path" else (known.name, operation.name)


def _of_operation(table: Table, dialect: str, name: str, thing: str = "") -> Place:
    """Where a station has it; `thing` stands for whatever its path names."""
    operation = dialects()[dialect].operations[name]
    for route in table.routes:
        if (route.dialect, route.operation) == (dialect, name):
            names = {c for segment in route.path.split("/") if (c := capture_name(segment))}
            path = re.sub(r"\{[a-z0-9_]+\}", thing, route.path)
            return Place(path, path, dialect, operation, dict.fromkeys(names, thing), route.path)
    if not operation.path and not operation.billed:
        raise UnknownHere(f"{name} is part of other calls")
    path = f"/golden/{dialect}/{name}"
    return Place(path, path, dialect, operation)


# -- the call --------------------------------------------------------------------------------------


def _replay(recording: Recording, place: Place, upstream: str, model: str) -> Replay:
    operation, known = place.operation, place.captures.get(MODEL)
    path = _renamed(place.path, known, model) if known else place.path
    query = dict(parse_qsl(recording.target.partition("?")[2], keep_blank_values=True))
    headers = {
        name: value
        for name, value in recording.request_headers.items()
        if name not in (*_KEYS, *_OF_THE_HOP) and not name.startswith(_HANDSHAKE)
    }
    key_in = ("header", dialects()[place.dialect].auth[0].decode() or "authorization")
    if query.pop("key", None) is not None:
        key_in = ("query", "key")
    if operation.session is not None and operation.session.model_in_query:
        query = {**{n: v for n, v in query.items() if n not in operation.session.model_in_query}}
        query[operation.session.model_in_query[0]] = model
    doc, body = _asked(recording, operation, None if known else model, headers)
    ids = Places(operation.ids_in).ids_named(doc, place.captures, query)
    target = f"{path}?{urlencode(query)}" if query else path
    return Replay(recording, place, model, upstream, target, headers, body, ids, key_in)


def _renamed(path: str, old: str, new: str) -> str:
    """The path with our name for the model; a verb behind it stays."""
    segments = []
    for segment in path.split("/"):
        name, colon, verb = unquote(segment).rpartition(":")
        if unquote(segment) == old:
            segment = new
        elif colon and name == old:
            segment = f"{new}:{verb}"
        segments.append(segment)
    return "/".join(segments)


def _asked(
    recording: Recording, operation: OperationSpec, model: str | None, headers: dict[str, str]
) -> tuple[dict[str, Any], bytes]:
    """What the recording's client asked, with our name for the model; what was cut away is made up.

    Sets the content type in `headers`.
    """
    if operation.request in ("none", "socket"):
        headers.pop("content-type", None)
        return {}, b""
    kind = headers.get("content-type", "application/json")
    if operation.request == "form" and not kind.startswith("application/json"):
        headers["content-type"] = f"multipart/form-data; boundary={BOUNDARY}"
        return {}, _form(recording, model)
    if operation.request == "opaque":
        headers["content-type"] = kind
        return {}, recording.request_body or b"x"
    headers["content-type"] = "application/json"
    try:
        doc = dict(orjson.loads(recording.request_body))
    except (ValueError, TypeError):
        doc = {"max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}], "input": "Hi"}
        doc |= {"prompt": "Hi"} | ({"stream": True} if recording.is_stream and operation.streams else {})
    if operation.task is not None and operation.task.asked:
        doc.pop(operation.task.asked, None)  # a bill that comes later has tests of its own
    if model is not None:
        doc["model"] = model
    if operation.include_usage and recording.is_stream and _tells_usage_apart(recording.body):
        doc.setdefault("stream_options", {"include_usage": True})  # its client must have asked for that event
    return doc, orjson.dumps(doc)


def _tells_usage_apart(stream: bytes) -> bool:
    return b'"usage"' in stream and re.search(rb'"choices":\s*\[\]', stream) is not None


def _form(recording: Recording, model: str | None) -> bytes:
    fields = {"model": model or "", "purpose": "batch", "prompt": "Hi"}
    if recording.is_stream:
        fields["stream"] = "true"
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    text = "".join(part % (name, "") + f"{value}\r\n" for name, value in fields.items())
    head = part % ("file", '; filename="audio.wav"')
    return f"{text}{head}".encode() + _SILENCE + f"\r\n--{BOUNDARY}--\r\n".encode()


# -- its upstream ----------------------------------------------------------------------------------

_PRESETS_AT = {urlsplit(preset.url).netloc: name for name, preset in PRESETS.items()}


def preset_at(host: str) -> str:
    """The preset of the vendor that is reached there, or ""."""
    return _PRESETS_AT.get(host.replace("localhost", "127.0.0.1"), "")


def _offered(preset: str) -> Collection[str]:
    if not preset:
        return ()
    offered = PRESETS[preset].operations
    return DIALECTS[PRESETS[preset].dialect].operations if offered is None else offered


def _upstream(replay: Replay, url: str) -> dict[str, Any]:
    """A preset where there is one that offers this: it must find the path by itself."""
    place, operation = replay.place, replay.place.operation
    preset = preset_at(replay.recording.host)
    rest = {"credentials": {"main": f"${{env:{CREDENTIAL}}}"}}
    if operation.name in _offered(preset):
        return {"preset": preset, "mirrors": {"direct": {"url": url}}, **rest}
    model = replay.recording.model or replay.model
    own = _own_path(place, model)
    if replay.theirs.endswith(own):
        base = replay.theirs.removesuffix(own)
        return {"dialect": place.dialect, "mirrors": {"direct": {"url": url + base}}, **rest}
    path = "/".join(
        s.replace(model, "{model}") if s.split(":")[0] == model else s for s in replay.theirs.split("/")
    )
    operations: dict[str, dict[str, str]] = {operation.name: {"path": path}}
    if operation.session is not None and operation.session.transcript:
        operations[operation.session.transcript] = {}
    mirrors = {"direct": {"url": url}}
    return {"dialect": place.dialect, "mirrors": mirrors, "operations": operations, **rest}


def _own_path(place: Place, model: str) -> str:
    """The path that the dialect has for the operation."""
    if place.dialect not in DIALECTS:
        return place.path
    template = DIALECTS[place.dialect].paths[place.operation.name]
    captures = {**place.captures, MODEL: model, "operation_path": place.operation.path, "path": place.path}
    for _ in range(2):  # operation_path has captures of its own
        template = re.sub(r"\{([a-z0-9_]+)\}", lambda found: _filled(found, captures), template)
    return template


def _filled(found: re.Match[str], captures: Mapping[str, str]) -> str:
    name = found[1]
    value = captures.get(name, "")
    return value if name in ("operation_path", "path") else quote(value, safe=":@")


def with_key(replay: Replay, key: str) -> tuple[str, dict[str, str]]:
    """Target and headers with a caller's key where the recording's client had its own."""
    where, name = replay.key_in
    if where == "query":
        joint = "&" if "?" in replay.target else "?"
        return f"{replay.target}{joint}{name}={key}", dict(replay.headers)
    prefix = "Bearer " if name == "authorization" else ""
    return replay.target, {**replay.headers, name: f"{prefix}{key}"}
