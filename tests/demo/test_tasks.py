"""The families of tasks of the demo upstream do as their vendors: replies, states, refusals, hooks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.demo.app import make_app

from .conftest import KEY


class Vendor:
    """A demo whose jobs move only when they are told."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self._session = url, session

    async def ask(self, method: str, path: str, doc: Any = None, **options: Any) -> tuple[int, Any]:
        options.setdefault("headers", {"Authorization": f"Bearer {KEY}"})
        async with self._session.request(method, self.url + path, json=doc, **options) as answer:
            is_json = answer.content_type == "application/json"
            return answer.status, await answer.json() if is_json else await answer.read()

    async def post(self, path: str, doc: Any) -> Any:
        status, answer = await self.ask("POST", path, doc)
        assert status == 200, answer
        return answer

    async def get(self, path: str) -> Any:
        status, answer = await self.ask("GET", path)
        assert status == 200, answer
        return answer

    async def make(self, id_: str, **wish: Any) -> Any:
        """Moves a job."""
        return await self.post(f"/_demo/tasks/{id_}", wish)


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    server = TestServer(make_app(step_s=0), host="127.0.0.1")
    await server.start_server()
    async with aiohttp.ClientSession() as session:
        yield Vendor(str(server.make_url("")).rstrip("/"), session)
    await server.close()


# -- every family through its states ---------------------------------------------------------------


class Row(NamedTuple):
    """Where the id is in a submit's reply, how it is asked about, where its word is, and all of its words."""

    path: str
    doc: dict[str, Any]
    id_at: str
    poll: str
    state_at: str
    words: tuple[str, ...]  # at first, while it runs, at the end, when it failed
    result: str  # where the URL of a result is


WRAPPED = ("NOT_START", "IN_PROGRESS", "SUCCESS", "FAILURE")
ROWS = {
    "midjourney": Row("/mj/submit/imagine", {"prompt": "a cat"}, "result", "/mj/task/{id}/fetch", "status",
                      WRAPPED, "imageUrl"),
    "suno": Row("/suno/submit/music", {"prompt": "la", "mv": "chirp-v4"}, "data", "/suno/fetch/{id}",
                "data.status", WRAPPED, "data.data.0.audio_url"),
    "suno v3": Row("/suno/v1/v3.0/music", {"input": {"prompt": "la"}}, "data.task_id",
                   "/suno/v1/v3.0/music/{id}", "data.status",
                   ("pending", "processing", "completed", "failed"), ""),
    "luma": Row("/luma/generations", {"user_prompt": "x"}, "id", "/luma/generations/{id}", "state",
                ("pending", "processing", "completed", "failed"), "video.url"),
    "lumvip": Row("/lumvip/generations", {"user_prompt": "x"}, "id", "/lumvip/task/{id}", "state",
                  ("pending", "processing", "completed", "failed"), "video.download_url"),
    "luma's own": Row("/dream-machine/v1/generations", {"prompt": "x"}, "id",
                      "/dream-machine/v1/generations/{id}", "state",
                      ("queued", "dreaming", "completed", "failed"), "assets.video"),
    "zhipu": Row("/api/paas/v4/videos/generations", {"model": "cogvideox-2", "prompt": "x"}, "id",
                 "/api/paas/v4/async-result/{id}", "task_status",
                 ("PROCESSING", "PROCESSING", "SUCCESS", "FAIL"), "video_result.0.url"),
    "kling": Row("/kling/v1/videos/text2video", {"prompt": "x"}, "data.task_id",
                 "/kling/v1/videos/text2video/{id}", "data.task_status",
                 ("submitted", "processing", "succeed", "failed"), "data.task_result.videos.0.url"),
    "runway": Row("/runwayml/v1/image_to_video", {"promptImage": "https://x.test/1.png"}, "id",
                  "/runwayml/v1/tasks/{id}", "status", ("PENDING", "RUNNING", "SUCCEEDED", "FAILED"),
                  "output.0"),
    "minimax": Row("/minimax/v1/video_generation", {"prompt": "x"}, "task_id",
                   "/minimax/v1/query/video_generation?task_id={id}", "status",
                   ("Queueing", "Processing", "Success", "Fail"), ""),
    "jimeng": Row("/jimeng/submit/videos", {"prompt": "x"}, "data", "/jimeng/fetch/{id}", "data.status",
                  WRAPPED, "data.data.video_url"),
    "volc": Row("/volc/v1/contents/generations/tasks", {"content": [{"type": "text", "text": "x"}]}, "id",
                "/volc/v1/contents/generations/tasks/{id}", "status",
                ("queued", "running", "succeeded", "failed"), "content.video_url"),
    "sora": Row("/v1/videos", {"model": "sora-2", "prompt": "x"}, "id", "/v1/videos/{id}", "status",
                ("queued", "in_progress", "completed", "failed"), ""),
    "grok": Row("/v1/videos/generations", {"model": "grok-imagine-video", "prompt": "x"}, "request_id",
                "/v1/videos/{id}", "status", ("pending", "pending", "done", "failed"), "video.url"),
    "unified": Row("/v1/video/generations", {"model": "m", "prompt": "x"}, "task_id",
                   "/v1/video/generations/{id}", "status",
                   ("queued", "processing", "succeeded", "failed"), "url"),
    "avatar": Row("/avatar/generation", {"avatar_url": "https://x.test/1.png"}, "data", "/avatar/task/{id}",
                  "data.status", WRAPPED, "data.data.work_video_path"),
    "fal": Row("/fal-ai/flux-pro/kontext", {"prompt": "x"}, "request_id",
               "/fal-ai/flux-pro/requests/{id}/status", "status",
               ("IN_QUEUE", "IN_PROGRESS", "COMPLETED", "COMPLETED"), ""),
    "replicate": Row("/replicate/v1/models/black-forest-labs/flux-dev/predictions",
                     {"input": {"prompt": "x"}}, "id", "/replicate/v1/predictions/{id}", "status",
                     ("starting", "processing", "succeeded", "failed"), "output.0"),
    "bfl": Row("/v1/flux-kontext-pro", {"prompt": "x"}, "id", "/v1/get_result?id={id}", "status",
               ("Pending", "Pending", "Ready", "Error"), "result.sample"),
}  # fmt: skip


def at(answer: Any, place: str) -> Any:
    for name in place.split("."):
        answer = answer[int(name) if name.isdigit() else name]
    return answer


async def submit(vendor: Vendor, row: Row) -> tuple[str, str]:
    """The id of a job, and where it is asked about."""
    id_ = at(await vendor.post(row.path, row.doc), row.id_at)
    return id_, row.poll.format(id=id_)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_a_job_goes_through_the_vendors_own_words_to_a_result(vendor: Vendor, row: Row) -> None:
    id_, poll = await submit(vendor, row)
    seen = [at(await vendor.get(poll), row.state_at)]
    while (await vendor.make(id_, step=1))["state"] != "succeeded":
        seen.append(at(await vendor.get(poll), row.state_at))
    answer = await vendor.get(poll)
    seen.append(at(answer, row.state_at))
    assert seen[0] == row.words[0]
    assert row.words[1] in seen
    assert seen[-1] == row.words[2]
    if row.result:
        status, content = await vendor.ask("GET", at(answer, row.result).removeprefix(vendor.url), headers={})
        assert status == 200 and len(content) > 20


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_a_job_may_fail_and_may_change_its_mind(vendor: Vendor, row: Row) -> None:
    id_, poll = await submit(vendor, row)
    await vendor.make(id_, state="failed", why="no more memory")
    assert at(await vendor.get(poll), row.state_at) == row.words[3]
    await vendor.make(id_, state="succeeded")
    assert at(await vendor.get(poll), row.state_at) == row.words[2]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_a_job_is_known_only_to_the_credential_that_made_it(vendor: Vendor, row: Row) -> None:
    _, poll = await submit(vendor, row)
    _, known = await vendor.ask("GET", poll)
    status, answer = await vendor.ask("GET", poll, headers={"Authorization": "Bearer another"})
    refused_quietly = row.path.startswith(("/mj", "/minimax"))
    assert answer != known
    assert status == 200 if refused_quietly else status in (400, 404)


@pytest.mark.parametrize("word", ["banned", "full", "broken"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_words_in_the_prompt_have_it_refused(vendor: Vendor, row: Row, word: str) -> None:
    doc = row.doc | {"prompt": word, "text": word}
    status, answer = await vendor.ask("POST", row.path, doc)
    refused_quietly = row.path.startswith("/minimax") or (row.path.startswith("/mj") and word != "broken")
    assert status == (200 if refused_quietly else {"banned": 400, "full": 429, "broken": 500}[word])
    assert await vendor.get("/_demo/tasks") == []
    assert answer


@pytest.mark.parametrize(("word", "end"), [("fail", "failed"), ("cancel", "cancelled"), ("never", "running")])
async def test_words_in_the_prompt_decide_its_end(vendor: Vendor, word: str, end: str) -> None:
    id_ = (await vendor.post("/mj/submit/imagine", {"prompt": f"a cat that will {word}"}))["result"]
    assert (await vendor.make(id_, step=50))["state"] == end


# -- Midjourney ------------------------------------------------------------------------------------


async def imagined(vendor: Vendor, prompt: str = "a cat", root: str = "/mj") -> Any:
    """A finished grid."""
    id_ = (await vendor.post(root + "/submit/imagine", {"prompt": prompt}))["result"]
    await vendor.make(id_, state="succeeded")
    return await vendor.get(f"{root}/task/{id_}/fetch")


def button(task: Any, label: str) -> str:
    return next(one["customId"] for one in task["buttons"] if one["label"] == label)


async def act(vendor: Vendor, task: Any, label: str) -> Any:
    return await vendor.post("/mj/submit/action", {"taskId": task["id"], "customId": button(task, label)})


async def test_midjourney_tells_by_codes_what_it_makes_of_a_submit(vendor: Vendor) -> None:
    codes = {}
    for prompt in ("a cat", "queued", "full", "banned", ""):
        answer = await vendor.post("/mj/submit/imagine", {"prompt": prompt})
        codes[prompt] = answer["code"], bool(answer["result"])
    assert codes == {
        "a cat": (1, True), "queued": (22, True), "full": (23, False), "banned": (24, False), "": (4, False),
    }  # fmt: skip
    missing = await vendor.post("/mj/submit/action", {"taskId": "1", "customId": "MJ::JOB::upsample::1::x"})
    assert (missing["code"], missing["result"]) == (3, "")


async def test_a_buttons_customid_starts_the_next_task(vendor: Vendor) -> None:
    grid = await imagined(vendor)
    assert (grid["status"], grid["progress"], grid["failReason"]) == ("SUCCESS", "100%", "")
    upscaled = await act(vendor, grid, "U2")
    assert upscaled["code"] == 1
    assert await act(vendor, grid, "U2") == {
        "code": 21, "description": "任务已存在", "result": upscaled["result"],
        "properties": {"status": "NOT_START", "imageUrl": ""},
    }  # fmt: skip
    not_yet = await vendor.post("/mj/submit/action", {"taskId": upscaled["result"], "customId": "x"})
    assert not_yet["code"] == 4
    await vendor.make(upscaled["result"], state="succeeded")
    single = await vendor.get(f"/mj/task/{upscaled['result']}/fetch")
    assert (single["action"], single["customId"], single["prompt"]) == (
        "UPSCALE",
        button(grid, "U2"),
        "a cat",
    )
    kinds = {}
    for one in single["buttons"]:
        answer = await act(vendor, single, one["label"])
        kinds[one["label"]] = (await vendor.get(f"/mj/task/{answer['result']}/fetch"))["action"]
    assert set(kinds.values()) == {
        "UPSCALE", "LOW_VARIATION", "HIGH_VARIATION", "INPAINT", "ZOOM", "CUSTOM_ZOOM", "PAN",
    }  # fmt: skip


async def test_change_and_simple_change_do_the_same_with_words(vendor: Vendor) -> None:
    grid = await imagined(vendor)
    for change, content, kind in (
        ({"action": "UPSCALE", "index": 1}, "U2", "UPSCALE"),
        ({"action": "VARIATION", "index": 1}, "V4", "VARIATION"),
        ({"action": "REROLL"}, "R", "REROLL"),
    ):
        changed = await vendor.post("/mj/submit/change", {"taskId": grid["id"], **change})
        simple = await vendor.post("/mj/submit/simple-change", {"content": f"{grid['id']} {content}"})
        assert (changed["code"], simple["code"]) == (1, 1)
        assert (await vendor.get(f"/mj/task/{simple['result']}/fetch"))["action"] == kind
    assert (await vendor.post("/mj/submit/simple-change", {"content": f"{grid['id']} U9"}))["code"] == 4


async def test_a_window_is_answered_by_a_modal_of_the_same_task(vendor: Vendor) -> None:
    grid = await imagined(vendor)
    single = (await act(vendor, grid, "U1"))["result"]
    await vendor.make(single, state="succeeded")
    waiting = await act(vendor, await vendor.get(f"/mj/task/{single}/fetch"), "Vary (Region)")
    assert (waiting["code"], waiting["description"]) == (21, "Waiting for window confirm")
    fetch = f"/mj/task/{waiting['result']}/fetch"
    assert (await vendor.get(fetch))["status"] == "MODAL"
    modal = {"taskId": waiting["result"], "prompt": "a hat", "maskBase64": "data:image/png;base64,AA=="}
    assert (await vendor.post("/mj/submit/modal", modal))["result"] == waiting["result"]
    await vendor.make(waiting["result"], step=9)
    done = await vendor.get(fetch)
    assert (done["status"], done["action"], done["prompt"]) == ("SUCCESS", "INPAINT", "a hat")
    assert (await vendor.post("/mj/submit/modal", modal))["code"] == 4


async def test_midjourneys_other_submits_and_modes(vendor: Vendor) -> None:
    picture = "data:image/png;base64,AA=="
    for path, doc, action in (
        ("/mj-fast/mj/submit/imagine", {"prompt": "x"}, "IMAGINE"),
        ("/relax/mj/submit/blend", {"base64Array": [picture] * 2}, "BLEND"),
        ("/mj-turbo/mj/submit/describe", {"base64": picture}, "DESCRIBE"),
        ("/mj/submit/describe", {"link": "https://x.test/1.png"}, "DESCRIBE"),
        ("/mj/submit/shorten", {"prompt": "x"}, "SHORTEN"),
        ("/mj/submit/edits", {"prompt": "x", "image": picture}, "EDITS"),
        ("/mj/submit/video", {"motion": "low", "image": picture}, "VIDEO"),
        ("/mj/insight-face/swap", {"sourceBase64": picture, "targetBase64": picture}, "SWAP_FACE"),
    ):
        id_ = (await vendor.post(path, doc))["result"]
        await vendor.make(id_, state="succeeded")
        done = await vendor.get(f"/mj/task/{id_}/fetch")
        assert (done["action"], done["status"]) == (action, "SUCCESS")
    assert (await vendor.post("/mj/submit/blend", {"base64Array": [picture]}))["code"] == 4
    uploaded = await vendor.post("/mj/submit/upload-discord-images", {"base64Array": [picture] * 2})
    assert uploaded["code"] == 1 and len(uploaded["result"]) == 2


async def test_midjourney_lists_cancels_and_tells_seeds(vendor: Vendor) -> None:
    grid = await imagined(vendor)
    running = (await vendor.post("/mj/submit/imagine", {"prompt": "a dog"}))["result"]
    ids = [running, grid["id"]]
    assert [task["id"] for task in await vendor.get("/mj/task/list")] == ids
    assert [task["id"] for task in await vendor.get("/mj/task/queue")] == [running]
    for path in ("/mj/task/list-by-condition", "/mj/task/list-by-ids"):
        assert [task["id"] for task in await vendor.post(path, {"ids": [*ids, "0"]})] == ids
    assert (await vendor.get(f"/mj/task/{grid['id']}/image-seed"))["result"].isdigit()
    assert (await vendor.get(f"/mj/task/{running}/image-seed"))["code"] == 4
    assert (await vendor.post(f"/mj/task/{running}/cancel", {}))["code"] == 1
    assert (await vendor.get(f"/mj/task/{running}/fetch"))["status"] == "CANCEL"
    assert (await vendor.post(f"/mj/task/{running}/cancel", {}))["code"] == 4
    status, content = await vendor.ask("GET", f"/mj/image/{grid['id']}", headers={})
    assert status == 200 and content.startswith(b"\x89PNG")


async def test_midjourney_takes_its_own_header_for_the_key(demo: str) -> None:
    async with aiohttp.ClientSession() as session:
        for secret, status in ((KEY, 200), ("sk-wrong", 401)):
            async with session.get(demo + "/mj/task/list", headers={"mj-api-secret": secret}) as answer:
                assert answer.status == status


# -- Suno and films --------------------------------------------------------------------------------


async def test_a_song_is_two_clips_and_can_be_gone_on_from(vendor: Vendor) -> None:
    id_ = (await vendor.post("/suno/submit/music", {"gpt_description_prompt": "rain", "mv": "chirp-v4"}))[
        "data"
    ]
    await vendor.make(id_, state="succeeded")
    songs = (await vendor.get(f"/suno/fetch/{id_}"))["data"]["data"]
    assert [(clip["status"], clip["major_model_version"]) for clip in songs] == [("complete", "v4")] * 2
    extend = {"prompt": "more", "task_id": id_, "continue_clip_id": songs[0]["id"], "continue_at": 60}
    extended = (await vendor.post("/suno/submit/music", extend))["data"]
    await vendor.make(extended, state="succeeded")
    parts = (await vendor.get(f"/suno/fetch/{extended}"))["data"]["data"]
    whole = (await vendor.post("/suno/submit/concat", {"clip_id": parts[1]["id"], "is_infill": False}))[
        "data"
    ]
    await vendor.make(whole, state="succeeded")
    found = await vendor.post("/suno/fetch", {"ids": [id_, extended, whole], "action": "MUSIC"})
    assert [(task["action"], len(task["data"])) for task in found["data"]] == [
        ("MUSIC", 2), ("MUSIC", 2), ("CONCAT", 1),
    ]  # fmt: skip
    status, answer = await vendor.ask("POST", "/suno/submit/concat", {"clip_id": "nobody's"})
    assert (status, answer) == (
        400,
        {"code": "task_not_exist", "message": "clip nobody's was not found", "data": None},
    )


async def test_lyrics_and_the_older_paths(vendor: Vendor) -> None:
    id_ = (await vendor.post("/suno/submit/lyrics", {"prompt": "the sea"}))["data"]
    await vendor.make(id_, state="succeeded")
    told = (await vendor.get(f"/suno/fetch/{id_}"))["data"]
    assert told["action"] == "LYRICS" and "the sea" in told["data"]["text"]
    for version in ("v3.0", "mv-3.5"):
        begun = await vendor.post(f"/suno/v1/{version}/music", {"input": {"prompt": "la"}})
        assert begun["code"] == 200
        id_ = begun["data"]["task_id"]
        await vendor.make(id_, state="succeeded")
        clips = (await vendor.get(f"/suno/v1/{version}/music/{id_}"))["data"]["clips"]
        assert [clip["id"] for clip in clips.values()] == list(clips)
        whole = await vendor.post(f"/suno/v1/{version}/music/concat", {"clip_id": next(iter(clips))})
        assert whole["data"]["task_id"]


async def test_films_are_extended_remixed_batched_and_fetched(vendor: Vendor) -> None:
    first = (await vendor.post("/luma/generations", {"user_prompt": "a cat"}))["id"]
    more = (await vendor.post(f"/luma/generations/{first}/extend", {"user_prompt": "and a dog"}))["id"]
    assert [one["id"] for one in await vendor.post("/luma/tasks", {"ids": [first, more]})] == [first, more]
    form = aiohttp.FormData({"model": "sora-2", "prompt": "a cat", "seconds": "8"})
    form.add_field("input_reference", b"\x89PNG", filename="a.png", content_type="image/png")
    headers = {"Authorization": f"Bearer {KEY}"}
    _, video = await vendor.ask("POST", "/v1/videos", data=form, headers=headers)
    assert (video["status"], video["seconds"]) == ("queued", "8")
    assert (await vendor.ask("GET", f"/v1/videos/{video['id']}/content"))[0] == 400
    await vendor.make(video["id"], state="succeeded")
    assert b"ftyp" in await vendor.get(f"/v1/videos/{video['id']}/content")
    remix = await vendor.post(f"/v1/videos/{video['id']}/remix", {"prompt": "at night"})
    assert remix["remixed_from_video_id"] == video["id"]
    body = (await vendor.get(f"/_demo/tasks/{video['id']}"))["request"]["body"]
    assert body["input_reference"] == {"filename": "a.png", "content_type": "image/png", "bytes": 4}


async def test_flux_is_drawn_at_once_under_openais_path_and_fetched_from_a_url(vendor: Vendor) -> None:
    drawn = await vendor.post("/v1/images/generations", {"model": "flux-dev", "prompt": "a cat", "n": 2})
    form = aiohttp.FormData({"model": "flux-kontext-pro", "prompt": "with a hat"})
    form.add_field("image", b"\x89PNG", filename="a.png", content_type="image/png")
    headers = {"Authorization": f"Bearer {KEY}"}
    _, edited = await vendor.ask("POST", "/v1/images/edits", data=form, headers=headers)
    urls = [item["url"] for item in (*drawn["data"], *edited["data"])]
    assert len(set(urls)) == 3
    for url in urls:
        assert (await vendor.ask("GET", url.removeprefix(vendor.url), headers={}))[0] == 200


async def test_a_film_of_minimax_is_a_file_with_an_id_of_its_own(vendor: Vendor) -> None:
    id_ = (await vendor.post("/v1/video_generation", {"prompt": "a cat"}))["task_id"]
    await vendor.make(id_, state="succeeded")
    file = (await vendor.get(f"/v1/query/video_generation?task_id={id_}"))["file_id"]
    told = (await vendor.get(f"/v1/files/retrieve?file_id={file}"))["file"]
    assert file != id_ and told["file_id"] == file and told["download_url"].endswith(".mp4")


async def test_usage_comes_with_the_last_poll_where_the_vendor_counts_tokens(vendor: Vendor) -> None:
    chat = {"model": "glm-4", "messages": [{"role": "user", "content": "hi"}]}
    id_ = (await vendor.post("/api/paas/v4/async/chat/completions", chat))["id"]
    await vendor.make(id_, state="succeeded")
    assert (await vendor.get(f"/api/paas/v4/async-result/{id_}"))["usage"]["total_tokens"] == 30
    seedance = {"model": "doubao-seedance", "content": [{"type": "text", "text": "x"}]}
    id_ = (await vendor.post("/volc/v1/contents/generations/tasks", seedance))["id"]
    await vendor.make(id_, state="succeeded")
    shown = await vendor.get(f"/volc/v1/contents/generations/tasks/{id_}")
    assert shown["usage"]["completion_tokens"] == 108_900


async def test_what_can_be_cancelled_is_told_in_the_vendors_way(vendor: Vendor) -> None:
    runway = (await vendor.post("/runwayml/v1/text_to_video", {"promptText": "x"}))["id"]
    assert (await vendor.ask("DELETE", f"/runwayml/v1/tasks/{runway}"))[0] == 204
    assert (await vendor.get(f"/runwayml/v1/tasks/{runway}"))["status"] == "CANCELLED"
    path = "/replicate/v1/predictions"
    prediction = (await vendor.post(path, {"version": "1", "input": {"prompt": "x"}}))["id"]
    assert (await vendor.post(f"{path}/{prediction}/cancel", {}))["status"] == "canceled"
    request = await vendor.post("/fal-ai/flux/dev", {"prompt": "x"})
    status, _ = await vendor.ask("GET", f"/fal-ai/flux/requests/{request['request_id']}")
    assert status == 400
    cancelled, _ = await vendor.ask("PUT", f"/fal-ai/flux/requests/{request['request_id']}/cancel")
    assert cancelled == 200
    jimeng = "/jimeng/?Action=CVSync2Async{}&Version=2022-08-31"
    task = await vendor.post(jimeng.format("SubmitTask"), {"req_key": "jimeng_t2v", "prompt": "x"})
    asked = {"req_key": "jimeng_t2v", "task_id": task["data"]["task_id"]}
    assert (await vendor.post(jimeng.format("GetResult"), asked))["data"]["status"] == "in_queue"


# -- callbacks, the clock --------------------------------------------------------------------------


async def test_a_hook_is_told_of_every_change_in_order(vendor: Vendor) -> None:
    told: asyncio.Queue[Any] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        await told.put(await request.json())
        return web.Response(status=500)  # nobody cares

    app = web.Application()
    app.router.add_post("/hook", receive)
    receiver = TestServer(app, host="127.0.0.1")
    await receiver.start_server()
    asked = {"prompt": "a cat", "notifyHook": str(receiver.make_url("/hook")), "state": "mine"}
    id_ = (await vendor.post("/mj/submit/imagine", asked))["result"]
    await vendor.make(id_, step=9)
    await vendor.make(id_, state="failed", why="a late truth", times=2)
    async with asyncio.timeout(30):
        seen = [await told.get() for _ in range(6)]
    assert [(task["status"], task["progress"]) for task in seen] == [
        ("SUBMITTED", "0%"), ("IN_PROGRESS", "31%"), ("IN_PROGRESS", "62%"), ("SUCCESS", "100%"),
        ("FAILURE", "100%"), ("FAILURE", "100%"),
    ]  # fmt: skip
    assert {(task["id"], task["state"]) for task in seen} == {(id_, "mine")}
    await receiver.close()


async def test_jobs_move_by_the_demos_own_clock() -> None:
    server = TestServer(make_app(step_s=0.001), host="127.0.0.1")
    await server.start_server()
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        vendor = Vendor(str(server.make_url("")).rstrip("/"), session)
        id_ = (await vendor.post("/mj/submit/imagine", {"prompt": "a cat"}))["result"]
        while (await vendor.get(f"/mj/task/{id_}/fetch"))["status"] != "SUCCESS":
            pass
    await server.close()
