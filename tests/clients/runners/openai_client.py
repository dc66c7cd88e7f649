"""openai 1.x and newer: OpenAI, AsyncOpenAI, AzureOpenAI, and the module-level client."""

import asyncio
import base64

import openai
from ways import (
    ASK,
    BASE,
    BUSY_MODEL,
    CHAT_MODEL,
    CLAUDE_MODEL,
    EMBEDDING_MODEL,
    HEARING_MODEL,
    IMAGE_MODEL,
    KEY,
    NEVER_MODEL,
    SPEECH_MODEL,
    WEATHER,
    check_same,
    check_usage,
    check_weather,
    run,
    waiting_as_told,
)


def client(path: str = "/v1", **settings) -> openai.OpenAI:
    return openai.OpenAI(base_url=BASE + path, api_key=KEY, max_retries=0, **settings)


def azure() -> openai.AzureOpenAI:
    return openai.AzureOpenAI(azure_endpoint=BASE, api_key=KEY, api_version="2024-10-21", max_retries=0)


def said(chunks) -> list[str]:
    return [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]


def chat_both_ways(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=ASK, temperature=0.3)
    usage = answer.usage
    check_usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    chunks = list(client.chat.completions.create(model=model, messages=ASK, temperature=0.3, stream=True))
    check_same(said(chunks), answer.choices[0].message.content)
    assert all(c.choices for c in chunks), "an event that was not asked for: injected usage must be cut out"


def chat() -> None:
    chat_both_ways(client(), CHAT_MODEL)


def chat_with_a_slash_after_v1() -> None:
    chat_both_ways(client("/v1/"), CHAT_MODEL)


def chat_without_v1() -> None:
    chat_both_ways(client(""), CHAT_MODEL)


def chat_with_v1_twice() -> None:
    chat_both_ways(client("/v1/v1"), CHAT_MODEL)


def chat_with_another_vendors_model() -> None:
    chat_both_ways(client(), "gemini-2.5-flash")


def chat_of_the_module() -> None:
    openai.base_url, openai.api_key = BASE + "/v1/", KEY
    answer = openai.chat.completions.create(model=CHAT_MODEL, messages=ASK)
    assert answer.choices[0].message.content


def usage_that_was_asked_for_arrives_last() -> None:
    chunks = list(
        client().chat.completions.create(
            model=CHAT_MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    check_usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def chat_in_parallel() -> None:
    async def ask_many() -> list[str]:
        async with openai.AsyncOpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0) as many:
            calls = [many.chat.completions.create(model=CHAT_MODEL, messages=ASK) for _ in range(2)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    first, second = asyncio.run(ask_many())
    assert first == second != ""


def completion() -> None:
    ask = {"model": CHAT_MODEL, "prompt": "I am a", "max_tokens": 7}
    whole = client().completions.create(**ask).choices[0].text
    chunks = client().completions.create(**ask, stream=True)
    check_same([c.choices[0].text for c in chunks if c.choices and c.choices[0].text], whole)


def embedding() -> None:
    for encoding in ("float", "base64"):
        answer = client().embeddings.create(model=EMBEDDING_MODEL, input="hello", encoding_format=encoding)
        assert answer.data[0].embedding
        assert answer.usage.total_tokens > 0


def moderation() -> None:
    answer = client().moderations.create(model="omni-moderation-latest", input="I will kill him")
    assert answer.results[0].flagged


def tools() -> None:
    ask = {"model": CHAT_MODEL, "tools": [{"type": "function", "function": WEATHER}]}
    message = client().chat.completions.create(messages=ASK, **ask).choices[0].message
    (called,) = message.tool_calls
    check_weather(called.function.name, called.function.arguments)
    deltas = [
        delta.function
        for chunk in client().chat.completions.create(messages=ASK, stream=True, **ask)
        for choice in chunk.choices
        for delta in choice.delta.tool_calls or ()
    ]
    assert deltas[0].name == "get_weather"
    check_same([delta.arguments for delta in deltas], called.function.arguments)
    result = {"role": "tool", "tool_call_id": called.id, "content": "Sunny."}
    answer = client().chat.completions.create(messages=[*ASK, message, result], **ask).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content


def response() -> None:
    whole = client().responses.create(model=CHAT_MODEL, input="Say this is a test!")
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(client().responses.create(model=CHAT_MODEL, input="Say this is a test!", stream=True))
    check_same([e.delta for e in events if e.type == "response.output_text.delta"], whole.output_text)
    tool = {"type": "function", "strict": False, **WEATHER}
    (called,) = client().responses.create(model=CHAT_MODEL, input="How warm?", tools=[tool]).output
    check_weather(called.name, called.arguments)


def a_response_is_found_again_and_deleted() -> None:
    made = client().responses.create(model=CHAT_MODEL, input="Say this is a test!", store=True)
    assert client().responses.retrieve(made.id).output_text == made.output_text
    client().responses.delete(made.id)
    try:
        client().responses.retrieve(made.id)
    except openai.NotFoundError:
        return
    raise AssertionError("still there")


def image() -> None:
    (drawn,) = client().images.generate(model=IMAGE_MODEL, prompt="a red fox").data
    picture = base64.b64decode(drawn.b64_json)
    assert picture.startswith(b"\x89PNG")
    (edited,) = client().images.edit(model=IMAGE_MODEL, image=("a.png", picture), prompt="a cat").data
    assert base64.b64decode(edited.b64_json).startswith(b"\x89PNG")


def audio() -> None:
    ask = {"model": SPEECH_MODEL, "voice": "alloy", "input": "one two three"}
    spoken = client().audio.speech.create(**ask).content
    assert spoken.startswith(b"RIFF")
    with client().audio.speech.with_streaming_response.create(**ask) as stream:
        assert b"".join(stream.iter_bytes()) == spoken
    for kind in (client().audio.transcriptions, client().audio.translations):
        assert kind.create(model=HEARING_MODEL, file=("a.wav", spoken)).text
    cues = client().audio.transcriptions.create(
        model=HEARING_MODEL, file=("a.wav", spoken), response_format="srt"
    )
    assert "-->" in cues


def what_was_stored_is_listed() -> None:
    for listed in (client().files.list(), client().batches.list()):
        assert listed.data == [], listed


def models() -> None:
    ids = {model.id for model in client().models.list()}
    assert {CHAT_MODEL, CLAUDE_MODEL, EMBEDDING_MODEL} <= ids, ids


def azure_chat() -> None:
    chat_both_ways(azure(), CHAT_MODEL)


def azure_embedding() -> None:
    assert azure().embeddings.create(model=EMBEDDING_MODEL, input="hello").data[0].embedding


def a_wrong_key_is_an_authentication_error() -> None:
    try:
        openai.OpenAI(base_url=BASE + "/v1", api_key="sk-wrong").models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key", error.body
        return
    raise AssertionError("accepted")


def an_unknown_model_is_a_not_found_error() -> None:
    try:
        client().chat.completions.create(model="no-such-model", messages=ASK)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error.body
        assert error.request_id
        return
    raise AssertionError("accepted")


def what_is_wrong_in_a_body_is_a_bad_request_error() -> None:
    try:
        client().chat.completions.create(model=CHAT_MODEL, messages=ASK, n=99)
    except openai.BadRequestError as error:
        assert error.type == "invalid_request_error", error.body
        return
    raise AssertionError("accepted")


def a_busy_model_is_a_rate_limit_error() -> None:
    try:
        client().chat.completions.create(model=NEVER_MODEL, messages=ASK)
    except openai.RateLimitError as error:
        assert int(error.response.headers["retry-after"]) >= 1
        assert error.code == "upstream_rate_limited", error.body
        return
    raise AssertionError("accepted")


def a_busy_model_is_asked_again_when_it_said() -> None:
    patient = client().with_options(max_retries=3)
    with waiting_as_told():
        answer = patient.chat.completions.create(model=BUSY_MODEL, messages=ASK)
    assert answer.choices[0].message.content == "Here."


def the_request_id_is_told() -> None:
    assert client().chat.completions.create(model=CHAT_MODEL, messages=ASK)._request_id


run(
    chat,
    chat_with_a_slash_after_v1,
    chat_without_v1,
    chat_with_v1_twice,
    chat_with_another_vendors_model,
    chat_of_the_module,
    usage_that_was_asked_for_arrives_last,
    chat_in_parallel,
    completion,
    embedding,
    tools,
    response,
    a_response_is_found_again_and_deleted,
    image,
    audio,
    moderation,
    what_was_stored_is_listed,
    models,
    azure_chat,
    azure_embedding,
    a_wrong_key_is_an_authentication_error,
    an_unknown_model_is_a_not_found_error,
    what_is_wrong_in_a_body_is_a_bad_request_error,
    the_request_id_is_told,
    *([a_busy_model_is_a_rate_limit_error, a_busy_model_is_asked_again_when_it_said] if BUSY_MODEL else ()),
)
