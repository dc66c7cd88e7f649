"""The anthropic SDK, with its key as it sends it today and as it used to."""

import anthropic
from ways import (
    BASE,
    BUSY_MODEL,
    CLAUDE_MODEL,
    KEY,
    NEVER_MODEL,
    WEATHER,
    check_same,
    check_weather,
    run,
    waiting_as_told,
)

ASK = {
    "model": CLAUDE_MODEL,
    "max_tokens": 200,
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "Say this is a test!"}],
}


def messages_both_ways(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**ASK)
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    with client.messages.stream(**ASK) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    check_same(pieces, answer.content[0].text)
    assert final.usage.output_tokens == answer.usage.output_tokens
    assert final.stop_reason == answer.stop_reason


def messages_with_an_api_key() -> None:
    messages_both_ways(anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0))


def messages_with_x_api_key() -> None:
    messages_both_ways(
        anthropic.Anthropic(base_url=BASE, api_key=KEY, default_headers={"x-api-key": KEY}, max_retries=0)
    )


def messages_with_bearer() -> None:
    messages_both_ways(anthropic.Anthropic(base_url=BASE, auth_token=KEY, api_key=None, max_retries=0))


def tools() -> None:
    client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)
    tool = {"name": WEATHER["name"], "input_schema": WEATHER["parameters"]}
    answer = client.messages.create(**ASK, tools=[tool])
    (called,) = answer.content
    check_weather(called.name, called.input)
    with client.messages.stream(**ASK, tools=[tool]) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.content[0].input) == ("tool_use", called.input)
    result = {"type": "tool_result", "tool_use_id": called.id, "content": "Sunny."}
    turns = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    done = client.messages.create(**ASK | {"messages": ASK["messages"] + turns}, tools=[tool])
    assert (done.stop_reason, done.content[0].type) == ("end_turn", "text")


def models() -> None:
    client = anthropic.Anthropic(base_url=BASE, api_key=KEY)
    assert CLAUDE_MODEL in {model.id for model in client.models.list()}


def an_unknown_model_is_a_not_found_error() -> None:
    try:
        anthropic.Anthropic(base_url=BASE, api_key=KEY).messages.create(**ASK | {"model": "no-such-model"})
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error", error.body
        return
    raise AssertionError("accepted")


def a_busy_model_is_a_rate_limit_error() -> None:
    try:
        client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)
        client.messages.create(**ASK | {"model": NEVER_MODEL})
    except anthropic.RateLimitError as error:
        assert int(error.response.headers["retry-after"]) >= 1
        assert error.body["error"]["type"] == "rate_limit_error", error.body
        return
    raise AssertionError("accepted")


def a_busy_model_is_asked_again_when_it_said() -> None:
    client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=3)
    with waiting_as_told():
        answer = client.messages.create(**ASK | {"model": BUSY_MODEL})
    assert answer.content[0].text == "Here."


def count_tokens() -> None:
    client = anthropic.Anthropic(base_url=BASE, api_key=KEY)
    assert client.messages.count_tokens(model=CLAUDE_MODEL, messages=ASK["messages"]).input_tokens > 0


def the_request_id_is_told() -> None:
    client = anthropic.Anthropic(base_url=BASE, api_key=KEY)
    assert client.messages.create(**ASK)._request_id


def a_wrong_key_is_an_authentication_error() -> None:
    try:
        anthropic.Anthropic(base_url=BASE, api_key="sk-wrong").messages.create(**ASK)
    except anthropic.AuthenticationError as error:
        assert error.body["type"] == "error", error.body
        assert error.body["error"]["type"] == "authentication_error", error.body
        return
    raise AssertionError("accepted")


run(
    messages_with_an_api_key,
    messages_with_x_api_key,
    messages_with_bearer,
    tools,
    count_tokens,
    models,
    the_request_id_is_told,
    a_wrong_key_is_an_authentication_error,
    an_unknown_model_is_a_not_found_error,
    *([a_busy_model_is_a_rate_limit_error, a_busy_model_is_asked_again_when_it_said] if BUSY_MODEL else ()),
)
