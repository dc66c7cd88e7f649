"""A hold is bounded by the request's own words, never by its base64."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.metering.bounds import (
    EDITED_IMAGES,
    IMAGE_OUTPUT_TOKENS,
    IMAGE_TOKENS,
    KEPT_TOKENS,
    OUTPUT_TOKENS,
    TOOL_CALL_TOKENS,
    TOOL_CALLS,
    TOOLS_TOKENS,
    TRAINING_TOKENS,
    Bound,
    hold_bound,
    plain_bound,
)
from proxy.metering.count import count_tokens
from proxy.metering.parts import AUDIO_BYTES_PER_TOKEN, AUDIO_TOKENS_LEAST, DOCUMENT_TOKENS
from proxy.metering.sound import Upload
from proxy.metering.usage import Usage


def bound(
    doc: dict[str, Any], operation: str = "chat", context: int | None = None, max_output: int | None = None
) -> Bound:
    return hold_bound(operation, doc, len(orjson.dumps(doc)), context, max_output)


def chat(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}], **more}


def test_text_is_bounded_by_a_third_of_its_bytes():
    doc = {"messages": [{"role": "user", "content": "x" * 3000}]}
    assert 1000 <= bound(doc).usage.input <= 1020


@pytest.mark.parametrize(
    "text", ["The quick brown fox jumps over the lazy dog. " * 50, "今天天气很好，我们去公园散步。" * 50]
)
def test_ordinary_text_has_fewer_tokens_than_its_bound(text: str):
    doc = {"messages": [{"role": "user", "content": text}]}
    assert count_tokens([text], "gpt-4o") <= bound(doc).usage.input


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 900_000}},
        {"type": "image_url", "image_url": "data:image/png;base64," + "A" * 900_000},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 900_000}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {
            "type": "tool_result",
            "content": [{"type": "image", "source": {"type": "base64", "data": "A" * 900_000}}],
        },
    ],
)
def test_an_image_counts_as_an_image_and_not_by_its_base64(part: dict[str, Any]):
    usage = bound(chat({"type": "text", "text": "What is it?"}, part)).usage
    assert usage.input_image == IMAGE_TOKENS
    assert usage.input < 200


def test_a_recording_is_bounded_by_its_length():
    usage = bound(
        chat({"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "mp3"}})
    ).usage
    assert 2400 <= usage.input_audio <= 3000
    assert usage.input < 100


def test_a_document_is_bounded_by_its_bytes_or_as_declared():
    pdf = {"type": "document", "source": {"type": "base64", "data": "A" * 40_000}}
    assert 15_000 <= bound(chat(pdf)).usage.input <= 15_200
    assert bound(chat({"type": "file", "file": {"file_id": "file-1"}})).usage.input >= DOCUMENT_TOKENS


def test_token_ids_count_as_what_they_are():
    assert bound({"input": list(range(9))}, "embeddings").usage.input >= 9
    assert bound({"prompt": [[1] * 700, [2] * 300]}, "completions").usage.input >= 1000


def test_what_does_not_fit_into_the_context_cannot_come_in():
    usage = bound({"messages": [{"role": "user", "content": "x" * 60_000}]}, context=4096).usage
    assert usage.input_tokens_all() == 4096


@pytest.mark.parametrize(
    ("doc", "max_output", "output"),
    [
        ({"max_tokens": 100}, None, 100),
        ({"max_completion_tokens": 100, "max_tokens": 50}, None, 100),
        ({"max_tokens": 100}, 64, 64),
        ({"max_tokens": None}, 4096, 4096),
        ({}, None, OUTPUT_TOKENS),
        ({"max_tokens": 100, "n": 5}, None, 500),
        ({"max_tokens": 100, "n": "5"}, None, 500),
        ({"max_tokens": 100, "n": 2.0}, None, 200),
        ({"max_tokens": 100, "n": 1, "best_of": 3}, None, 300),
        ({"max_tokens": 100, "n": 0}, None, 100),
        ({"max_tokens": 100, "n": None}, None, 100),
        ({"max_tokens": 0}, None, 0),
        ({"max_tokens": [1]}, None, OUTPUT_TOKENS),
    ],
)
def test_output_is_what_was_asked_for_times_n(doc: dict[str, Any], max_output: int | None, output: int):
    assert bound(doc, max_output=max_output).usage.output == output


TURN = {"role": "user", "content": "x" * 300}


@pytest.mark.parametrize(
    ("more", "context", "max_output"),
    [
        ({}, None, None),
        ({"temperature": 1, "max_tokens": 100}, 128_000, 16_384),
        ({"max_tokens": "70", "max_completion_tokens": 90}, 50, 64),
        ({"max_tokens": None, "previous_response_id": "r"}, 128_000, None),
    ],
)
def test_a_plain_conversation_is_bounded_as_it_is_where_more_is_asked_for(
    more: dict[str, Any], context: int | None, max_output: int | None
):
    doc = {"messages": [TURN, {**TURN, "name": "me"}], **more}
    plain = plain_bound(doc, 700, context, max_output)
    usage = hold_bound("text", {**doc, "n": 1}, 700, context, max_output).usage
    assert plain == (usage.input, usage.output)
    assert usage == Usage(calls=1, input=usage.input, output=usage.output)
    assert hold_bound("text", doc, 700, context, max_output).usage == usage


@pytest.mark.parametrize(
    "doc",
    [
        {},
        {"messages": TURN},
        {"messages": ["x"]},
        {"messages": [TURN, {"role": "assistant", "content": None}]},
        {"messages": [{"content": "x", "type": "message"}]},
        {"messages": [{**TURN, "images": ["A" * 900]}]},
        {"messages": [{**TURN, "cache_control": {"type": "ephemeral"}}]},
        {"messages": [TURN], "n": 2},
        {"messages": [TURN], "best_of": 2},
        {"messages": [TURN], "modalities": ["audio"]},
        {"messages": [TURN], "system": "x"},
        {"messages": [TURN], "tools": []},
        {"messages": [TURN], "options": {"num_predict": 5}},
    ],
)
def test_what_asks_for_more_than_one_text_is_no_plain_conversation(doc: dict[str, Any]):
    assert plain_bound(doc, 700, None, None) is None


def test_spoken_output_is_bounded_as_sound():
    usage = bound({"max_tokens": 70, "modalities": ["text", "audio"]}).usage
    assert (usage.output, usage.output_audio) == (0, 70)


def test_embeddings_have_no_output():
    assert bound({"input": "hello"}, "embeddings").usage.output_tokens_all() == 0


def test_images_are_held_by_piece_and_by_token():
    usage = bound({"prompt": "a cat", "n": 4}, "images").usage
    assert (usage.images, usage.output_image, usage.calls) == (4, 4 * IMAGE_OUTPUT_TOKENS, 1)


def test_server_tools_bring_calls_and_what_they_find():
    usage = bound(chat(tools=[{"type": "web_search_20250305", "max_uses": 2}, {"name": "own"}])).usage
    assert usage.tools == {"web_search": 2}
    assert usage.input >= TOOLS_TOKENS + 2 * TOOL_CALL_TOKENS
    assert bound(chat(web_search_options={})).usage.tools == {"web_search": TOOL_CALLS}


@pytest.mark.parametrize(
    ("control", "bucket"),
    [
        ({"type": "ephemeral"}, "cache_write_5m"),
        ({"type": "ephemeral", "ttl": "1h"}, "cache_write_1h"),
        (None, "input"),
    ],
)
def test_what_may_be_written_to_a_cache_is_held_at_that_price(control: Any, bucket: str):
    part = {"type": "text", "text": "x" * 300}
    usage = bound(chat({**part, "cache_control": control} if control else part), "messages").usage
    assert getattr(usage, bucket) >= 100
    assert getattr(usage, bucket) == usage.input_tokens_all()


@pytest.mark.parametrize(
    "doc",
    [
        {"messages": 5},
        {"messages": [5, None, {"content": [7, {"type": []}]}]},
        {"messages": [{"content": [{"type": "image_url", "image_url": 5}]}]},
        {"tools": {"a": 1}, "input": {"b": 2}, "modalities": 3, "cache_control": []},
        {"messages": [{"content": [{"type": "file"}, {"type": "input_audio", "cache_control": 3}]}]},
    ],
)
def test_a_request_that_makes_no_sense_still_has_a_bound(doc: dict[str, Any]):
    assert bound(doc).usage.input_tokens_all() > 0


# -- requests of other families --------------------------------------------------------------------

BASE64 = "A" * 400_000


@pytest.mark.parametrize(
    "doc",
    [
        {"contents": [{"parts": [{"text": "x"}, {"inlineData": {"mimeType": "image/png", "data": BASE64}}]}]},
        {"contents": [{"parts": [{"inline_data": {"mime_type": "image/png", "data": BASE64}}]}]},
        {"messages": [{"role": "user", "content": "x", "images": [BASE64]}]},
        {
            "input": {
                "messages": [{"role": "user", "content": [{"image": f"data:image/png;base64,{BASE64}"}]}]
            }
        },
    ],
)
def test_a_picture_is_no_text_however_a_family_sends_it(doc):
    usage = bound(doc).usage
    assert usage.input_image == IMAGE_TOKENS
    assert usage.input < 100


def test_sound_and_documents_of_gemini_count_by_their_bytes():
    parts = [
        {"inlineData": {"mimeType": "audio/mp3", "data": BASE64}},
        {"inlineData": {"mimeType": "application/pdf", "data": BASE64}},
    ]
    usage = bound({"contents": [{"parts": parts}]}).usage
    assert usage.input_audio == AUDIO_TOKENS_LEAST + 300_000 // AUDIO_BYTES_PER_TOKEN
    assert 150_000 <= usage.input < 150_100


@pytest.mark.parametrize(
    ("doc", "output"),
    [
        ({"contents": [], "generationConfig": {"maxOutputTokens": 100, "candidateCount": 2}}, 200),
        ({"contents": [], "generation_config": {"max_output_tokens": "100"}}, 100),
        ({"prompt": "x", "options": {"num_predict": 50}}, 50),
        ({"prompt": "x", "options": {"num_predict": -1}}, OUTPUT_TOKENS),
        ({"input": {}, "parameters": {"max_tokens": 70}}, 70),
    ],
)
def test_limits_in_an_object_of_the_request_bound_the_output(doc, output):
    assert bound(doc).usage.output == output


@pytest.mark.parametrize(
    ("kind", "doc", "units"),
    [
        ("pages", {"document": {}}, {"page": 1000}),
        ("pages", {"document": {}, "pages": [0, 1, 2]}, {"page": 3}),
        ("rerank", {"query": "q", "documents": ["a"] * 250}, {"search_unit": 3}),
    ],
)
def test_what_is_sold_by_units_is_held_by_units(kind, doc, units):
    found = bound(doc, kind).usage
    assert (found.units, found.output) == (units, 0)


@pytest.mark.parametrize("name", ["previous_response_id", "conversation"])
def test_what_is_kept_at_the_vendor_is_read_again(name: str):
    doc = {"input": "go on", name: "x_1"}
    assert bound(doc, "text").usage.input >= KEPT_TOKENS
    assert bound(doc, "text", context=8000).usage.input_tokens_all() <= 8000


def test_speech_is_bounded_by_its_characters_and_what_they_sound_like():
    usage = bound({"model": "tts-1", "input": "x" * 400}, "speech").usage
    assert (usage.characters, usage.output_audio, usage.output) == (400, 600, 0)


def test_a_recording_is_bounded_by_how_long_it_lasts():
    form = {"model": "whisper-1", "prompt": "x" * 300, "file": Upload(b"OggS", 40_000)}
    usage = hold_bound("transcription", form, 0, None, None).usage
    assert (usage.seconds_ms, usage.input_audio, usage.output) == (10_000, 120, 50)
    assert usage.input == (300 + len("whisper-1")) // 3


def test_an_edited_picture_is_bounded_by_its_fields_and_pictures_not_by_its_file():
    form = {"prompt": "x" * 300, "n": "2", "file": Upload(b"\x89PNG", 9_000_000)}
    usage = hold_bound("images", form, 0, None, None).usage
    assert (usage.images, usage.output_image) == (2, 2 * IMAGE_OUTPUT_TOKENS)
    assert (usage.input, usage.input_image) == (100, EDITED_IMAGES * IMAGE_TOKENS)


@pytest.mark.parametrize("kind", ["calls", "training"])
def test_what_is_sold_by_the_call_has_no_output(kind: str):
    usage = bound({"model": "m", "max_tokens": 500}, kind).usage
    assert (usage.calls, usage.output_tokens_all()) == (1, 0)
    assert usage.units == ({"training_input": TRAINING_TOKENS} if kind == "training" else {})
