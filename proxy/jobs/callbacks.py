"""Tell customers what has become of their tasks: events of the outbox, signed, in order, until taken.

Owns when an event is tried and tried again, and what an answer means for it; that nobody else sends it
meanwhile is the outbox's (store.outbox), that it goes to no address that is not public the session's
(guarded.py). Runs in control. A control that dies between sending and noting it sends the same event again
when its claim has run out, under the same id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import random
from collections.abc import Callable, Iterable
from typing import Protocol

from proxy import telemetry
from proxy.jobs.guarded import UNREACHED, AddressRefused, GuardedSession, Reply
from proxy.journal.crashpoint import crash_point
from proxy.routing.foreign import Network
from proxy.store.outbox import DELIVERED, FAILED, PER_CLAIM, Event, Outbox, Secrets
from proxy.telemetry import Stats

log = logging.getLogger("headrace.callbacks")

TOTAL_S = 5.0
ANSWER_BYTES_MAX = 64 << 10  # a receiver that says more is not listened to
UNDER_WAY_MAX = 256
CLAIM_MS = 30_000  # longer than a try may take
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 900.0  # between tries: 5, 10, 20, ...
RETRY_AFTER_S_MAX = 3600.0
GONE_STATUS = 410  # Standard Webhooks: the receiver wants no more of it
FORGET_MS = 3_600_000
COUNT_MS = 15_000


class Session(Protocol):
    async def fetch(
        self, method: str, url: str, *, most_bytes: int, data: bytes, headers: dict[str, str]
    ) -> Reply: ...


class Deliverer:
    """One node's. `now_ms` is the wall clock: receivers hold it against theirs."""

    def __init__(self, outbox: Outbox, session: Session, now_ms: Callable[[], int], stats: Stats) -> None:
        self._outbox = outbox
        self._session = session
        self._now_ms = now_ms
        self._stats = stats
        self._under_way: set[Event] = set()
        self._forget_ms = 0  # when to look next
        self._count_ms = 0

    @property
    def is_idle(self) -> bool:
        return not self._under_way

    async def run_once(self) -> int:
        """Begin to send what is due; how many events that are. Raises DatabaseUnavailable."""
        now = self._now_ms()
        await self._tidy(now)
        begun = 0
        while len(self._under_way) < UNDER_WAY_MAX:
            events = await self._outbox.claim(self._under_way, now, now + CLAIM_MS)
            secrets = {
                account: await self._outbox.secrets(account) for account in {e.account for e in events}
            }
            for event in events:
                self._under_way.add(event)
                telemetry.spawn("callback", self._deliver(event, secrets[event.account]))
            begun += len(events)
            if len(events) < PER_CLAIM:
                break
        return begun

    async def _tidy(self, now_ms: int) -> None:
        if now_ms >= self._count_ms:
            self._count_ms = now_ms + COUNT_MS
            self._stats.set("callbacks_waiting", await self._outbox.waiting())
        if now_ms >= self._forget_ms:
            self._forget_ms = now_ms + FORGET_MS
            await self._outbox.forget(now_ms)

    async def _deliver(self, event: Event, secrets: Secrets) -> None:
        try:
            crash_point("callback-claimed")
            await self._conclude(event, *await self._send(event, secrets))
        except Exception:
            log.exception("a callback failed")  # its claim runs out
        finally:
            self._under_way.discard(event)

    async def _send(self, event: Event, secrets: Secrets) -> tuple[Reply | None, str]:
        """The receiver's answer, or why there is none."""
        now, body = self._now_ms(), event.body.encode()
        headers = {
            "Content-Type": "application/json",
            **signed(event.id, now // 1000, body, secrets.in_force(now)),
        }
        try:
            reply = await self._session.fetch(
                "POST", event.url, most_bytes=ANSWER_BYTES_MAX, data=body, headers=headers
            )
        except UNREACHED as e:
            return None, _why(e)
        finally:
            crash_point("callback-sent")
        return reply, "" if 200 <= reply.status < 300 else f"answered {reply.status}"

    async def _conclude(self, event: Event, reply: Reply | None, note: str) -> None:
        now, status = self._now_ms(), reply.status if reply is not None else 0
        at_ms = now + int(pause_s(event.tries, reply) * 1000 * random.uniform(0.9, 1.1))  # noqa: S311
        if not note:
            outcome = "delivered"
            await self._outbox.close(event, DELIVERED, now, status=status)
        elif status == GONE_STATUS or at_ms > event.until_ms:
            outcome = "given_up"
            log.warning("callback given up", extra={"event": event.id, "call": event.call, "why": note})
            await self._outbox.close(event, FAILED, now, status=status, note=note)
        else:
            outcome = "put_off"
            await self._outbox.put_off(event, at_ms, status=status, note=note)
        self._stats.inc("callbacks_total", outcome)


def guarded(allowed: Callable[[], Iterable[Network]]) -> GuardedSession:
    """The session that callbacks are sent with; make it within a running loop."""
    return GuardedSession(allowed, total_s=TOTAL_S)


def pause_s(tries: int, reply: Reply | None) -> float:
    """Until an event is tried again: at least as long as its receiver asks for."""
    asked = reply.headers.get("Retry-After", "") if reply is not None else ""
    asked_s = min(float(asked), RETRY_AFTER_S_MAX) if asked.isascii() and asked.isdigit() else 0.0
    return max(min(FIRST_PAUSE_S * 2 ** min(tries - 1, 30), LONGEST_PAUSE_S), asked_s)


def signed(event_id: str, at_s: int, body: bytes, secrets: Iterable[bytes]) -> dict[str, str]:
    """The header fields by which a receiver knows that we sent it, when, and whether it has it already.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md: the signed
    text is id.timestamp.body; while a secret is being changed there are two signatures.
    """
    id_ = f"evt_{event_id}"
    text = b"%b.%d.%b" % (id_.encode(), at_s, body)
    signatures = (base64.b64encode(hmac.digest(secret, text, hashlib.sha256)).decode() for secret in secrets)
    return {
        "webhook-id": id_,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _why(error: BaseException) -> str:
    """For its owner and the operator: not what the resolver or the system said about an address."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, AddressRefused):
        cause = cause.__cause__
    if cause is not None:
        return "not a public address"
    if isinstance(error, TimeoutError):
        return f"no answer within {TOTAL_S:.0f} s"
    return f"not a URL to send to: {error}" if type(error) is ValueError else type(error).__name__
