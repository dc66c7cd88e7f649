"""API4GPT's menu of tasks, entry by entry, against vendors that work behind the answer.

Of each entry: what reaches the vendor (path, credential, body), what comes back, how its states go, the bill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import requests

from tests.clients.emulated import Emulated, emulated
from tests.clients.playing import YUAN
from tests.conftest import Databases
from tests.waiting import wait_for

PICTURE = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture(scope="module")
def api4gpt(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Emulated]:
    with emulated("api4gpt", tmp_path_factory.mktemp("api4gpt"), databases.take()) as running:
        yield running


@pytest.fixture(scope="module")
def stranger(api4gpt: Emulated) -> str:
    """The key of another account."""
    return asyncio.run(api4gpt.station.customer("stranger"))


class Submit(NamedTuple):
    """An entry that starts a task: where, with what; where its id and its state are told; the bill."""

    path: str
    doc: dict[str, Any]
    id_at: str
    poll: str
    state_at: str
    ended: str  # the vendor's word
    secret: str  # the credential's name
    model: str
    fen: int
    target: str = ""  # at the vendor, where it is another path


MJ = ("result", "/mj/task/{id}/fetch", "status", "SUCCESS", "MIDJOURNEY_SECRET")
SUNO = ("data", "/suno/fetch/{id}", "data.status", "SUCCESS", "SUNO_KEY")
V3 = ("data.task_id", "/suno/v1/v3.0/music/{id}", "data.status", "completed", "SUNO_KEY")
V35 = ("data.task_id", "/suno/v1/mv-3.5/music/{id}", "data.status", "completed", "SUNO_KEY")
LUMA = ("id", "/luma/task/{id}", "state", "completed", "LUMA_KEY")
LUMVIP = ("id", "/lumvip/task/{id}", "state", "completed", "LUMA_KEY")

SUBMITS = {
    "Midjourney/InsightFace任务提交/提交swap_face任务": Submit(
        "/mj/insight-face/swap", {"sourceBase64": PICTURE, "targetBase64": PICTURE}, *MJ, "swap_face", 20),
    "Midjourney/任务提交/提交Blend任务": Submit(
        "/mj/submit/blend", {"base64Array": [PICTURE, PICTURE], "dimensions": "SQUARE"}, *MJ, "mj_blend", 35),
    "Midjourney/任务提交/提交Describe任务": Submit(
        "/mj/submit/describe", {"base64": PICTURE}, *MJ, "mj_describe", 10),
    "Midjourney/任务提交/提交Imagine任务": Submit(
        "/mj/submit/imagine", {"prompt": "a cat", "botType": "MID_JOURNEY", "base64Array": []}, *MJ,
        "mj_imagine", 35),
    "Midjourney/任务提交/提交Shorten任务": Submit(
        "/mj/submit/shorten", {"prompt": "a cat that sits on a mat"}, *MJ, "mj_shorten", 10),
    "Suno音乐接口/v3.0/生成音乐": Submit(
        "/suno/v1/v3.0/music", {"custom_mode": False, "input": {"gpt_description_prompt": "rain"}}, *V3,
        "suno_music", 60),
    "Suno音乐接口/v3.5/生成音乐": Submit(
        "/suno/v1/mv-3.5/music", {"custom_mode": False, "input": {"gpt_description_prompt": "rain"}}, *V35,
        "suno_music", 60),
    "Suno音乐接口/v4.0/生成音乐": Submit(
        "/suno/submit/music", {"prompt": "la la", "title": "La", "tags": "pop", "mv": "chirp-v4"}, *SUNO,
        "suno_music", 60),
    "Suno音乐接口/v4.0/生成歌词": Submit("/suno/submit/lyrics", {"prompt": "rain"}, *SUNO, "suno_lyrics", 5),
    "Luma视频接口/luma//generations": Submit(
        "/luma/generations", {"user_prompt": "a cat", "expand_prompt": True, "aspect_ratio": "16:9"}, *LUMA,
        "luma-ray-v1", 200),
    "Luma视频接口/lumvip//generations": Submit(
        "/lumvip/generations", {"user_prompt": "a cat", "model_name": "ray-v2"}, *LUMVIP,
        "lumvip-ray-v2", 400),
    "智谱视频接口//generations(生成)": Submit(
        "/zhipu/videos/generations", {"model": "cogvideox-2", "prompt": "a cat"}, "id",
        "/zhipu/async-result/{id}", "task_status", "SUCCESS", "ZHIPU_API_KEY", "cogvideox-2", 50,
        "/api/paas/v4/videos/generations"),
    "数字人/生成数字人视频": Submit(
        "/avatar/generation",
        {"avatar_url": "https://x.test/1.png",
         "create_voice": {"audio_url": "https://x.test/1.mp3", "language": "zh", "text": "你好"}},
        "data", "/avatar/task/{id}", "data.status", "SUCCESS", "AVATAR_KEY", "avatar", 300),
}  # fmt: skip


def at(answer: Any, place: str) -> Any:
    for name in place.split("."):
        answer = answer[int(name) if name.isdigit() else name]
    return answer


def submitted(station: Emulated, submit: Submit, **more: Any) -> str:
    """The id of a task, from its answer."""
    answer = station.post(submit.path, submit.doc | more)
    assert answer.status_code == 200, answer.text
    return str(at(answer.json(), submit.id_at))


def state_of(station: Emulated, id_: str) -> str:
    """What has become of its hold."""
    rows = asyncio.run(station.station.rows("SELECT vendor_id, state FROM binding"))
    return next((str(row["state"]) for row in rows if row["vendor_id"] == id_), "")


def charges(station: Emulated, count: int = 1) -> list[tuple[str, int]]:
    """Model and hundredths of a yuan of the charges since the last ones: so many and no more."""
    bills = station.bills(count, only_charged=True)
    return [(bill["model"], bill["cost_nanos"] * 100 // YUAN) for bill in bills]


def shown(station: Emulated, path: str) -> Any:
    answer = station.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("name", SUBMITS)
def test_a_task_is_made_watched_and_billed_once_at_its_end(api4gpt: Emulated, name: str) -> None:
    submit = SUBMITS[name]
    id_ = submitted(api4gpt, submit)
    job = api4gpt.tasks.job(id_)
    assert (job.method, job.target, job.body) == ("POST", submit.target or submit.path, submit.doc)
    told = job.headers.get("authorization", "").removeprefix("Bearer ") or job.headers["mj-api-secret"]
    assert told == f"sk-upstream-{submit.secret}"
    assert api4gpt.key not in str(job.headers)
    poll = submit.poll.format(id=id_)
    states = [at(shown(api4gpt, poll), submit.state_at)]
    while api4gpt.tasks.move(id_, step=1).state != "succeeded":
        states.append(at(shown(api4gpt, poll), submit.state_at))
    assert submit.ended not in states
    assert at(shown(api4gpt, poll), submit.state_at) == submit.ended
    assert charges(api4gpt) == [(submit.model, submit.fen)]


@pytest.mark.parametrize("name", SUBMITS)
def test_a_task_that_fails_or_is_refused_costs_nothing(api4gpt: Emulated, name: str) -> None:
    submit = SUBMITS[name]
    id_ = submitted(api4gpt, submit)
    api4gpt.tasks.move(id_, "failed", why="no more memory")
    shown(api4gpt, submit.poll.format(id=id_))
    wait_for(lambda: state_of(api4gpt, id_) == "void")
    refused = api4gpt.post(submit.path, submit.doc | {"prompt": "banned", "text": "banned"})
    assert refused.status_code in (200, 400)
    assert charges(api4gpt, 0) == []


# Entries that look at a task -> where, and the entry that made it.
LOOKS = {
    "Midjourney/任务查询/指定ID获取任务": (
        "/mj/task/{id}/fetch", "Midjourney/任务提交/提交Imagine任务"),
    "Suno音乐接口/v3.0/获取音乐": ("/suno/v1/v3.0/music/{id}", "Suno音乐接口/v3.0/生成音乐"),
    "Suno音乐接口/v3.5/获取音乐": ("/suno/v1/mv-3.5/music/{id}", "Suno音乐接口/v3.5/生成音乐"),
    "Suno音乐接口/v4.0/任务查询_单个": ("/suno/fetch/{id}", "Suno音乐接口/v4.0/生成音乐"),
    "Luma视频接口/luma//task": ("/luma/task/{id}", "Luma视频接口/luma//generations"),
    "Luma视频接口/lumvip//task": ("/lumvip/task/{id}", "Luma视频接口/lumvip//generations"),
    "智谱视频接口//result (获取结果)": ("/zhipu/async-result/{id}", "智谱视频接口//generations(生成)"),
    "数字人/获取任务详情": ("/avatar/task/{id}", "数字人/生成数字人视频"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKS)
def test_a_task_is_shown_as_the_vendor_shows_it_and_to_its_owner_only(
    api4gpt: Emulated, stranger: str, name: str
) -> None:
    path, maker = LOOKS[name]
    id_ = submitted(api4gpt, SUBMITS[maker])
    api4gpt.tasks.move(id_, "succeeded")
    answer = api4gpt.get(path.format(id=id_))
    headers = {"authorization": f"Bearer sk-upstream-{SUBMITS[maker].secret}"}
    theirs = path.replace("/zhipu/", "/api/paas/v4/").format(id=id_)
    assert answer.content == requests.get(api4gpt.tasks.url + theirs, headers=headers, timeout=60).content
    assert api4gpt.get(path.format(id=id_), stranger).status_code == 404
    assert charges(api4gpt) == [(SUBMITS[maker].model, SUBMITS[maker].fen)]


# -- Midjourney ------------------------------------------------------------------------------------

IMAGINE = SUBMITS["Midjourney/任务提交/提交Imagine任务"]


def finished(station: Emulated, id_: str) -> Any:
    """The task, done and billed."""
    station.tasks.move(id_, "succeeded")
    task = shown(station, f"/mj/task/{id_}/fetch")
    assert task["status"] == "SUCCESS"
    charges(station)
    return task


def button(task: Any, label: str) -> dict[str, str]:
    """What presses it."""
    found = (one["customId"] for one in task["buttons"] if one["label"] == label)
    return {"taskId": task["id"], "customId": next(found)}


def test_parameters_go_on_and_hooks_and_channels_do_not(api4gpt: Emulated) -> None:
    """Entry: "Midjourney/补充 - 其他参数以及回调"."""
    asked = {
        "prompt": "a cat", "state": "mine", "notifyHook": "https://customer.example.com/hook?token=1",
        "accountFilter": {"modes": ["TURBO"]},
    }  # fmt: skip
    for prefix, model, fen in (("/mj-fast", "mj_imagine", 35), ("/mj-relax", "mj_imagine-relax", 15)):
        answer = api4gpt.post(prefix + "/mj/submit/imagine", asked)
        assert (answer.status_code, answer.json()["code"]) == (200, 1)
        job = api4gpt.tasks.job(answer.json()["result"])
        assert job.target == prefix + "/mj/submit/imagine"
        assert (job.body["prompt"], job.body["state"]) == ("a cat", "mine")
        assert "accountFilter" not in job.body
        assert "customer.example.com" not in str(job.body)
        api4gpt.tasks.move(job.id, "succeeded")
        assert shown(api4gpt, f"{prefix}/mj/task/{job.id}/fetch")["state"] == "mine"
        assert charges(api4gpt) == [(model, fen)]


def test_a_button_is_pressed_at_the_vendor_that_showed_it(api4gpt: Emulated, stranger: str) -> None:
    """Entry: "Midjourney/任务提交/执行动作"."""
    grid = finished(api4gpt, submitted(api4gpt, IMAGINE))
    press = button(grid, "U2")
    assert api4gpt.post("/mj/submit/action", press, stranger).status_code == 404
    answer = api4gpt.post("/mj/submit/action", press).json()
    job = api4gpt.tasks.job(answer["result"])
    assert (job.kind, job.parent, job.body) == ("UPSCALE", grid["id"], press)
    api4gpt.tasks.move(job.id, "succeeded")
    shown(api4gpt, f"/mj/task/{job.id}/fetch")
    assert charges(api4gpt) == [("mj_upscale", 10)]


def test_a_window_is_answered_and_charged_once(api4gpt: Emulated) -> None:
    """Entry: "Midjourney/任务提交/提交Modal"."""
    grid = finished(api4gpt, submitted(api4gpt, IMAGINE))
    single = finished(api4gpt, api4gpt.post("/mj/submit/action", button(grid, "U1")).json()["result"])
    opened = api4gpt.post("/mj/submit/action", button(single, "Vary (Region)")).json()
    assert opened["code"] == 21
    assert shown(api4gpt, f"/mj/task/{opened['result']}/fetch")["status"] == "MODAL"
    modal = {"taskId": opened["result"], "prompt": "a hat", "maskBase64": PICTURE}
    answer = api4gpt.post("/mj/submit/modal", modal).json()
    assert (answer["code"], answer["result"]) == (1, opened["result"])
    api4gpt.tasks.move(opened["result"], "succeeded")
    assert shown(api4gpt, f"/mj/task/{opened['result']}/fetch")["action"] == "INPAINT"
    assert charges(api4gpt) == [("mj_modal", 35)]


def test_lists_show_an_account_its_own_tasks_only(api4gpt: Emulated, stranger: str) -> None:
    """Entries: "Midjourney/任务查询/查询所有任务", "Midjourney/任务查询/根据ID列表查询任务",
    "Midjourney/任务查询/分页查询任务", "Midjourney/任务查询/查询任务队列"."""
    mine = [submitted(api4gpt, IMAGINE) for _ in range(2)]
    theirs = api4gpt.post(IMAGINE.path, IMAGINE.doc, stranger).json()["result"]
    finished(api4gpt, mine[0])

    def ids(path: str, key: str) -> set[str]:
        answer = api4gpt.get(path, key).json()
        return {task["id"] for task in (answer if isinstance(answer, list) else answer["list"])}

    for path in ("/mj/task/list", "/mj/task/page?pageNum=1&pageSize=100"):
        assert set(mine) <= ids(path, api4gpt.key) and theirs not in ids(path, api4gpt.key)
        assert ids(path, stranger) == {theirs}
    wait_for(lambda: mine[0] not in ids("/mj/task/queue", api4gpt.key))
    assert mine[1] in ids("/mj/task/queue", api4gpt.key)
    for path in ("/mj/task/list-by-condition", "/mj/task/list-by-ids"):
        found = api4gpt.post(path, {"ids": [*mine, theirs]}).json()
        assert {task["id"] for task in found} == set(mine)
    for id_ in (mine[1], theirs):
        api4gpt.tasks.move(id_, "cancelled")


def test_a_cancelled_task_is_void_at_once(api4gpt: Emulated, stranger: str) -> None:
    """Entry: "Midjourney/任务查询/取消任务"."""
    id_ = submitted(api4gpt, IMAGINE)
    assert api4gpt.post(f"/mj/task/{id_}/cancel", {}, stranger).status_code == 404
    assert api4gpt.post(f"/mj/task/{id_}/cancel", {}).json()["code"] == 1
    assert api4gpt.tasks.job(id_).state == "cancelled"
    wait_for(lambda: state_of(api4gpt, id_) == "void")
    assert charges(api4gpt, 0) == []


def test_a_pictures_seed_is_told(api4gpt: Emulated) -> None:
    """Entry: "Midjourney/任务查询/获取任务图片的seed(需设置mj或niji的私信ID)"."""
    task = finished(api4gpt, submitted(api4gpt, IMAGINE))
    seed = shown(api4gpt, f"/mj/task/{task['id']}/image-seed")
    assert seed["code"] == 1 and seed["result"].isdigit()


# -- Suno and Luma ---------------------------------------------------------------------------------


def test_songs_are_put_together_by_their_clips(api4gpt: Emulated, stranger: str) -> None:
    """Entry: "Suno音乐接口/v3.0/合并音乐"."""
    music = SUBMITS["Suno音乐接口/v3.0/生成音乐"]
    id_ = submitted(api4gpt, music)
    api4gpt.tasks.move(id_, "succeeded")
    clips = list(shown(api4gpt, music.poll.format(id=id_))["data"]["clips"])
    assert api4gpt.post("/suno/v1/v3.0/music/concat", {"clip_id": clips[0]}, stranger).status_code == 404
    whole = api4gpt.post("/suno/v1/v3.0/music/concat", {"clip_id": clips[0]}).json()["data"]["task_id"]
    assert api4gpt.tasks.job(whole).parent == id_
    api4gpt.tasks.move(whole, "succeeded")
    shown(api4gpt, music.poll.format(id=whole))
    assert sorted(charges(api4gpt, 2)) == [("suno_concat", 10), ("suno_music", 60)]


def test_songs_are_asked_about_together(api4gpt: Emulated, stranger: str) -> None:
    """Entry: "Suno音乐接口/v4.0/任务查询_批量"."""
    music = SUBMITS["Suno音乐接口/v4.0/生成音乐"]
    ids = {submitted(api4gpt, music) for _ in range(2)}
    theirs = api4gpt.post(music.path, music.doc, stranger).json()["data"]
    for id_ in ids:
        api4gpt.tasks.move(id_, "succeeded")
    found = api4gpt.post("/suno/fetch", {"ids": [*ids, theirs], "action": "MUSIC"}).json()["data"]
    assert {task["task_id"]: task["status"] for task in found} == dict.fromkeys(ids, "SUCCESS")
    assert charges(api4gpt, 2) == [("suno_music", 60)] * 2
    api4gpt.tasks.move(theirs, "cancelled")


@pytest.mark.parametrize(
    ("name", "maker"),
    [
        ("Luma视频接口/luma//extend", "Luma视频接口/luma//generations"),
        ("Luma视频接口/lumvip//extend", "Luma视频接口/lumvip//generations"),
    ],
)
def test_a_film_goes_on(api4gpt: Emulated, stranger: str, name: str, maker: str) -> None:
    line, generate = name.split("/")[1], SUBMITS[maker]
    id_ = submitted(api4gpt, generate)
    path = f"/{line}/generations/{id_}/extend"
    assert api4gpt.post(path, {"user_prompt": "and a dog"}, stranger).status_code == 404
    more = api4gpt.post(path, {"user_prompt": "and a dog"}).json()["id"]
    assert api4gpt.tasks.job(more).parent == id_
    for one in (id_, more):
        api4gpt.tasks.move(one, "succeeded")
        shown(api4gpt, generate.poll.format(id=one))
    assert sorted(charges(api4gpt, 2)) == [(f"{line}-extend", generate.fen), (generate.model, generate.fen)]
