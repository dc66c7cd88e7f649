"""openai 1.x and newer: OpenAI, AsyncOpenAI, AzureOpenAI, and the module-level client."""

import asyncio

import openai
from ways import ASK, BASE, CHAT_MODEL, CLAUDE_MODEL, EMBEDDING_MODEL, KEY, check_same, check_usage, run


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
    moderation,
    models,
    azure_chat,
    azure_embedding,
    a_wrong_key_is_an_authentication_error,
    an_unknown_model_is_a_not_found_error,
    the_request_id_is_told,
)
