"""The anthropic SDK, with its key as it sends it today and as it used to."""

import anthropic
from ways import BASE, CLAUDE_MODEL, KEY, check_same, run

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
    count_tokens,
    the_request_id_is_told,
    a_wrong_key_is_an_authentication_error,
)
