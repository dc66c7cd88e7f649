"""`requests.post` as the stations' documents use it, and reading a stream line by line."""

import json

import requests
from ways import ASK, BASE, CHAT_MODEL, KEY, check_same, run

URL = BASE + "/v1/chat/completions"
BEARER = {"Authorization": "Bearer " + KEY}


def said(response: requests.Response) -> list[str]:
    """The pieces of a stream; insists that it ends as OpenAI's do."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.iter_lines(decode_unicode=True) if line]
    assert lines[-1] == "data: [DONE]", lines[-1]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    return [text for e in events for c in e["choices"] if (text := c["delta"].get("content"))]


def post() -> None:
    headers = {"Content-Type": "application/json"} | BEARER
    answer = requests.post(URL, headers=headers, json={"model": CHAT_MODEL, "messages": ASK}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"]
    whole = answer.json()["choices"][0]["message"]["content"]
    ask = {"model": CHAT_MODEL, "messages": ASK, "stream": True}
    with requests.post(URL, headers=headers, json=ask, stream=True, timeout=30) as stream:
        stream.encoding = "utf-8"
        check_same(said(stream), whole)


def post_that_reads_the_answer_whole() -> None:
    answer = requests.post(
        URL, headers=BEARER, json={"messages": ASK, "model": CHAT_MODEL}, stream=False, timeout=30
    )
    assert answer.json()["choices"][0]["message"]["content"]


def post_in_chunks_without_a_length() -> None:
    body = json.dumps({"model": CHAT_MODEL, "messages": ASK}).encode()
    pieces = (body[i : i + 7] for i in range(0, len(body), 7))
    answer = requests.post(
        URL, headers={"Content-Type": "application/json"} | BEARER, data=pieces, timeout=30
    )
    assert answer.status_code == 200, answer.text


def post_with_the_key_in_other_headers() -> None:
    for name in ("api-key", "x-api-key"):
        answer = requests.post(
            URL, headers={name: KEY}, json={"model": CHAT_MODEL, "messages": ASK}, timeout=30
        )
        assert answer.status_code == 200, (name, answer.text)


def leaving_a_stream_early_hurts_nobody() -> None:
    ask = {"model": CHAT_MODEL, "messages": ASK, "stream": True}
    with requests.post(URL, headers=BEARER, json=ask, stream=True, timeout=30) as stream:
        next(stream.iter_lines())
    post()


def what_is_wrong_is_told() -> None:
    answer = requests.post(URL, json={"model": CHAT_MODEL, "messages": ASK}, timeout=30)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "missing_api_key"
    answer = requests.post(URL, headers=BEARER, data="{not json", timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "body_not_json"


def my_account_and_receipt() -> None:
    answer = requests.post(URL, headers=BEARER, json={"model": CHAT_MODEL, "messages": ASK}, timeout=30)
    me = requests.get(BASE + "/v1/me", headers=BEARER, timeout=30)
    assert me.status_code == 200, me.text
    assert {"balance", "held", "available", "tier"} <= set(me.json())
    assert requests.get(BASE + "/v1/me", timeout=30).status_code == 401
    assert answer.status_code == 200


run(
    post,
    post_that_reads_the_answer_whole,
    post_in_chunks_without_a_length,
    post_with_the_key_in_other_headers,
    leaving_a_stream_early_hurts_nobody,
    what_is_wrong_is_told,
    my_account_and_receipt,
)
