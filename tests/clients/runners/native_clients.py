"""Vendors' own SDKs with their own formats: google-genai, cohere, ollama, mistralai."""

import cohere
import mistralai
import ollama
from google import genai
from google.genai import errors, types
from ways import BASE, KEY, run

GEMINI, COHERE, OLLAMA = "gemini-2.5-flash", "command-a-03-2025", "gemma3:1b"


def google(**options) -> genai.Client:
    return genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=BASE, **options))


def gemini_generates() -> None:
    for version in ("v1beta", "v1"):
        client = google(api_version=version)
        answer = client.models.generate_content(model=GEMINI, contents="Say hi")
        assert answer.text == "Paris.", answer
        assert answer.usage_metadata.total_token_count == 443


def gemini_streams() -> None:
    client = google()  # it closes its connection when it is forgotten
    pieces = list(client.models.generate_content_stream(model=GEMINI, contents="Say hi"))
    assert [piece.text for piece in pieces if piece.text] == ["Pelé"], pieces


def gemini_embeds_and_counts() -> None:
    client = google()
    assert client.models.embed_content(model=GEMINI, contents=["a"]).embeddings[0].values == [0.1]
    assert client.models.count_tokens(model=GEMINI, contents="x").total_tokens == 31


def gemini_lists_models() -> None:
    client = google()
    assert f"models/{GEMINI}" in [model.name for model in client.models.list()]


def gemini_errors_are_its_own() -> None:
    for model, status in (("no-such-model", 404), (GEMINI, 401)):
        client = (
            google()
            if status == 404
            else genai.Client(api_key="sk-wrong", http_options=types.HttpOptions(base_url=BASE))
        )
        try:
            client.models.generate_content(model=model, contents="x")
        except errors.ClientError as e:
            assert e.code == status, e
        else:
            raise AssertionError("no error")


def cohere_chats() -> None:
    client = cohere.ClientV2(api_key=KEY, base_url=BASE)
    ask = {"model": COHERE, "messages": [{"role": "user", "content": "Hi"}]}
    assert client.chat(**ask).message.content[0].text == "8."
    assert [e.type for e in client.chat_stream(**ask)][-1] == "message-end"
    try:
        cohere.ClientV2(api_key="sk-wrong", base_url=BASE).chat(**ask)
    except cohere.UnauthorizedError as e:
        assert e.body["message"], e
    else:
        raise AssertionError("no error")


def cohere_reranks() -> None:
    found = cohere.ClientV2(api_key=KEY, base_url=BASE).rerank(model=COHERE, query="q", documents=["a"])
    assert found.results[0].relevance_score == 0.9


def ollama_chats() -> None:
    client = ollama.Client(host=BASE, headers={"authorization": f"Bearer {KEY}"})
    ask = {"model": OLLAMA, "messages": [{"role": "user", "content": "Hi"}]}
    pieces = list(client.chat(**ask, stream=True))
    assert pieces[-1].eval_count == 9, pieces
    assert client.generate(model=OLLAMA, prompt="Hi").response == "A joke {"
    assert OLLAMA in [model.model for model in client.list().models]
    try:
        ollama.Client(host=BASE, headers={"authorization": "Bearer sk-wrong"}).chat(**ask)
    except ollama.ResponseError as e:
        assert (e.status_code, e.error.startswith("{")) == (401, False), e
    else:
        raise AssertionError("no error")


def mistral_fills_in() -> None:
    client = (
        getattr(mistralai, "Mistral", None) or __import__("mistralai.client", fromlist=["Mistral"]).Mistral
    )
    answer = client(api_key=KEY, server_url=BASE).fim.complete(model="codestral", prompt="a", suffix="b")
    assert answer.choices[0].message.content == "x"


run(
    gemini_generates,
    gemini_streams,
    gemini_embeds_and_counts,
    gemini_lists_models,
    gemini_errors_are_its_own,
    cohere_chats,
    cohere_reranks,
    ollama_chats,
    mistral_fills_in,
)
