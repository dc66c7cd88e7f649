"""Links of ours in answers: the same id for everybody, and not another byte changed."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.links import Home, Hosting, Linker, Shown, files_told, readdressed, relinked
from proxy.dialects.owned import FAILED, SUCCEEDED, Task
from proxy.metering.scanner import ANY

SONGS = Task(
    "suno",
    "fetch",
    state=(("data", "status"),),
    states={"SUCCESS": SUCCEEDED, "FAILURE": FAILED},
    files=(("data", "data", ANY, "audio_url"), ("data", "data", ANY, "image", "url")),
)
PICTURE = Task("mj", "fetch", state=(("status",),), states={"SUCCESS": SUCCEEDED}, files=(("imageUrl",),))
MANY = Shown(PICTURE, id_at=("id",))
HOME = Home("one", "main", "t-1")
ANSWER = (
    b'{ "code" : "success","data":\t{"status":"SUCCESS", "task_id":"t-1","note":"https://cdn.test/1.mp3",\n'
    b'"data":[{"title":"\\u00e9 \xe6\xad\x8c","audio_url":"https:\\/\\/cdn.test\\/1.mp3?sig=a&b","image":{}},'
    b' {"image":{"url":"https://cdn.test/2.png"},"audio_url":"","n":1.50}]}}\n'
)


def link(id_: str, place: str) -> str:
    return f"https://ours.test/{quote(id_)}/{place}"


def test_files_keep_their_places():
    assert files_told(SONGS, orjson.loads(ANSWER)) == {
        "0.0": "https://cdn.test/1.mp3?sig=a&b",
        "1.1": "https://cdn.test/2.png",
    }


def test_only_the_urls_at_the_pointers_change():
    assert relinked(ANSWER, Shown(SONGS), "t-1", link) == ANSWER.replace(
        b'"https:\\/\\/cdn.test\\/1.mp3?sig=a&b"', b'"https://ours.test/t-1/0.0"'
    ).replace(b'"https://cdn.test/2.png"', b'"https://ours.test/t-1/1.1"')


def test_a_task_may_be_wrapped():
    wrapped = replace(SONGS, object=("data",), state=(("status",),), files=(("data", ANY, "audio_url"),))
    changed = relinked(ANSWER, Shown(wrapped, ("data",)), "t-1", link)
    assert changed == ANSWER.replace(
        b'"https:\\/\\/cdn.test\\/1.mp3?sig=a&b"', b'"https://ours.test/t-1/0.0"'
    )


@pytest.mark.parametrize("status", ["IN_PROGRESS", "FAILURE", "", "success"])
def test_what_is_not_finished_stays_as_it_is(status):
    answer = ANSWER.replace(b'"SUCCESS"', json.dumps(status).encode())
    assert relinked(answer, Shown(SONGS), "t-1", link) == answer


def test_each_item_of_a_list_has_its_own_links():
    done = {"status": "SUCCESS", "imageUrl": "https://cdn.test/a.png"}
    items = [{"id": "a", **done}, {"id": 7, **done}, {"id": "c", **done, "status": "FAILURE"}, done, None]
    found = json.loads(relinked(orjson.dumps(items), MANY, "", link))
    assert [item and item.get("imageUrl") for item in found] == [
        "https://ours.test/a/0", "https://ours.test/7/0", *["https://cdn.test/a.png"] * 2, None,
    ]  # fmt: skip


def test_items_may_be_within_an_answer():
    content = b'{"data":{"items":[{"id":"a","status":"SUCCESS","imageUrl":"http://x/1"}]}}'
    shown = Shown(PICTURE, ("data", "items"), ("id",))
    assert json.loads(relinked(content, shown, "", link))["data"]["items"][0]["imageUrl"].endswith("/a/0")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"status":"SUCCESS"', b"null", b'"x"', b"[1,2]", b'{"status":1}',
     b'{"status":"SUCCESS","imageUrl":5}', b'{"status":"SUCCESS","imageUrl":"javascript:alert(1)"}'],
)  # fmt: skip
def test_what_is_no_such_answer_stays_as_it_is(content):
    assert relinked(content, Shown(PICTURE), "t", link) == content
    assert relinked(content, MANY, "t", link) == content


def test_files_may_stand_under_names():
    clips = replace(PICTURE, files=(("clips", ANY, "url"),))
    content = b'{"status":"SUCCESS","clips":{"b":{"url":"http://x/1"},"a":{},"c":{"url":"http://x/2"}}}'
    assert files_told(clips, orjson.loads(content)) == {"0.b": "http://x/1", "0.c": "http://x/2"}
    changed = orjson.loads(relinked(content, Shown(clips), "t", link))
    assert changed["clips"]["c"]["url"] == "https://ours.test/t/0.c"


def test_of_a_name_that_is_there_twice_the_last_counts():
    content = b'{"status":"SUCCESS","imageUrl":"http://x/1","imageUrl":"http://x/2"}'
    changed = relinked(content, Shown(PICTURE), "t", link)
    assert changed == content.replace(b"http://x/2", b"https://ours.test/t/0")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("https://cdn.test/x"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["data", "audio_url", "image", "url", "status", "0"]), inner, max_size=5
        )
    ),
    max_leaves=20,
)


@given(JSON, st.booleans(), st.sampled_from([None, 1, 4]))
def test_any_document_means_the_same_but_for_its_links(document, is_ascii, indent):
    document = {"data": {"status": "SUCCESS", "data": document, "rest": document}}
    content = json.dumps(document, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "surrogatepass")
    changed = relinked(content, Shown(SONGS), "t", link)
    told = files_told(SONGS, document)
    if not told:
        assert changed == content
        return
    back = changed
    for place, url in told.items():
        back = back.replace(json.dumps(link("t", place)).encode(), json.dumps(url).encode())
    assert back == content
    assert set(files_told(SONGS, json.loads(changed)).values()) == {link("t", place) for place in told}


def test_everybody_who_has_the_secret_makes_the_same_id():
    one, two, other = Linker(b"s" * 32), Linker(b"s" * 32), Linker(b"t" * 32)
    id_ = one.id_of(HOME, "0.0")
    assert id_ == two.id_of(HOME, "0.0") and len(id_) == 32
    assert one.is_ours(id_) and two.is_ours(id_) and not other.is_ours(id_)
    assert len({one.id_of(HOME._replace(vendor_id=v), p) for v in "abc" for p in ("0", "1")}) == 6


def test_files_of_a_task_by_id():
    linker = Linker(b"s" * 32)
    files = Hosting(linker, "").files(SONGS, HOME, orjson.loads(ANSWER))
    assert list(files) == [linker.id_of(HOME, "0.0"), linker.id_of(HOME, "1.1")]
    assert list(files.values())[1] == "https://cdn.test/2.png"


def test_a_document_that_is_no_text_any_more():
    linker = Linker(b"s" * 32)
    document = {"status": "SUCCESS", "imageUrl": "http://x/1"}
    shown = Hosting(linker, "https://ours.test").document(document, Shown(PICTURE), HOME)
    assert shown == {**document, "imageUrl": f"https://ours.test/results/{linker.id_of(HOME, '0')}"}
    assert Hosting(linker, "").document(document, Shown(PICTURE), HOME) is document


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i[:-1],
        lambda i: i + "A",
        lambda i: "A" * 32,
        lambda i: "../" + i[3:],
        lambda i: ("A" if i[0] != "A" else "B") + i[1:],
        lambda i: i[:31] + "\u00e9",
        lambda i: "",
    ],
)
def test_a_made_up_id_is_known_for_what_it_is(change):
    linker = Linker(b"s" * 32)
    assert not linker.is_ours(change(linker.id_of(HOME, "0")))


def test_addresses_of_the_vendors_api_are_exchanged_and_nothing_else():
    content = b'{"a":  "https://v.example/x", "urls": {"get": "https://v.example/y?z=1"}, "b": "/y" }'
    places = (("a",), ("urls", "get"), ("urls", "none"))
    changed = readdressed(content, places, lambda url: "https://ours/y?z=1" if "y" in url else None)
    assert changed == content.replace(b"https://v.example/y?z=1", b"https://ours/y?z=1")
    for odd in (b"", b"[1", b"5", b'{"a": 5}', b"\xff"):
        assert readdressed(odd, places, lambda url: "x") == odd
