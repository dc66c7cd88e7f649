"""Where customers want to be told of their tasks, and where vendors may tell us.

Owns what a submit's hook becomes (it never goes upstream), the tokens in the URLs that vendors are given
instead, and how often one of them is listened to. A callback is a hint and nothing else: what it says is
not read, the vendor is asked. Whoever makes one up changes nothing.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson

from proxy.dialects.owned import Callback
from proxy.errors import DuplicateMember, Overloaded, ParameterRefused, StationFault, UnknownPath
from proxy.metering.members import Span, read_members, remove_member, splice, top_level
from proxy.relay.exchange import Exchange
from proxy.routing.callbacks import PREFIX
from proxy.routing.foreign import checked

ID_BYTES, PROOF_BYTES = 16, 17  # a call's id and what only we can make of it: 44 characters
AGAIN_MS = 1000  # more often than this, one task is not asked about for a hint
HINTS_PER_SECOND = 500  # of one worker
SECOND_MS = 1000
CHALLENGE_CHARS_MAX = 512

Tell = Callable[[str, dict[str, Any]], bool]  # False: nobody heard it


class Hooks:
    """Of one worker. `tell` speaks to control; it is given the station's secret by control."""

    def __init__(self, tell: Tell, now_ms: Callable[[], int]) -> None:
        self._tell = tell
        self._now_ms = now_ms
        self._secret = b""
        self._heard: dict[str, int] = {}  # call -> when; of the last moments, the eldest first

    def know(self, secret: bytes) -> None:
        """The station's, the same at every node."""
        self._secret = secret

    # -- what customers ask for --

    @staticmethod
    def note(x: Exchange, callback: Callback) -> None:
        """Fill in `x.hook` of a submit that names one. Raises ParameterRefused for a URL that nobody should
        call, DuplicateMember for several."""
        assert x.snapshot is not None
        for name, value, _, _ in (*_written(x, callback), *_in_query(x, callback)):
            try:
                if not isinstance(value, str):
                    raise ValueError("it is not a text")
                checked(value, x.snapshot.table.callbacks.allow)
            except ValueError as e:
                raise ParameterRefused(f"'{name}' cannot be called: {e}.", param=name) from e
            if x.hook:
                raise DuplicateMember(param=name)
            x.hook = value

    def replace(self, x: Exchange, callback: Callback) -> None:
        """Cut a hook that was noted out of its submit, or put ours in its place."""
        assert x.operation is not None
        for name, _, value, member in list(_written(x, callback)):  # none, or one
            if x.upload is not None:
                x.upload.dropped += (name,)
                return
            ours = self._ours(x)
            x.content = (
                splice(x.content, value, orjson.dumps(ours)) if ours else remove_member(x.content, member)
            )
            x.coded = b""
            x.spans = read_members(x.content, x.operation.guarded).spans

    def _ours(self, x: Exchange) -> str:
        """Where the vendor may call for this submit; "": nowhere."""
        assert x.snapshot is not None
        url = x.snapshot.table.callbacks.url
        return f"{url}{PREFIX}{self._token(bytes.fromhex(x.id))}" if url and self._secret else ""

    def _token(self, call: bytes) -> str:
        proof = hmac.digest(self._secret, b"callback\0" + call, "sha256")[:PROOF_BYTES]
        return urlsafe_b64encode(call + proof).decode()

    # -- what vendors tell --

    def hear(self, token: str) -> None:
        """Somebody called: the task is asked about soon.

        Raises UnknownPath for a token that is not ours, StationFault, Overloaded.
        """
        if not self._secret:
            raise StationFault(retry_after_s=2.0)
        try:
            call = urlsafe_b64decode(token.encode())[:ID_BYTES]
        except (Base64Error, ValueError) as e:
            raise UnknownPath from e
        if not hmac.compare_digest(self._token(call).encode(), token.encode()):
            raise UnknownPath
        if self._is_heard(call.hex(), self._now_ms()) and not self._tell("hint", {"call": call.hex()}):
            del self._heard[call.hex()]
            raise StationFault(retry_after_s=2.0)  # control is being restarted: vendors call again

    def _is_heard(self, call: str, now_ms: int) -> bool:
        """False: it was a moment ago. Raises Overloaded."""
        while self._heard:
            eldest = next(iter(self._heard))
            if self._heard[eldest] > now_ms - AGAIN_MS:
                break
            del self._heard[eldest]
        if call in self._heard:
            return False
        if len(self._heard) >= HINTS_PER_SECOND * AGAIN_MS // SECOND_MS:
            raise Overloaded(retry_after_s=1.0)
        self._heard[call] = now_ms
        return True


def challenge_in(body: bytes) -> str | None:
    """What a vendor wants to have back, to know that its callbacks are heard."""
    try:
        document = orjson.loads(body)
    except ValueError:
        return None
    challenge = document.get("challenge") if type(document) is dict else None
    return challenge if type(challenge) is str and len(challenge) <= CHALLENGE_CHARS_MAX else None


class Written(NamedTuple):
    """A member of a submit that names a hook."""

    name: str
    value: Any
    span: Span = (0, 0)  # of the value in a JSON body
    member: Span = (0, 0)


def _names(callback: Callback) -> frozenset[str]:
    """In any spelling: upstreams may be lenient about it (Go folds the case of letters)."""
    return frozenset(name.casefold() for name in callback.fields)


def _in_query(x: Exchange, callback: Callback) -> Iterator[Written]:
    """fal's: it does not go on to an upstream, as no parameter does that is not listed."""
    if x.query:
        names = _names(callback)
        yield from (Written(*pair) for pair in parse_qsl(x.query) if pair[0].casefold() in names)


def _written(x: Exchange, callback: Callback) -> Iterator[Written]:
    """Of the body. `null` and "" name none."""
    names = _names(callback)
    if names.isdisjoint(name.casefold() for name in x.doc):
        return
    if x.upload is not None:
        found = (Written(*field) for field in x.doc.items())
    else:
        found = (
            Written(name, orjson.loads(x.content[value_at:end]), (value_at, end), (start, end))
            for name, start, value_at, end in top_level(x.content)
            if name.casefold() in names
        )
    yield from (it for it in found if it.name.casefold() in names and it.value not in (None, ""))
