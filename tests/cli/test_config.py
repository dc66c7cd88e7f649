"""`headrace check`, `explain` and `diff`, as a shell sees them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.store.catalog import Catalog, KeySettings
from proxy.store.database import Database
from tests.routing.compiling import MINIMAL

DEMO = {"HEADRACE_DEMO_URL": "http://127.0.0.1:9000", "HEADRACE_DEMO_KEY": "demo-canary"}


@pytest.fixture
def routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good file; the working folder is its own."""
    for name in ("HEADRACE_CONFIG", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "routes.yaml"
    path.write_text(
        MINIMAL + "tiers:\n"
        "  Free: {rank: 0, models: [gpt-4o-mini], multiplier: 2, limits: {requests: 3/min, concurrency: 4}}\n"
    )
    return path


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    status = main(argv)
    said = capsys.readouterr()
    assert "canary" not in said.out + said.err
    return status, said.out + said.err


# -- check ---------------------------------------------------------------------------------------


def test_check_of_a_good_file_ends_with_0(routes, capsys):
    status, said = told(capsys, "check", "routes.yaml")
    assert status == 0
    assert re.fullmatch(r"routes.yaml: no mistakes; 1 upstreams, 1 models, [0-9]+ routes, 1 tiers\n", said)
    assert told(capsys, "check")[0] == 0


def test_check_says_every_mistake_and_ends_with_1(routes, capsys):
    routes.write_text(
        routes.read_text().replace("rank: 0", "rank: x").replace("upstream: openai", "upstream: opnai")
    )
    status, said = told(capsys, "check", "routes.yaml")
    assert status == 1
    assert said.splitlines() == [
        "routes.yaml:7:41: models.gpt-4o-mini.candidates[0].upstream: upstream 'opnai' is not known "
        "(did you mean 'openai'?)",
        "routes.yaml:9:16: tiers.Free.rank: must be a whole number",
    ]


def test_check_for_machines(routes, capsys):
    assert json.loads(told(capsys, "check", "--json", "routes.yaml")[1]) == {
        "ok": True,
        "mistakes": [],
        "warnings": [],
    }
    routes.write_text("station: []\n")
    status, said = told(capsys, "check", "--json", "routes.yaml")
    assert (status, json.loads(said)["ok"]) == (1, False)


def test_check_of_a_file_that_is_not_there(routes, capsys):
    status, said = told(capsys, "check", "nowhere.yaml")
    assert (status, said) == (1, "nowhere.yaml:1:1: cannot be read: No such file or directory\n")


# -- explain -------------------------------------------------------------------------------------


def explained(capsys, *argv: str) -> dict:
    return json.loads(told(capsys, "explain", "--json", *argv)[1])


def test_explain_tells_where_a_call_goes_and_what_it_costs(routes, capsys):
    facts = explained(capsys, "POST", "/chat/completions?key=x", "--model", "gpt-4o-mini")
    assert facts["route"]["path"] == "/v1/chat/completions"
    assert facts["model"]["line"] == 7
    (candidate,) = facts["candidates"]
    assert candidate["url"] == "https://api.openai.com:443/v1/chat/completions"
    assert candidate["headers"]["set"] == {"authorization": "Bearer <openai.main>"}
    assert {"cookie", "x-forwarded-for", "api-key", "authorization"} <= set(candidate["headers"]["dropped"])
    assert "content-type" in candidate["headers"]["passed"]
    assert facts["price"]["content"]["input"] == 150_000_000
    assert facts["price"]["tier_multiplier_ppm"] == 2_000_000
    hold = facts["hold"]
    # 1000 tokens in and 1024 out at 0.15 and 0.60 USD a million, times two; 16384 out at most.
    assert hold["nanos"] == 2 * (1_000 * 150 + 1_024 * 600)
    assert hold["max_nanos"] == 2 * (1_000 * 150 + 16_384 * 600)
    assert hold["overspend_bound_nanos"] == 4 * (hold["max_nanos"] - hold["nanos"])
    assert {"of": "tier", "kind": "requests_per_minute", "limit": 3, "left": None} in facts["limits"]
    assert facts["refused"] == []


def test_explain_is_readable(routes, capsys):
    status, said = told(capsys, "explain", "POST", "/v1/chat/completions", "--model", "gpt-4o-mini")
    assert status == 0
    for line in (
        "route        /v1/chat/completions  (built in)",
        "candidate 1  openai  (routes.yaml:2), priority 1, 100% of its priority",
        "             https://api.openai.com:443/v1/chat/completions",
        "             + authorization: Bearer <openai.main>",
        "limits       concurrency of the tier: 4",
        "             requests per minute of the tier: 3",
        "price        input: 0.15 USD",
        "overspend    at most 0.073728 USD of such calls at once",
    ):
        assert line in said.splitlines()


def test_explain_writes_every_figure_of_a_price_as_an_amount(tmp_path, capsys, monkeypatch):
    file = tmp_path / "routes.yaml"
    file.write_text(
        "station: {currency: USD}\n"
        "upstreams: {up: {preset: openai, credentials: none}}\n"
        "models: {m: {candidates: [{upstream: up}]}}\n"
        "prices: {m: {input: 1 USD, output: 2 USD, tools: {web_search: 0.01 USD},"
        " service_tiers: {flex: {input: 0.5 USD}}, above: [{input_tokens: 200000, input: 3 USD}]}}\n"
    )
    said = told(capsys, "explain", "--config", str(file), "POST", "/v1/chat/completions", "--model", "m")[1]
    for line in (
        "tools.web_search: 0.01 USD",
        "service_tiers.flex.input: 0.5 USD",
        "above 200000 input tokens, input: 3 USD",
    ):
        assert line in said
    assert "{" not in said and "000000" not in said


def test_explain_names_the_line_of_a_route(routes, capsys):
    routes.write_text(
        routes.read_text() + "routes:\n  - {path: /v1/completions, default_model: gpt-4o-mini,"
        " parameters: {drop: [user], refuse: [echo], within_context: true}}\n"
    )
    status, said = told(capsys, "explain", "POST", "/v1/completions")
    assert status == 0
    assert "route        /v1/completions  (routes.yaml:11)" in said.splitlines()
    assert "without a model: gpt-4o-mini" in said
    assert "parameters   without user\n             'echo' is not supported here.\n" in said
    assert "Input and output together must fit into the model's context." in said


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("POST", "/v1/nothing"), "unknown_path"),
        (("PUT", "/v1/chat/completions"), "method_not_allowed"),
        (("POST", "/v1/../admin"), "malformed_request"),
        (("POST", "/v1/chat/completions", "--model", "gpt-9"), "model_not_found"),
    ],
)
def test_explain_tells_a_refusal_and_ends_with_1(routes, capsys, argv, code):
    status, said = told(capsys, "explain", *argv)
    assert status == 1
    assert f" {code}: " in said


def test_explain_tells_why_a_candidate_is_out(routes, capsys):
    routes.write_text(routes.read_text().replace("${env:OPENAI_API_KEY}", "${env:NOT_SET?}"))
    status, said = told(capsys, "explain", "POST", "/v1/chat/completions", "--model", "gpt-4o-mini")
    assert status == 1
    assert "candidate 1  openai  (routes.yaml:2), priority 1: out, NOT_SET is not set" in said.splitlines()


def test_explain_with_a_key_needs_a_station(routes, capsys):
    status, said = told(capsys, "explain", "POST", "/v1/embeddings", "--key", "sk-x", "--data", "nowhere")
    assert status == 1
    assert "there is no station in nowhere" in said


def test_explain_with_a_key_counts_what_its_owner_may(routes, capsys, monkeypatch, database_dsn):
    monkeypatch.setenv("DATABASE_URL", database_dsn)

    async def make_key() -> str:
        database = await Database.connect(database_dsn, size=1)
        catalog = Catalog(database)
        await catalog.create_account("acme", tier="VIP")
        settings = KeySettings(models=("gpt-4o*",), requests_per_minute=7, mirror="cdn")
        _, key = await catalog.create_key("acme", settings)
        await database.close()
        return key

    key = asyncio.run(make_key())
    routes.write_text(
        routes.read_text().replace(
            '{direct: {url: "https://api.openai.com"}}',
            '{direct: {url: "https://d.example"}, cdn: {url: "https://c.example"}}',
        )
        + "  VIP: {rank: 1, models: ['*'], multiplier: 0.5}\n"
    )
    facts = explained(capsys, "POST", "/v1/chat/completions", "--model", "gpt-4o-mini", "--key", key)
    assert (facts["tier"]["name"], facts["price"]["tier_multiplier_ppm"]) == ("VIP", 500_000)
    assert {"of": "key", "kind": "requests_per_minute", "limit": 7, "left": 7} in facts["limits"]
    assert [candidate["mirror"] for candidate in facts["candidates"]] == ["cdn"]  # pinned: no other is tried
    refused = explained(capsys, "POST", "/v1/embeddings", "--model", "text-embedding-3-small", "--key", key)
    assert "model_not_permitted" in [refusal["code"] for refusal in refused["refused"]]
    status, said = told(capsys, "explain", "POST", "/v1/embeddings", "--key", "sk-unknown")
    assert (status, said) == (1, "headrace explain: this station has no such key\n")


# -- diff ----------------------------------------------------------------------------------------


def test_diff_of_the_same_file_is_empty(routes, capsys):
    assert told(capsys, "diff", "routes.yaml", "routes.yaml") == (0, "nothing changes\n")
    commented = Path("commented.yaml")
    commented.write_text("# a comment moves all lines\n" + routes.read_text())
    assert told(capsys, "diff", "routes.yaml", "commented.yaml") == (0, "nothing changes\n")


def test_diff_tells_routes_models_prices_and_that_a_secret_is_another(routes, capsys, monkeypatch):
    monkeypatch.setenv("OTHER", "sk-canary-2")
    routes.write_text(routes.read_text() + "prices: {gpt-4o-mini: {input: 0.15}}\n")
    Path("new.yaml").write_text(
        routes.read_text()
        .replace("OPENAI_API_KEY", "OTHER")
        .replace("multiplier: 2", "multiplier: 1.5")
        .replace("0.15", "0.2, output: 0.6")
        + "routes:\n  - {path: /v1/completions, body_limit: 1 MiB}\n  - {path: /v1/extra, operation: chat}\n"
    )
    status, said = told(capsys, "diff", "routes.yaml", "new.yaml")
    assert status == 0
    assert said.splitlines() == [
        "changed  upstream openai",
        "           credentials.main.secret: another secret",
        "changed  route POST /v1/completions",
        "           body_limit: 33554432 -> 1048576",
        "added    route POST /v1/extra",
        "changed  tier Free",
        "           multiplier_ppm: 2000000 -> 1500000",
        "changed  price gpt-4o-mini",
        "           input: 0.15 USD -> 0.2 USD",
        "           output: - -> 0.6 USD",
    ]
    rows = json.loads(told(capsys, "diff", "--json", "routes.yaml", "new.yaml")[1])
    assert {"what": "route", "name": "POST /v1/extra", "change": "added"} in rows


def test_diff_tells_rules_for_parameters_in_words(routes, capsys):
    route = "routes:\n  - {path: /v1/completions, parameters: {refuse: [echo], range: {n: [1, %s]}}}\n"
    for name, most in (("old.yaml", "1"), ("new.yaml", "5")):
        (routes.parent / name).write_text(routes.read_text() + route % most)
    _, said = told(capsys, "diff", "old.yaml", "new.yaml")
    assert said.splitlines()[1:] == [
        "           parameters.rules.'n' must be 1.: true -> -",
        "           parameters.rules.'n' must be a number between 1 and 5.: - -> true",
    ]


def test_diff_of_a_broken_file_tells_its_mistakes(routes, capsys):
    Path("broken.yaml").write_text("models: 5\n")
    status, said = told(capsys, "diff", "routes.yaml", "broken.yaml")
    assert status == 1
    assert "broken.yaml:1:9: models: must be a mapping" in said


TASKS = """
tasks: {midjourney: {upstream: openai}}
prices: {"mj_*": {call: 1 USD}, swap_face: {call: 1 USD}}
results: {keep: {directory: kept}, days: 7, size_limit: 10 MiB, rewrite: true}
"""


def test_explain_tells_what_becomes_of_the_files_of_tasks(routes, capsys):
    routes.write_text(MINIMAL + TASKS)
    said = " ".join(told(capsys, "explain", "GET", "/mj/task/1/fetch")[1].split())
    assert "kept in directory kept for 7 days, up to 10485760 bytes each; answers show our links" in said
    chat = ("explain", "--json", "POST", "/v1/chat/completions", "--model", "gpt-4o-mini")
    assert json.loads(told(capsys, *chat)[1])["files"] is None
