"""The order in which a call tries candidates, mirrors and credentials.

Pure: cooldowns, measured health and the roll of the dice come in, a flat list comes out. The same roll
gives the same order: calls that share a prompt share a roll (`affinity`), so that they meet the same
upstream and credential, where a vendor has the prompt in its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from proxy.routing import texts
from proxy.routing.table import Candidate, Credential, Mirror, Upstream

AUTO = "auto"
PREFERENCE_NAMES_MAX = 16
SHORT_READ_TIMEOUT_MS = 300_000  # a whole answer may take longer than this: CDNs give up after 100 s
# No vendor caches prompts of less than 1,024 tokens. So much of a request is the same in every turn of
# a conversation, and tells it from others.
PREFIX_BYTES = 4096
# Ranks that are not measured: a call should try it, another call is trying it, it must rest.
TRIAL, UNTRIED, RESTING = -1_000, 1_000, 1_001

Preference = str | tuple[str, ...]  # auto | a name | names in order, the last of them may be auto
Cooling = Callable[[str, str, str], bool]  # (upstream, credential, model there)
# (mirror, is it a stream) -> the lower, the better; None: not known, as good as the best that is known
Rank = Callable[[Mirror, bool], int | None]


def unranked(mirror: Mirror, is_stream: bool) -> None:
    """Nothing was measured: the order of the file."""


class Place(NamedTuple):
    """What may have to rest: a credential for one model or for all ("") of them, or a mirror."""

    upstream: str
    mirror: str = ""
    credential: str = ""
    model: str = ""

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Place:
        """Of a message between worker and control."""
        return cls(*(message.get(name, "") for name in cls._fields))


class Wish(NamedTuple):
    """What a call asks for; `mirror` is the caller's preference."""

    model: str  # as the client named it; "" where there is none
    is_stream: bool
    mirror: Preference = AUTO


class Choice(NamedTuple):
    """One place where a call may be tried."""

    upstream: Upstream
    mirror: Mirror
    credential: Credential
    model: str  # the model's name there

    @property
    def mirror_place(self) -> Place:
        return Place(self.upstream.name, self.mirror.name)

    @property
    def places(self) -> tuple[Place, Place, Place]:
        """All whose rest concerns it: its mirror, its credential, its credential with this model."""
        upstream, credential = self.upstream.name, self.credential.name
        return (
            self.mirror_place,
            Place(upstream, "", credential),
            Place(upstream, "", credential, self.model),
        )


def preference(names: Sequence[str]) -> Preference:
    """Names in the order to try, as somebody wrote them, in their shortest form. Raises ValueError."""
    if not 0 < len(names) <= PREFERENCE_NAMES_MAX or len(set(names)) != len(names):
        raise ValueError(f"auto, or up to {PREFERENCE_NAMES_MAX} names of mirrors, each once")
    if AUTO in names[:-1]:
        raise ValueError("auto stands for all other mirrors: it can only be the last")
    for name in names:
        texts.name(name)
    return names[0] if len(names) == 1 else tuple(names)


def affinity(account: int, content: bytes) -> float | None:
    """A roll, 0 <= roll < 1, that is the same for all calls of an account with the same beginning.

    None for a call that is too short for any vendor's prompt cache: nothing speaks against spreading it.
    """
    if len(content) < PREFIX_BYTES:
        return None
    digest = blake2b(content[:PREFIX_BYTES], digest_size=8, key=b"%d" % account).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)


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


def by_affinity(credentials: tuple[Credential, ...], roll: float) -> list[Credential]:
    """Those that take new calls, spread by the roll: highest random weight.

    A credential that must rest leaves the order of the others as it is: only its own calls move, and
    come back to it.
    """
    active = [c for c in credentials if not c.retired]
    if len(active) < 2:
        return active
    seed = roll.hex().encode()
    return sorted(active, key=lambda c: blake2b(c.name.encode(), digest_size=8, key=seed).digest())


def by_preference(mirrors: tuple[Mirror, ...], wish: Wish, rank: Rank = unranked) -> list[Mirror]:
    """Where an upstream may be asked, best first.

    `auto`: by measured health, and for calls that are answered in one piece mirrors with a short read
    timeout last. Names: these and no others, in this order; `auto` among them stands for all others. A
    preference of which an upstream has no mirror at all says nothing about it.
    """
    if len(mirrors) == 1:
        return list(mirrors)
    ranks = {mirror.name: rank(mirror, wish.is_stream) for mirror in mirrors}
    best = min((r for r in ranks.values() if r is not None and TRIAL < r < UNTRIED), default=0)

    def health(mirror: Mirror) -> tuple[bool, int]:
        known = ranks[mirror.name]
        return not wish.is_stream and _is_short(mirror), best if known is None else known

    named = (wish.mirror,) if isinstance(wish.mirror, str) else wish.mirror
    chosen = [mirror for name in named for mirror in mirrors if mirror.name == name]
    if not chosen:
        return sorted(mirrors, key=health)
    if AUTO in named:
        chosen += sorted((m for m in mirrors if m not in chosen), key=health)
    return chosen


def _is_short(mirror: Mirror) -> bool:
    timeout_ms = mirror.proxy_read_timeout_ms
    return timeout_ms is not None and timeout_ms < SHORT_READ_TIMEOUT_MS


def order(
    candidates: Iterable[Candidate],
    upstreams: Mapping[str, Upstream],
    wish: Wish,
    cooling: Cooling,
    roll: float,
    rank: Rank = unranked,
) -> list[Choice]:
    """Where to try this call, in order: by priority, within it by weight, then credentials, then mirrors.

    Mirrors vary first: a mirror that cannot be reached leaves the credential good. Mirrors that rest come
    behind everything else, but they are not left out: where nothing better is left, a try costs less
    than a refusal. A credential that starts to cool while the list is walked is the walker's to skip.
    Empty: all upstreams are disabled or cooling. 0 <= roll < 1.
    """
    by_priority: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        if upstreams[candidate.upstream].enabled:
            by_priority.setdefault(candidate.priority, []).append(candidate)
    choices = [
        Choice(upstream, mirror, credential, model)
        for priority in sorted(by_priority)
        for candidate in by_weight(by_priority[priority], roll)
        for upstream in (upstreams[candidate.upstream],)
        for model in (candidate.as_model or wish.model,)
        for mirrors in (by_preference(upstream.mirrors, wish, rank),)
        for credential in by_affinity(upstream.credentials, roll)
        if not cooling(upstream.name, credential.name, model)
        for mirror in mirrors
    ]
    return sorted(choices, key=lambda choice: rank(choice.mirror, wish.is_stream) == RESTING)
