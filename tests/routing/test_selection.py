"""In which order places are tried; health and dice come from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.selection import (
    RESTING,
    Wish,
    affinity,
    by_affinity,
    by_preference,
    by_weight,
    order,
    preference,
    unranked,
)
from proxy.routing.table import Candidate, Credential, Mirror
from tests.routing.compiling import table

FILE = """\
upstreams:
  openai:
    dialect: openai
    mirrors:
      direct: {url: "https://direct.example"}
      cdn: {url: "https://cdn.example", proxy_read_timeout: 100s}
      hk: {url: "https://hk.example"}
    credentials: {main: "${env:A}", spare: "${env:B}", old: {secret: "${env:C}", retired: true}}
  azure:
    dialect: azure
    mirrors: {direct: {url: "https://azure.example"}}
    credentials: {main: "${env:A}"}
  off:
    dialect: openai
    mirrors: {direct: {url: "https://off.example"}}
    credentials: {main: "${env:NOT_SET?}"}
models:
  gpt-4o-mini:
    candidates:
      - {upstream: off}
      - {upstream: openai, priority: 2}
      - {upstream: azure, as: mini, priority: 1}
"""
TABLE = table(FILE, {"A": "a", "B": "b", "C": "c"})
CANDIDATES = TABLE.models["gpt-4o-mini"].candidates
ANY = Wish("gpt-4o-mini", is_stream=True)
ROLLS = st.floats(0, 1, exclude_max=True)
FIRST, SECOND = (c.name for c in by_affinity(TABLE.upstreams["openai"].credentials, 0.5))


def tried(wish: Wish = ANY, cooling=lambda *_: False, rank=unranked) -> list[str]:
    choices = order(CANDIDATES, TABLE.upstreams, wish, cooling, 0.5, rank)
    return [f"{c.upstream.name}.{c.mirror.name}.{c.credential.name}:{c.model}" for c in choices]


def test_priority_then_credential_then_mirror_and_never_what_is_off_or_retired():
    assert tried() == [
        "azure.direct.main:mini",
        *(
            f"openai.{mirror}.{credential}:gpt-4o-mini"
            for credential in (FIRST, SECOND)
            for mirror in ("direct", "cdn", "hk")
        ),
    ]


def test_a_cooling_credential_is_left_out_for_its_model_there_only():
    def cooling(upstream: str, credential: str, model: str) -> bool:
        return (upstream, credential, model) in {("azure", "main", "mini"), ("openai", "main", "gpt-4o-mini")}

    assert {place.rsplit(".", 1)[1] for place in tried(cooling=cooling)} == {"spare:gpt-4o-mini"}
    assert tried(cooling=lambda *_: True) == []


def mirrors(wish: Wish) -> list[str]:
    return [place.split(".")[1] for place in tried(wish) if place.startswith("openai") and "main" in place]


def test_auto_avoids_a_mirror_that_gives_up_early_for_whole_answers():
    assert mirrors(Wish("m", is_stream=True)) == ["direct", "cdn", "hk"]
    assert mirrors(Wish("m", is_stream=False)) == ["direct", "hk", "cdn"]


def test_a_pinned_mirror_is_the_only_one_that_is_tried():
    assert mirrors(Wish("m", is_stream=False, mirror="cdn")) == ["cdn"]
    assert mirrors(Wish("m", is_stream=True, mirror=("hk", "nowhere", "cdn"))) == ["hk", "cdn"]


def test_auto_behind_names_allows_the_others_too():
    assert mirrors(Wish("m", is_stream=True, mirror=("hk", "auto"))) == ["hk", "direct", "cdn"]
    assert mirrors(Wish("m", is_stream=False, mirror=("hk", "auto"))) == ["hk", "direct", "cdn"]
    assert mirrors(Wish("m", is_stream=False, mirror=("direct", "auto"))) == ["direct", "hk", "cdn"]


def test_a_preference_for_mirrors_that_an_upstream_does_not_have_is_none():
    assert mirrors(Wish("m", is_stream=True, mirror="nowhere")) == ["direct", "cdn", "hk"]
    assert tried(Wish("m", is_stream=True, mirror="hk"))[0].startswith("azure.direct")


def ranked(**ranks: int) -> Callable[[Mirror, bool], int]:
    return lambda mirror, is_stream: ranks.get(mirror.name, 0)


def test_auto_follows_what_was_measured_and_whole_answers_still_avoid_short_timeouts():
    measured = ranked(direct=9, cdn=2, hk=5)
    places = TABLE.upstreams["openai"].mirrors
    assert [m.name for m in by_preference(places, ANY, measured)] == ["cdn", "hk", "direct"]
    whole = Wish("m", is_stream=False)
    assert [m.name for m in by_preference(places, whole, measured)] == ["hk", "direct", "cdn"]


def test_a_mirror_that_rests_comes_behind_everything_but_is_still_tried():
    assert tried(rank=ranked(direct=RESTING))[-3:] == [
        "azure.direct.main:mini",
        f"openai.direct.{FIRST}:gpt-4o-mini",
        f"openai.direct.{SECOND}:gpt-4o-mini",
    ]
    pinned = Wish("gpt-4o-mini", is_stream=True, mirror="hk")
    assert [place.split(".")[1] for place in tried(pinned, rank=ranked(hk=RESTING))] == ["direct", "hk", "hk"]


@pytest.mark.parametrize("names", [[], ["auto", "hk"], ["hk", "hk"], ["no name"], ["a"] * 17, [""]])
def test_no_preference_is(names):
    with pytest.raises(ValueError, match=r"auto|name"):
        preference(names)


def test_preferences_in_their_shortest_form():
    assert preference(["auto"]) == "auto"
    assert preference(["hk"]) == "hk"
    assert preference(["hk", "auto"]) == ("hk", "auto")


def test_calls_with_the_same_beginning_share_a_roll_and_so_the_credential():
    prompt = b"x" * 5000
    assert affinity(7, prompt + b"turn 1") == affinity(7, prompt + b"turn 1, turn 2")
    assert affinity(7, prompt) != affinity(8, prompt)
    assert affinity(7, b"y" + prompt) != affinity(7, prompt)
    assert affinity(7, b"short") is None


POOL = tuple(Credential(name, name) for name in ("a", "b", "c"))


def test_credentials_of_a_pool_get_equal_shares():
    first = Counter(by_affinity(POOL, affinity(i, b"z" * 4096) or 0.0)[0].name for i in range(3000))
    assert all(900 < first[name] < 1100 for name in "abc")


@given(ROLLS)
def test_a_credential_that_is_gone_moves_nobody_elses_calls(roll):
    before = by_affinity(POOL, roll)
    for gone in POOL:
        left = tuple(c for c in POOL if c is not gone)
        assert by_affinity(left, roll) == [c for c in before if c is not gone]


WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(WEIGHTS, ROLLS)
def test_weights_shuffle_and_lose_nobody(weights, roll):
    candidates = [Candidate(str(i), weight=w) for i, w in enumerate(weights)]
    assert sorted(by_weight(candidates, roll), key=lambda c: int(c.upstream)) == candidates


def test_every_place_falls_to_a_candidate_in_proportion_to_its_weight():
    candidates = [Candidate("a", weight=3), Candidate("b", weight=1), Candidate("c", weight=1)]
    rolls = 20_000
    orders = [tuple(c.upstream for c in by_weight(candidates, i / rolls)) for i in range(rolls)]
    first = Counter(o[0] for o in orders)
    after_a = Counter(o[1] for o in orders if o[0] == "a")
    assert [round(first[u] / rolls, 2) for u in "abc"] == [0.6, 0.2, 0.2]
    assert [round(after_a[u] / first["a"], 2) for u in "bc"] == [0.5, 0.5]
