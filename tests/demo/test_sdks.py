"""The vendors' own SDKs against the demo upstream."""

from __future__ import annotations

import json
import math

import aiohttp
import pytest

from tests.waiting import until

from .conftest import KEY

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
genai = pytest.importorskip("google.genai")

ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is backpressure?"}]


@pytest.fixture
async def client(demo: str):
    async with openai.AsyncOpenAI(base_url=demo + "/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(demo: str):
    async with anthropic.AsyncAnthropic(base_url=demo, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def google(demo: str):
    options = genai.types.HttpOptions(base_url=demo, api_version="v1beta")
    async with genai.Client(api_key=KEY, http_options=options).aio as client:
        yield client


async def test_a_stream_says_and_costs_the_same_as_a_whole_answer(client) -> None:
    whole = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK)
    stream = await client.chat.completions.create(
        model="gpt-4o-mini", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert "backpressure" in text.lower()
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


async def test_a_stream_without_include_usage_reports_none(client) -> None:
    stream = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_token_limit_ends_the_answer(client, name: str) -> None:
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, **{name: 5})
    assert answer.choices[0].finish_reason == "length"
    assert 0 < answer.usage.completion_tokens <= 5


async def test_n_answers_differ_and_are_all_counted(client) -> None:
    one = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK)
    three = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in three.choices}) == 3
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens > one.usage.completion_tokens
    stream = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, n=3, stream=True)
    texts = ["", "", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in three.choices]


async def test_a_chinese_prompt_gets_a_chinese_answer(client) -> None:
    messages = [{"role": "user", "content": "什么是令牌？"}]
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=messages)
    assert "什么是令牌" in answer.choices[0].message.content


async def test_legacy_completions_stream_and_stop_at_sixteen_tokens(client) -> None:
    whole = await client.completions.create(model="gpt-3.5-turbo", prompt=["one", "two"])
    assert len(whole.choices) == 2
    assert whole.usage.completion_tokens <= 32
    stream = await client.completions.create(model="gpt-3.5-turbo", prompt="one", stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == whole.choices[0].text


async def test_embeddings_are_unit_vectors_and_repeat(client) -> None:
    first = await client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])  # base64
    plain = await client.embeddings.create(
        model="text-embedding-3-small", input="a", encoding_format="float", dimensions=1536
    )
    a, b = (item.embedding for item in first.data)
    assert len(a) == 1536
    assert math.isclose(sum(x * x for x in a), 1, abs_tol=1e-5)
    assert a == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert a != b
    assert first.usage.prompt_tokens == first.usage.total_tokens == 2


async def test_images_are_pngs_and_moderation_flags(client) -> None:
    image = await client.images.generate(model="gpt-image-1", prompt="a red fox", n=2)
    assert [item.b64_json[:8] for item in image.data] == ["iVBORw0K"] * 2
    assert image.usage.total_tokens == image.usage.input_tokens + image.usage.output_tokens
    verdicts = await client.moderations.create(input=["I love you", "I will kill you"])
    assert [result.flagged for result in verdicts.results] == [False, True]


async def test_models_are_listed(client) -> None:
    names = {model.id async for model in client.models.list()}
    assert {"gpt-4o-mini", "claude-sonnet-4-5", "text-embedding-3-small", "gemini-2.5-flash"} <= names


async def test_refusals_are_raised_by_the_openai_sdk(demo: str, client) -> None:
    stranger = client.with_options(api_key="sk-wrong")
    with pytest.raises(openai.AuthenticationError) as refused:
        await stranger.chat.completions.create(model="gpt-4o-mini", messages=ASK)
    assert refused.value.code == "invalid_api_key"
    assert refused.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, n=99)
    with pytest.raises(openai.NotFoundError):
        await client.fine_tuning.jobs.list()


async def test_messages_stream_says_and_costs_the_same_as_a_whole_message(claude) -> None:
    ask = {"model": "claude-sonnet-4-5", "max_tokens": 500, "system": "Be brief.", "messages": ASK[1:]}
    whole = await claude.messages.create(**ask)
    async with claude.messages.stream(**ask) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    counted = await claude.messages.count_tokens(
        model=ask["model"], system=ask["system"], messages=ask["messages"]
    )
    assert counted.input_tokens == whole.usage.input_tokens


async def test_max_tokens_ends_a_message(claude) -> None:
    ask = {"model": "claude-sonnet-4-5", "max_tokens": 4, "messages": ASK[1:]}
    message = await claude.messages.create(**ask)
    assert message.stop_reason == "max_tokens"
    assert 0 < message.usage.output_tokens <= 4


async def test_refusals_are_raised_by_the_anthropic_sdk(claude) -> None:
    with pytest.raises(anthropic.AuthenticationError) as refused:
        await claude.with_options(api_key="sk-wrong").messages.create(
            model="claude-sonnet-4-5", max_tokens=4, messages=ASK[1:]
        )
    assert refused.value.request_id.startswith("req_")
    with pytest.raises(anthropic.BadRequestError):
        await claude.messages.create(model="claude-sonnet-4-5", max_tokens=0, messages=ASK[1:])


async def test_a_response_says_the_same_whole_streamed_and_asked_for_again(client) -> None:
    whole = await client.responses.create(model="gpt-4o-mini", input="What is backpressure?")
    assert whole.status == "completed" and "backpressure" in whole.output_text.lower()
    stream = await client.responses.create(model="gpt-4o-mini", input="What is backpressure?", stream=True)
    events = [event async for event in stream]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.completed" and events[-1].response.usage == whole.usage
    again = await client.responses.retrieve(whole.id)
    assert (again.output_text, again.usage) == (whole.output_text, whole.usage)
    assert len((await client.responses.input_items.list(whole.id)).data) == 1
    await client.responses.delete(whole.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(whole.id)


async def test_a_response_in_the_background_is_ready_later(client) -> None:
    queued = await client.responses.create(model="gpt-4o-mini", input="Hi", background=True)
    assert (queued.status, queued.usage) == ("queued", None)
    assert (await client.responses.retrieve(queued.id)).status in ("in_progress", "completed")
    cut = await client.responses.create(model="gpt-4o-mini", input="Tell me all", max_output_tokens=5)
    assert cut.status == "incomplete" and 0 < cut.usage.output_tokens <= 5


async def test_a_file_is_kept_and_a_batch_of_it_is_answered(client) -> None:
    ask = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "What is backpressure?"}]}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": ask}
    lines = [json.dumps({"custom_id": str(number), **line}) for number in range(3)]
    sent = await client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    assert (await client.files.retrieve(sent.id)).bytes == sent.bytes > 0
    job = await client.batches.create(
        input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert (job.status, job.usage) == ("in_progress", None)

    async def over():
        return (told := await client.batches.retrieve(job.id)).status == "completed" and told

    done = await until(over)
    output = (await client.files.content(done.output_file_id)).text.splitlines()
    answers = [json.loads(line)["response"]["body"] for line in output]
    assert len(answers) == 3 and done.request_counts.completed == 3
    assert done.usage.total_tokens == sum(answer["usage"]["total_tokens"] for answer in answers)
    assert (await client.batches.cancel(job.id)).status == "completed"
    late = await client.batches.create(
        input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert (await client.batches.cancel(late.id)).status == "cancelled"
    await client.files.delete(sent.id)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(sent.id)
    with pytest.raises(openai.BadRequestError):
        await client.batches.create(
            input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h"
        )


async def test_what_is_spoken_can_be_heard(client) -> None:
    spoken = await client.audio.speech.create(model="tts-1", voice="alloy", input="one two three")
    assert spoken.content.startswith(b"RIFF")
    heard = await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", spoken.content))
    assert heard.usage.type == "duration" and heard.usage.seconds == 1
    cues = await client.audio.translations.create(
        model="whisper-1", file=("a.wav", spoken.content), response_format="srt"
    )
    assert "--> 00:00:01,000" in str(cues)
    stream = await client.audio.transcriptions.create(
        model="gpt-4o-mini-transcribe", file=("a.wav", spoken.content), stream=True
    )
    events = [event async for event in stream]
    assert events[-1].type == "transcript.text.done" and events[-1].text == heard.text


async def test_a_picture_is_edited(client) -> None:
    drawn = await client.images.edit(model="gpt-image-1", image=("a.png", b"\x89PNG"), prompt="a cat", n=2)
    assert len(drawn.data) == 2 and drawn.usage.input_tokens_details.image_tokens > 0


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["C", "F"]},
        "at": {"type": "array", "items": {"type": "string"}},
        "options": {"type": "object", "properties": {"short": {"type": "boolean"}}},
    },
}
ARGUMENTS = {"city": "What is backpressure?", "days": 1, "unit": "C", "at": [], "options": {"short": True}}


async def test_a_function_that_is_offered_is_called_with_what_its_schema_wants(client) -> None:
    ask = {"model": "gpt-4o-mini", "messages": ASK}
    tool = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
    whole = await client.chat.completions.create(**ask, tools=[tool])
    (called,) = whole.choices[0].message.tool_calls
    assert (called.function.name, json.loads(called.function.arguments)) == ("look", ARGUMENTS)
    assert whole.choices[0].finish_reason == "tool_calls" and whole.usage.completion_tokens > 10
    silent = await client.chat.completions.create(**ask, tools=[tool], tool_choice="none")
    assert silent.choices[0].message.content and not silent.choices[0].message.tool_calls


async def test_a_function_without_a_schema_is_called_with_nothing(client) -> None:
    tool = {"type": "function", "name": "look", "parameters": None}
    answer = await client.responses.create(model="gpt-4o-mini", input="Look!", tools=[tool])
    assert (answer.output[0].name, answer.output[0].arguments) == ("look", "{}")


async def test_gemini_says_and_costs_the_same_in_every_form(demo: str, google) -> None:
    ask = {"model": "gemini-2.5-flash", "contents": "What is backpressure?"}
    whole = await google.models.generate_content(**ask)
    chunks = [chunk async for chunk in await google.models.generate_content_stream(**ask)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].usage_metadata == whole.usage_metadata
    assert (await google.models.count_tokens(**ask)).total_tokens == whole.usage_metadata.prompt_token_count
    body = {"contents": [{"parts": [{"text": "What is backpressure?"}]}]}
    url = f"{demo}/v1beta/models/gemini-2.5-flash:streamGenerateContent"
    async with (
        aiohttp.ClientSession(headers={"x-goog-api-key": KEY}) as session,
        session.post(url, json=body) as answer,
    ):
        listed = await answer.json()
    assert "".join(c["candidates"][0]["content"]["parts"][0]["text"] for c in listed) == whole.text


async def test_gemini_embeds_calls_functions_and_refuses(google) -> None:
    found = await google.models.embed_content(model="gemini-embedding-001", contents=["a", "b"])
    assert [len(one.values) for one in found.embeddings] == [3072, 3072]
    look = genai.types.FunctionDeclaration(name="look", parameters_json_schema=SCHEMA)
    config = {"tools": [genai.types.Tool(function_declarations=[look])]}
    ask = {"model": "gemini-2.5-flash", "config": config}
    answer = await google.models.generate_content(contents="What is backpressure?", **ask)
    assert answer.function_calls[0].args == ARGUMENTS
    with pytest.raises(genai.errors.ClientError) as refused:
        await google.models.generate_content(
            model="gemini-2.5-flash", contents="Hi", config={"max_output_tokens": -1}
        )
    assert refused.value.status == "INVALID_ARGUMENT"
