"""The bundle that calls are decided by: prices, permissions, candidates, and how it travels."""

from __future__ import annotations

import gc
import os
import time

import orjson
import pytest

from proxy.compiler import compile_file
from proxy.errors import ConfigError
from proxy.resources import routes
from proxy.snapshot import PIECE_BYTES, Assembly, Rates, Snapshot, pieces, secrets_in
from tests.routing.compiling import ENVIRON, MINIMAL, UPSTREAMS, compile_text, table

INSTALL_S = 0.020  # design.md 3: no chunk waits longer for a new table
DEMO = {"HEADRACE_DEMO_URL": "http://127.0.0.1:9000", "HEADRACE_DEMO_KEY": "demo"}


def snapshot(text: str) -> Snapshot:
    return Snapshot.from_document(compile_text(text).document)


def nanos(price) -> int | None:
    return price and price.content["input"]


# -- prices --------------------------------------------------------------------------------------


def test_the_files_prices_come_before_official_ones_however_particular():
    rates = Rates(
        {"gpt-*": {"input": 1}, "x": {"input": 2}}, {"gpt-4o": {"input": 3}, "claude-*": {"input": 4}}
    )
    found = {name: nanos(rates.price_for(name)) for name in ("gpt-4o", "x", "claude-3", "unknown")}
    assert found == {"gpt-4o": 1, "x": 2, "claude-3": 4, "unknown": None}


def test_official_names_are_in_lower_case():
    assert nanos(Rates({}, {"deepseek-r1": {"input": 1}}).price_for("DeepSeek-R1")) == 1


def test_the_exact_name_then_the_most_literal_glob():
    own = {
        "*": {"input": 1},
        "gpt-*": {"input": 2},
        "gpt-4o*": {"input": 3},
        "gpt-4o": {"input": 4},
        "a?[b]": {"input": 5},
    }
    card = Rates(own, {})
    names = ("gpt-4o", "gpt-4o-mini", "gpt-5", "claude", "a?[b]", "axb")
    assert [nanos(card.price_for(name)) for name in names] == [4, 3, 2, 1, 5, 1]


def test_a_model_without_a_price_has_none():
    card = Rates({"gpt-4o": {"input": 4}, "claude-*": {"input": 1}}, {})
    assert card.price_for("gpt-5") is None
    assert card.price_for("x" * 10_000) is None


def test_official_names_are_lower_case_and_found_in_any():
    card = Rates({"Own": {"input": 1}}, {"qwen/qwen3-32b": {"input": 4}})
    assert nanos(card.price_for("Qwen/Qwen3-32B")) == 4
    assert card.price_for("own") is None


def test_a_price_keeps_its_id_as_long_as_its_content_is_the_same():
    first, second = snapshot(MINIMAL), snapshot(MINIMAL)
    assert first.price_for("gpt-4o-mini").id == second.price_for("gpt-4o-mini").id
    assert first.price_for("gpt-4o-mini") is first.price_for("gpt-4o-mini")
    assert first.price_for("no-such-model") is None


# -- permissions and candidates ------------------------------------------------------------------


def test_permissions_are_globs_and_nothing_means_everything():
    bundle = snapshot(MINIMAL)
    assert bundle.permitted(None, "gpt-4o")
    assert bundle.permitted(["claude-*", "gpt-4*"], "gpt-4o")
    assert not bundle.permitted(("gpt-4",), "gpt-4o")
    assert not bundle.permitted((), "gpt-4o")
    assert not bundle.permitted(("*",), "x" * 10_000)


def test_hostile_names_do_not_fill_the_memory():
    bundle = snapshot(MINIMAL)
    for i in range(20_000):
        bundle.permitted(("gpt-*",), f"gpt-{i}")
    assert len(bundle._permissions) <= 4096


def test_candidates_offer_the_operation_and_are_enabled():
    text = UPSTREAMS.replace("openai:", "openai:\n    operations: [chat]", 1) + (
        '  off: {dialect: openai, mirrors: {d: {url: "https://x.example"}}, credentials: {m: "${env:NO?}"}}\n'
        "models:\n  gpt-4o-mini: {candidates: [{upstream: off}, {upstream: openai}]}\n"
    )
    bundle = snapshot(text)
    model = bundle.model_for("gpt-4o-mini")
    chat = bundle.match("POST", "/v1/chat/completions").route
    embeddings = bundle.match("POST", "/v1/embeddings").route
    assert [c.upstream for c in bundle.candidates(chat, model)] == ["openai"]
    assert bundle.candidates(embeddings, model) == ()
    assert bundle.offered("openai", "chat").path == "/v1/chat/completions"
    assert bundle.offered("openai", "embeddings") is None
    assert bundle.candidates(chat, None) == ()


def test_the_models_word_beats_the_upstreams_when_a_client_leaves():
    text = UPSTREAMS + (
        "    on_disconnect: {drain: 7s}\n"
        "models:\n"
        "  gpt-4o-mini: {candidates: [{upstream: openai}], on_disconnect: cancel}\n"
        "  text-embedding-3-small: {candidates: [{upstream: openai}]}\n"
    )
    bundle = snapshot(text)
    upstream = bundle.upstream("openai")
    assert bundle.on_disconnect(bundle.model_for("gpt-4o-mini"), upstream).kind == "cancel"
    assert bundle.on_disconnect(bundle.model_for("text-embedding-3-small"), upstream).drain_ms == 7_000
    assert bundle.on_disconnect(None, upstream).drain_ms == 7_000


def test_a_document_of_another_build_is_refused():
    document = compile_text(MINIMAL).document
    document["upstreams"][0]["dialect"] = "suno"
    with pytest.raises(ValueError, match="suno"):
        Snapshot.from_document(document)


# -- pieces --------------------------------------------------------------------------------------


def large(models: int) -> dict:
    rows = "".join(
        f"  model-{i}: {{context: 8192, candidates: [{{upstream: openai, as: m{i}}}]}}\n"
        for i in range(models)
    )
    document = compile_text(UPSTREAMS + "models:\n" + rows + 'prices: {"model-*": {input: 1}}\n').document
    document["prices"] = {f"model-{i}": {"input": i, "output": 2 * i} for i in range(models)}
    return document


def test_pieces_put_together_are_the_document():
    document = large(3_000)
    parts = list(pieces(document))
    assert len(parts) > 5
    assert max(map(len, parts)) < 2 * PIECE_BYTES
    assembly = Assembly()
    for part in parts:
        assembly.add(part.decode())
    assert assembly.document == orjson.loads(orjson.dumps(document))
    assert assembly.snapshot().model_for("model-2999").candidates[0].as_model == "m2999"


def test_a_missing_piece_is_noticed():
    assembly = Assembly()
    for part in list(pieces(large(10)))[1:]:
        assembly.add(part)
    with pytest.raises(KeyError):
        assembly.snapshot()


def test_ten_thousand_models_are_installed_without_holding_up_a_stream():
    parts = list(pieces(large(10_000)))
    gc.collect()
    gc.disable()  # workers freeze and collect rarely
    try:
        longest = min(max(steps(parts)) for _ in range(3))
    finally:
        gc.enable()
    assert longest < INSTALL_S


def steps(parts: list[bytes]) -> list[float]:
    """CPU seconds of each step between which the loop may run."""
    assembly, taken = Assembly(), []
    for work in (*((assembly.add, part) for part in parts), (assembly.snapshot,)):
        began = time.process_time()
        work[0](*work[1:])
        taken.append(time.process_time() - began)
    return taken


# -- the committed routes.yaml -------------------------------------------------------------------

ASKS = [
    ("gpt-4o-mini", "/v1/chat/completions", "openai", "OPENAI_API_KEY", "demo"),
    ("text-embedding-3-small", "/v1/embeddings", "openai", "OPENAI_API_KEY", "demo"),
    ("claude-sonnet-4-5", "/v1/messages", "anthropic", "ANTHROPIC_API_KEY", "demo-anthropic"),
    ("gemini-2.5-flash", "/v1/chat/completions", "gemini", "GEMINI_API_KEY", "demo"),
]


@pytest.mark.parametrize(("model", "path", "upstream", "variable", "demo"), ASKS)
def test_the_committed_file_serves_the_demo_and_prefers_the_vendor(model, path, upstream, variable, demo):
    for environ, expected in ((DEMO, [demo]), ({**DEMO, variable: "sk-real"}, [upstream, demo])):
        bundle = Snapshot.from_document(compile_file(routes(), environ).document)
        route = bundle.match("POST", path).route
        candidates = bundle.candidates(route, bundle.model_for(model))
        assert [c.upstream for c in sorted(candidates, key=lambda c: c.priority)] == expected
        assert bundle.price_for(model).content["input"] > 0
        assert bundle.permitted(bundle.tier("").models, model)


def test_the_committed_file_needs_no_environment():
    compiled = compile_file(routes(), {})
    assert all("is disabled" in warning for warning in compiled.warnings)


# -- files that are none -------------------------------------------------------------------------


def test_a_fifo_a_folder_and_a_missing_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, why in (("fifo", "not a regular file"), (".", "Is a directory"), ("none", "No such file")):
        with pytest.raises(ConfigError, match=f":1:1: cannot be read: .*{why}"):
            compile_file(tmp_path / name, {})


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "routes.yaml", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="larger than"):
        compile_file(tmp_path / "routes.yaml", {})


def test_bytes_that_are_no_text_are_told_with_their_place(tmp_path):
    (tmp_path / "routes.yaml").write_bytes(b"station:\n  name: caf\xc3\xa9 \xff\n")
    with pytest.raises(ConfigError, match=r"routes\.yaml:2:14: is not UTF-8"):
        compile_file(tmp_path / "routes.yaml", {})


def test_a_secret_file_lies_beside_the_file_that_names_it(tmp_path):
    (tmp_path / "key").write_text("sk-beside\n")
    text = MINIMAL.replace("${env:OPENAI_API_KEY}", "${file:key}")
    (tmp_path / "routes.yaml").write_text(text)
    compiled = compile_file(tmp_path / "routes.yaml", {})
    assert compiled.document["upstreams"][0]["credentials"][0]["secret"] == "sk-beside"


def test_the_secrets_of_a_table_are_those_of_credentials_and_of_proxies():
    text = MINIMAL.replace('"https://api.openai.com"', '"https://api.openai.com", via: "${env:VIA}"')
    environ = {**ENVIRON, "VIA": "http://ada:hidden@proxy.example:3128"}
    assert set(secrets_in(table(text, environ))) == {ENVIRON["OPENAI_API_KEY"], "hidden"}
