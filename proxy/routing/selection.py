"""The order in which a call tries candidates, mirrors and credentials.

Pure: cooldowns and the roll of the dice come in, a flat list comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from proxy.routing.table import Candidate, Credential, Mirror, Upstream

Cooling = Callable[[str, str, str], bool]  # (upstream, credential, model there)

SHORT_READ_TIMEOUT_MS = 300_000  # a whole answer may take longer than this: CDNs give up after 100 s


class Wish(NamedTuple):
    """What a call asks for; `mirror` is the key's preference."""

    model: str  # as the client named it; "" where there is none
    is_stream: bool
    mirror: str | tuple[str, ...] = "auto"  # auto | a name | names in order


class Choice(NamedTuple):
    """One place where a call may be tried."""

    upstream: Upstream
    mirror: Mirror
    credential: Credential
    model: str  # the model's name there


def by_weight(candidates: list[Candidate], roll: float) -> list[Candidate]:
    """A shuffle where each place falls to a candidate in proportion to its weight; 0 <= roll < 1.

    One roll decides all places: what is left of it after each place is stretched to [0, 1) again.
    """
    left = list(candidates)
    ordered = []
    while len(left) > 1:
        point = roll * sum(c.weight for c in left)
        for i, candidate in enumerate(left):
            if point < candidate.weight or i == len(left) - 1:
                roll = min(point / candidate.weight, 0.9999999)
                ordered.append(left.pop(i))
                break
            point -= candidate.weight
    return ordered + left


def by_preference(mirrors: tuple[Mirror, ...], wish: Wish) -> list[Mirror]:
    """The named mirrors first, as named; then the others as the file has them.

    `auto` puts mirrors with a short read timeout last for calls that are answered in one piece.
    """
    if len(mirrors) == 1:
        return list(mirrors)
    if wish.mirror == "auto":
        return sorted(mirrors, key=lambda mirror: not wish.is_stream and _is_short(mirror))
    named = [wish.mirror] if isinstance(wish.mirror, str) else wish.mirror
    return sorted(mirrors, key=lambda m: named.index(m.name) if m.name in named else len(named))


def _is_short(mirror: Mirror) -> bool:
    timeout_ms = mirror.proxy_read_timeout_ms
    return timeout_ms is not None and timeout_ms < SHORT_READ_TIMEOUT_MS


def order(
    candidates: Iterable[Candidate],
    upstreams: Mapping[str, Upstream],
    wish: Wish,
    cooling: Cooling,
    roll: float,
) -> list[Choice]:
    """Where to try this call, in order: by priority, within it by weight, then credentials, then mirrors.

    Mirrors vary first: a mirror that cannot be reached leaves the credential good. A credential that
    starts to cool while the list is walked is the walker's to skip. Empty: all upstreams are disabled
    or cooling. 0 <= roll < 1.
    """
    by_priority: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        if upstreams[candidate.upstream].enabled:
            by_priority.setdefault(candidate.priority, []).append(candidate)
    return [
        Choice(upstream, mirror, credential, model)
        for priority in sorted(by_priority)
        for candidate in by_weight(by_priority[priority], roll)
        for upstream in (upstreams[candidate.upstream],)
        for model in (candidate.as_model or wish.model,)
        for credential in upstream.credentials
        if not credential.retired and not cooling(upstream.name, credential.name, model)
        for mirror in by_preference(upstream.mirrors, wish)
    ]
