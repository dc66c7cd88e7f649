"""Declared task families: the built-in ones, what a station says over them, and what comes of both."""

from __future__ import annotations

import pytest

from proxy.compiler import builtin_families
from proxy.routing import family
from proxy.snapshot import Snapshot
from tests.routing.compiling import compile_text, mistakes, table, warnings

UPSTREAMS = """
upstreams:
  mj:
    dialect: DIALECT
    mirrors: {direct: {url: "https://mj.example"}}
    credentials: {main: "${env:OPENAI_API_KEY}"}
  hub:
    dialect: openai
    mirrors: {direct: {url: "https://hub.example"}}
    credentials: {main: "${env:OPENAI_API_KEY}"}
models: {gpt-4o-mini: {candidates: [{upstream: hub}]}}
prices: {"*": {call: 1 USD}}
"""
MIDJOURNEY = UPSTREAMS.replace("DIALECT", "midjourney")


def tasks(text: str, dialect: str = "midjourney") -> str:
    return UPSTREAMS.replace("DIALECT", dialect) + f"tasks: {{{text}}}\n"


def snapshot(text: str) -> Snapshot:
    return Snapshot.from_document(compile_text(text).document)


@pytest.mark.parametrize("name", builtin_families())
def test_a_built_in_family_needs_an_upstream_only(name):
    text = tasks(f"{name}: {{upstream: mj}}", name)
    assert mistakes(text) == []
    assert [line for line in warnings(text) if "tasks" in line] == []
    found = snapshot(text)
    for kind, task in found.tasks("mj").items():
        assert (kind == name or kind.startswith(f"{name}.")) and task.poll in found.dialects[name].operations
        assert found.dialects[name].operations[task.poll].task is task


@pytest.mark.parametrize("name", builtin_families())
def test_every_submit_can_be_followed_and_nobody_gets_an_id_that_is_not_his(name):
    operations = snapshot(tasks(f"{name}: {{upstream: mj}}", name)).dialects[name].operations
    for spec in operations.values():
        assert not spec.billed or not spec.replayable
        if spec.task is not None and spec.billed:
            assert spec.rules is not None and spec.rules.accepted and spec.ids_out
        if "{id}" in spec.path:
            assert spec.ids_in, spec.name


def test_a_station_overrides_single_members_and_leaves_out_what_it_empties():
    found = snapshot(
        tasks(
            "midjourney: {upstream: mj, modes: , task: {deadline: 2d, poll: {every: 9s}},"
            " operations: {video: , imagine: {bill: mj_draw}}}"
        )
    )
    [task] = found.tasks("mj").values()
    assert (task.deadline_s, task.shortest_s, task.longest_s) == (2 * 86400, 9, 30)
    operations = found.dialects["midjourney"].operations
    assert "midjourney.video" not in operations and "midjourney.fetch" in operations
    assert operations["midjourney.imagine"].naming.model({}, {}, {}) == "mj_draw"
    assert not any(route.path.startswith("/mj-fast") for route in found.table.routes)


def test_a_family_may_be_declared_wholly_in_place():
    text = tasks(
        "mine: {upstream: hub, task: {id: job.id, state: job.state, states: {ok: succeeded},"
        " poll: {operation: get}}, operations: {make: {path: /mine/jobs, submits: true, bill: mine},"
        ' get: {path: "/mine/jobs/{id}", method: GET, names: [path.id], shows: true}}}',
        "openai",
    )
    found = snapshot(text)
    assert found.match("POST", "/mine/jobs").route.operation == "mine.make"
    assert found.match("GET", "/mine/jobs/7").captures == {"id": "7"}
    assert found.offered("hub", "mine.get").path == "/mine/jobs/{id}"
    assert found.tasks("hub")["mine"].state == (("job", "state"),)


def test_a_mode_is_a_prefix_with_its_own_path_price_and_upstream():
    found = table(
        tasks(
            'midjourney: {upstream: mj, modes: {mj-fast: {at: "", bill: "{name}-fast", upstream: hub},'
            " mj-relax: {at: /slow}}}"
        )
    )
    plain = found.match("POST", "/mj/submit/imagine").route
    fast = found.match("POST", "/mj-fast/mj/submit/imagine").route
    slow = found.match("POST", "/mj-relax/mj/submit/imagine").route
    assert [r.at for r in (plain, fast, slow)] == ["", "", "/slow/mj/submit/imagine"]
    assert [r.bill for r in (plain, fast, slow)] == ["", "{name}-fast", ""]
    assert [r.candidates[0].upstream for r in (plain, fast, slow)] == ["mj", "hub", "mj"]
    assert "midjourney.fetch" in found.upstreams["hub"].operations


def test_a_second_one_of_a_family_has_another_name_and_paths_of_its_own():
    found = snapshot(
        tasks("midjourney: {upstream: mj}, cheap: {family: midjourney, under: /cheap, upstream: hub}")
    )
    assert found.match("POST", "/cheap/mj-fast/mj/submit/imagine").route.at == "/mj-fast/mj/submit/imagine"
    assert found.match("POST", "/cheap/mj/submit/imagine").route.operation == "cheap.imagine"
    assert "cheap" in found.tasks("hub") and set(found.tasks("mj")) == {"midjourney"}


def test_a_hub_knows_one_key_and_a_file_may_write_it_otherwise():
    auth = {
        where: table(tasks(text)).upstreams[where].operations["midjourney.imagine"].auth
        for where, text in (("mj", "midjourney: {upstream: mj}"), ("hub", "midjourney: {upstream: hub}"))
    }
    assert auth == {"mj": (b"mj-api-secret", b""), "hub": (b"authorization", b"Bearer ")}
    own = table(tasks("midjourney: {upstream: hub, auth: {header: X-Token, prefix: Key}}")).upstreams["hub"]
    assert own.operations["midjourney.fetch"].auth == (b"x-token", b"Key ")


def test_words_that_stand_for_others_make_an_operation_and_a_kind_each():
    text = tasks(
        "mine: {upstream: hub, each: {what: [text, image]},"
        " task: {id: id, state: s, states: {ok: succeeded}, poll: {operation: get}}, operations: {"
        ' make: {path: "/mine/{what}", submits: true, bill: "mine-{what}"},'
        ' get: {path: "/mine/{what}/{id}", method: GET, names: [path.id], shows: true}}}',
        "openai",
    )
    found = snapshot(text)
    assert {"mine.text", "mine.image"} <= set(found.tasks("hub"))
    assert found.match("POST", "/mine/image").route.operation == "mine.image.make"
    naming = found.dialects["mine"].operations["mine.image.make"].naming
    assert naming.model({}, {}, {}) == "mine-image"


def test_what_a_station_writes_into_routes_comes_first():
    text = tasks("midjourney: {upstream: mj}") + (
        "routes: [{path: /mj/submit/imagine, operation: midjourney.imagine, candidates: [{upstream: mj}],"
        " parameters: {refuse: [base64Array]}}]\n"
    )
    routes = [r for r in table(text).routes if r.path == "/mj/submit/imagine"]
    assert len(routes) == 1 and routes[0].parameters.rules


def test_a_family_gives_away_what_the_station_does_not_name_itself():
    assert snapshot(tasks("midjourney: {upstream: mj}")).price_for("mj_inpaint").free
    sold = MIDJOURNEY.replace('"*"', "mj_inpaint") + "tasks: {midjourney: {upstream: mj}}\n"
    assert not snapshot(sold).price_for("mj_inpaint").free


def test_what_has_no_price_is_told():
    text = MIDJOURNEY.replace('"*"', "mj_imagine") + "tasks: {midjourney: {upstream: mj}}\n"
    assert any("no price for mj_blend" in line for line in warnings(text))


def test_what_tasks_are_billed_as_are_models_for_prices_and_tiers():
    text = MIDJOURNEY.replace('"*"', '"mj_*"') + (
        "tasks: {midjourney: {upstream: mj}}\n"
        'tiers: {Free: {rank: 0, models: [mj_imagine, "gpt-*"]}}\n'
        "multipliers: {mj_upscale: 2}\n"
    )
    assert [line for line in warnings(text) if "matches no model" in line] == []


def test_where_a_task_goes_may_be_its_models_business():
    text = (
        UPSTREAMS.replace("DIALECT", "openai\n    operations: [video]").replace(
            "{gpt-4o-mini: {candidates: [{upstream: hub}]}}",
            '{"veo-*": {candidates: [{upstream: mj}]}, sora-2: {candidates: [{upstream: hub}]}}',
        )
        + "tasks: {video: }\n"
    ).replace(
        '    dialect: openai\n    mirrors: {direct: {url: "https://hub',
        '    dialect: openai\n    operations: [chat, video]\n    mirrors: {direct: {url: "https://hub',
    )
    assert mistakes(text) == []
    found = snapshot(text)
    route = found.match("POST", "/v1/video/generations").route
    for model, upstream in (("veo-3", "mj"), ("sora-2", "hub")):
        assert [c.upstream for c in found.candidates(route, found.model_for(model))] == [upstream]
    assert found.candidates(route, None) == ()


def test_a_poll_may_be_a_post_with_the_id_in_its_body():
    text = tasks(
        "mine: {upstream: hub, task: {id: id, state: s, states: {ok: succeeded},"
        """ poll: {operation: get, body: '{"task_id":"{id}"}'}}, operations: {"""
        " make: {path: /mine, submits: true, bill: mine},"
        " get: {path: /mine/get, names: [body.task_id], shows: true}}}",
        "openai",
    )
    assert snapshot(text).tasks("hub")["mine"].poll_body == {"task_id": "{id}"}


def test_the_grammar_has_a_default_for_all_that_a_station_need_not_say():
    family.Family()
