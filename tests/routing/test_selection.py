"""In which order places are tried; health and dice come from outside."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.selection import Wish, by_weight, order
from proxy.routing.table import Candidate
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


def tried(wish: Wish = ANY, cooling=lambda *_: False) -> list[str]:
    choices = order(CANDIDATES, TABLE.upstreams, wish, cooling, 0.5)
    return [f"{c.upstream.name}.{c.mirror.name}.{c.credential.name}:{c.model}" for c in choices]


def test_priority_then_credential_then_mirror_and_never_what_is_off_or_retired():
    assert tried() == [
        "azure.direct.main:mini",
        "openai.direct.main:gpt-4o-mini",
        "openai.cdn.main:gpt-4o-mini",
        "openai.hk.main:gpt-4o-mini",
        "openai.direct.spare:gpt-4o-mini",
        "openai.cdn.spare:gpt-4o-mini",
        "openai.hk.spare:gpt-4o-mini",
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


def test_a_keys_mirrors_come_first_in_its_order_then_the_others():
    assert mirrors(Wish("m", is_stream=False, mirror="cdn")) == ["cdn", "direct", "hk"]
    assert mirrors(Wish("m", is_stream=True, mirror=("hk", "nowhere", "cdn"))) == ["hk", "cdn", "direct"]


WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
ROLLS = st.floats(0, 1, exclude_max=True)


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
