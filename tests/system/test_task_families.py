"""Every built-in family through a station: a task is its owner's, and is billed once at its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

import pytest
import requests

from tests.conftest import Databases
from tests.fakes.task_vendor import TaskVendor
from tests.station import Station
from tests.waiting import wait_for

MILLI = 1_000_000  # nanos
FAMILIES = sorted(
    file.name.removesuffix(".yaml")
    for file in (resources.files("proxy.routing") / "families").iterdir()
    if file.name.endswith(".yaml")
)
CONFIG = """
station: {currency: USD, default_tier: Test}
prices:
  "*": {call: 0.001 USD, image: 0.010 USD, second: 0.100 USD, output: 1 USD, input: 1 USD}
tiers:
  Test: {rank: 0, models: ["*"], limits: {concurrency: 100}}
tasks:
  FAMILIES
upstreams:
  UPSTREAMS
"""


class Row(NamedTuple):
    """One submit of a family, where its id and its word are told, its bill in thousandths of a dollar."""

    family: str
    path: str
    doc: dict[str, Any]
    id_at: str
    poll: str
    state_at: str
    ended: str
    model: str
    milli: int
    target: str = ""  # at the vendor, where it is another path


ROWS = [
    Row("midjourney", "/mj/submit/imagine", {"prompt": "x"}, "result", "/mj/task/{id}/fetch", "status",
        "SUCCESS", "mj_imagine", 1),
    Row("suno", "/suno/submit/music", {"prompt": "x"}, "data", "/suno/fetch/{id}", "data.status", "SUCCESS",
        "suno_music", 1),
    Row("suno-v3", "/suno/v1/music", {"input": {"prompt": "x"}}, "data.task_id", "/suno/v1/music/{id}",
        "data.status", "completed", "suno_music", 1),
    Row("luma", "/vip/luma/generations", {"user_prompt": "x"}, "id", "/vip/luma/generations/{id}", "state",
        "completed", "vip/luma-ray-v1", 1),
    Row("dream-machine", "/dream-machine/v1/generations", {"prompt": "x", "model": "ray-2"}, "id",
        "/dream-machine/v1/generations/{id}", "state", "completed", "ray-2-720p-5s", 1),
    Row("zhipu", "/cogvideox/v4/async/images/generations", {"model": "cogview-4", "prompt": "x"}, "id",
        "/cogvideox/v4/async-result/{id}", "task_status", "SUCCESS", "cogview-4", 1,
        "/api/paas/v4/async/images/generations"),
    Row("zhipu", "/api/paas/v4/async/chat/completions",
        {"model": "glm-4", "messages": [{"role": "user", "content": "x"}]}, "id",
        "/api/paas/v4/async-result/{id}", "task_status", "SUCCESS", "glm-4", 1),
    Row("avatar", "/avatar/generation", {"avatar_url": "https://x.test/1.png"}, "data", "/avatar/task/{id}",
        "data.status", "SUCCESS", "avatar", 1),
    Row("kling", "/kling/v1/videos/text2video", {"prompt": "x", "mode": "pro", "duration": "10"},
        "data.task_id", "/kling/v1/videos/text2video/{id}", "data.task_status", "succeed",
        "kling/videos/text2video/kling-v1-pro-10", 11, "/v1/videos/text2video"),
    Row("runway", "/runwayml/v1/text_to_video", {"promptText": "x", "model": "gen4_turbo"}, "id",
        "/runwayml/v1/tasks/{id}", "status", "SUCCEEDED", "runway/text_to_video/gen4_turbo-5", 1,
        "/v1/text_to_video"),
    Row("minimax", "/minimax/v1/video_generation", {"model": "MiniMax-Hailuo-02", "prompt": "x"}, "task_id",
        "/minimax/v1/query/video_generation?task_id={id}", "status", "Success",
        "MiniMax-Hailuo-02-768P-6", 1, "/v1/video_generation"),
    Row("jimeng", "/jimeng/submit/videos", {"prompt": "x"}, "data", "/jimeng/fetch/{id}", "data.status",
        "SUCCESS", "jimeng", 1),
    Row("volc", "/volc/v1/contents/generations/tasks",
        {"model": "doubao-seedance-1-0-lite", "content": [{"type": "text", "text": "x"}]}, "id",
        "/volc/v1/contents/generations/tasks/{id}", "status", "succeeded", "doubao-seedance-1-0-lite", 109,
        "/api/v3/contents/generations/tasks"),
    Row("sora", "/v1/videos", {"model": "sora-2", "prompt": "x", "seconds": "8"}, "id", "/v1/videos/{id}",
        "status", "completed", "sora-2", 801),
    Row("sora", "/v1/videos/generations", {"model": "grok-imagine-video", "prompt": "x", "duration": 6},
        "request_id", "/v1/videos/{id}", "status", "done", "grok-imagine-video", 601),
    Row("video", "/v1/video/generations", {"model": "veo-3", "prompt": "x", "duration": 8}, "task_id",
        "/v1/video/generations/{id}", "status", "succeeded", "veo-3", 801),
    Row("fal", "/fal-ai/flux-pro/kontext", {"prompt": "x", "num_images": 2}, "request_id",
        "/fal-ai/flux-pro/kontext/requests/{id}/status", "status", "COMPLETED",
        "fal-ai/flux-pro/kontext", 21),
    Row("replicate", "/replicate/v1/models/black-forest-labs/flux-dev/predictions",
        {"input": {"prompt": "x"}}, "id", "/replicate/v1/predictions/{id}", "status", "succeeded",
        "black-forest-labs/flux-dev", 1, "/v1/models/black-forest-labs/flux-dev/predictions"),
    Row("bfl", "/v1/flux-kontext-pro", {"prompt": "x"}, "id", "/v1/get_result?id={id}", "status", "Ready",
        "flux-kontext-pro", 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def vendor() -> Iterator[TaskVendor]:
    with TaskVendor() as vendor:
        yield vendor


@pytest.fixture(scope="module")
def station(
    vendor: TaskVendor, tmp_path_factory: pytest.TempPathFactory, databases: Databases
) -> Iterator[Station]:
    upstreams = (
        f'{name}: {{dialect: {name}, mirrors: {{direct: {{url: "{vendor.url}"}}}},'
        f' credentials: {{main: "${{env:KEY_OF_{name.upper().replace("-", "_")}}}"}}}}'
        for name in FAMILIES
    )
    config = CONFIG.replace("FAMILIES", "\n  ".join(f"{name}: {{upstream: {name}}}" for name in FAMILIES))
    config = config.replace("UPSTREAMS", "\n  ".join(upstreams))
    environ = {f"KEY_OF_{name.upper().replace('-', '_')}": f"sk-vendor-{name}" for name in FAMILIES}
    data = tmp_path_factory.mktemp("families") / "data"
    station = Station(data, config, databases.take(), environ=environ).start()
    yield station
    station.stop()


@pytest.fixture(scope="module")
def key(station: Station) -> str:
    return asyncio.run(station.customer("ada"))


@pytest.fixture(scope="module")
def strangers_key(station: Station) -> str:
    return asyncio.run(station.customer("ben"))


def at(answer: Any, place: str) -> Any:
    for name in place.split("."):
        answer = answer[int(name) if name.isdigit() else name]
    return answer


def ask(station: Station, key: str, method: str, path: str, **sent: Any) -> requests.Response:
    headers = {"authorization": f"Bearer {key}", **sent.pop("headers", {})}
    return requests.request(method, station.url + path, headers=headers, timeout=60, **sent)


def bill_of(station: Station, id_: str) -> dict[str, Any]:
    """The usage row of the call that started a task, once the hold is settled."""

    def settled() -> dict[str, Any] | None:
        sql = "SELECT usage.*, vendor_id FROM usage JOIN binding USING (id)"
        return next((row for row in asyncio.run(station.rows(sql)) if row["vendor_id"] == id_), None)

    return dict(wait_for(settled, "a bill"))


def test_every_family_is_tried() -> None:
    assert {row.family for row in ROWS} == set(FAMILIES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.family} {row.path}")
def test_a_task_is_its_owners_and_billed_once_at_its_end(
    station: Station, vendor: TaskVendor, key: str, strangers_key: str, row: Row
) -> None:
    answer = ask(station, key, "POST", row.path, json=row.doc)
    assert answer.status_code == 200, answer.text
    id_ = at(answer.json(), row.id_at)
    job, poll = vendor.job(id_), row.poll.format(id=id_)
    assert (job.target, job.body) == (row.target or row.path, row.doc)
    assert f"sk-vendor-{row.family}" in str(job.headers) and key not in str(job.headers)
    assert ask(station, key, "GET", poll).status_code == 200
    assert ask(station, strangers_key, "GET", poll).status_code == 404
    vendor.move(id_, "succeeded")
    shown = ask(station, key, "GET", poll)
    assert at(shown.json(), row.state_at) == row.ended
    bill = bill_of(station, id_)
    assert (bill["model"], bill["cost_nanos"] // MILLI) == (row.model, row.milli)


def test_a_form_is_a_submit_as_a_json_body_is(station: Station, vendor: TaskVendor, key: str) -> None:
    fields = {"model": (None, "sora-2"), "prompt": (None, "x"), "seconds": (None, "4")}
    answer = ask(
        station, key, "POST", "/v1/videos", files={**fields, "input_reference": ("a.png", b"png" * 9999)}
    )
    assert answer.status_code == 200, answer.text
    id_ = answer.json()["id"]
    vendor.move(id_, "succeeded")
    bill = bill_of(station, id_)
    assert (bill["model"], bill["cost_nanos"] // MILLI) == ("sora-2", 401)


# What names an earlier task: family, its row's path, then method, path, body, and the status for its owner.
FOLLOWERS = [
    ("luma", "POST", "/vip/luma/generations/{id}/extend", {"user_prompt": "more"}, 200),
    ("luma", "POST", "/vip/luma/tasks", {"ids": ["{id}"]}, 200),
    ("dream-machine", "GET", "/dream-machine/v1/generations/{id}", None, 200),
    ("kling", "POST", "/kling/v1/videos/video-extend", {"video_id": "{id}0", "prompt": "more"}, 200),
    ("kling", "POST", "/kling/v1/videos/lip-sync", {"input": {"video_id": "{id}0", "text": "hi"}}, 200),
    ("runway", "DELETE", "/runwayml/v1/tasks/{id}", None, 204),
    ("minimax", "GET", "/minimax/v1/files/retrieve?file_id={id}7", None, 200),
    ("sora", "GET", "/v1/videos/{id}/content", None, 200),
    ("sora", "POST", "/v1/videos/{id}/remix", {"prompt": "at night"}, 200),
    ("fal", "GET", "/fal-ai/flux-pro/kontext/requests/{id}", None, 200),
    ("replicate", "GET", "/replicate/v1/predictions/{id}", None, 200),
]


@pytest.mark.parametrize("follower", FOLLOWERS, ids=lambda follower: " ".join(follower[:3]))
def test_what_names_a_task_goes_where_it_is_and_is_refused_to_others(
    station: Station,
    vendor: TaskVendor,
    key: str,
    strangers_key: str,
    follower: tuple[str, str, str, dict[str, Any] | None, int],
) -> None:
    family, method, path, doc, status = follower
    row = next(row for row in ROWS if row.family == family)
    id_ = at(ask(station, key, "POST", row.path, json=row.doc).json(), row.id_at)
    vendor.move(id_, "succeeded")
    assert ask(station, key, "GET", row.poll.format(id=id_)).status_code == 200
    body = json.loads(json.dumps(doc).replace("{id}", id_)) if doc else None
    sent = {"json": body} if body else {}
    refused = ask(station, strangers_key, method, path.replace("{id}", id_), **sent)
    assert refused.status_code == 404 or refused.json() == []
    answer = ask(station, key, method, path.replace("{id}", id_), **sent)
    assert answer.status_code == status, answer.text


CANCELLERS = [
    ("runway", "DELETE", "/runwayml/v1/tasks/{id}"),
    ("replicate", "POST", "/replicate/v1/predictions/{id}/cancel"),
    ("fal", "PUT", "/fal-ai/flux-pro/kontext/requests/{id}/cancel"),
    ("volc", "DELETE", "/volc/v1/contents/generations/tasks/{id}"),
]


@pytest.mark.parametrize("canceller", CANCELLERS, ids=lambda canceller: canceller[0])
def test_a_cancelled_task_is_void(
    station: Station, vendor: TaskVendor, key: str, canceller: tuple[str, str, str]
) -> None:
    family, method, path = canceller
    row = next(row for row in ROWS if row.family == family)
    id_ = at(ask(station, key, "POST", row.path, json=row.doc).json(), row.id_at)
    assert ask(station, key, method, path.format(id=id_)).ok
    assert vendor.job(id_).state == "cancelled"
    wait_for(lambda: state_of(station, id_) == "void")


def state_of(station: Station, id_: str) -> str:
    """What has become of a task's hold."""
    rows = asyncio.run(station.rows("SELECT vendor_id, state FROM binding"))
    return next((str(row["state"]) for row in rows if row["vendor_id"] == id_), "")


def test_a_film_may_be_ordered_with_a_picture_in_a_form(
    station: Station, vendor: TaskVendor, key: str
) -> None:
    picture = b"\x89PNG" + bytes(100_000)
    form = {"model": "sora-2-pro", "prompt": "a cat", "seconds": "12"}
    files = {"input_reference": ("a.png", picture, "image/png")}
    answer = ask(station, key, "POST", "/v1/videos", data=form, files=files)
    assert answer.status_code == 200, answer.text
    job = vendor.job(answer.json()["id"])
    assert job.body == form | {
        "input_reference": {"filename": "a.png", "content_type": "image/png", "bytes": len(picture)}
    }
    vendor.move(job.id, "succeeded")
    assert ask(station, key, "GET", f"/v1/videos/{job.id}").json()["seconds"] == "12"
    bill = bill_of(station, job.id)
    assert (bill["model"], bill["cost_nanos"] // MILLI) == ("sora-2-pro", 1201)


LISTS = [
    ("midjourney", "/mj/task/list", ""),
    ("sora", "/v1/videos", "data"),
    ("replicate", "/replicate/v1/predictions", "results"),
    ("dream-machine", "/dream-machine/v1/generations", "generations"),
]


@pytest.mark.parametrize(("family", "path", "of"), LISTS)
def test_a_list_is_of_ones_own_tasks(
    station: Station, key: str, strangers_key: str, family: str, path: str, of: str
) -> None:
    mine = set()
    for row in ROWS:
        if row.family == family:
            id_ = at(ask(station, key, "POST", row.path, json=row.doc).json(), row.id_at)
            ask(station, key, "GET", row.poll.format(id=id_))
            mine.add(id_)

    def ids(whose: str) -> set[str]:
        answer = ask(station, whose, "GET", path).json()
        return {item["id"] for item in (answer[of] if of else answer)}

    assert mine <= ids(key)
    assert not mine & ids(strangers_key)


@pytest.mark.parametrize(("family", "places"), [
    ("fal", ["status_url", "response_url", "cancel_url"]),
    ("replicate", ["urls.get", "urls.cancel"]),
    ("bfl", ["polling_url"]),
])  # fmt: skip
def test_addresses_in_answers_lead_back_through_the_station(
    station: Station, vendor: TaskVendor, key: str, family: str, places: list[str]
) -> None:
    """Else clients that follow them would show their key to the vendor."""
    row = next(row for row in ROWS if row.family == family)
    once = {"Idempotency-Key": f"links-{family}"}
    answer = ask(station, key, "POST", row.path, json=row.doc, headers=once)
    told, id_ = answer.json(), at(answer.json(), row.id_at)
    again = ask(station, key, "POST", row.path, json=row.doc, headers=once)
    assert (again.json(), again.headers["idempotent-replayed"]) == (told, "true")
    assert vendor.url not in answer.text and int(answer.headers["content-length"]) == len(answer.content)
    for place in places:
        here, path, rest = at(told, place).partition(f"/{row.path.split('/')[1]}/")
        assert here == "http://127.0.0.1:8080", "the endpoint's own URL"
        if "cancel" not in place and "response" not in place:
            shown = ask(station, key, "GET", path + rest)
            assert shown.status_code == 200 and id_ in shown.text
            assert vendor.url not in shown.text.replace("/_demo/files", "")
