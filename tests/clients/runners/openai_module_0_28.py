"""openai 0.28 as the stations' documents use it: module-level settings, OpenAI and Azure style."""

import base64
import io
import time

import openai
from ways import (
    ASK,
    BASE,
    BUSY_MODEL,
    CHAT_MODEL,
    EMBEDDING_MODEL,
    HEARING_MODEL,
    IMAGE_MODEL,
    KEY,
    NEVER_MODEL,
    WEATHER,
    check_same,
    check_usage,
    check_weather,
    run,
)

assert openai.__version__.startswith("0.28"), openai.__version__


def use_openai() -> None:
    openai.api_type, openai.api_version = "open_ai", None
    openai.api_base, openai.api_key = BASE + "/v1", KEY


def use_azure() -> None:
    openai.api_type, openai.api_version = "azure", "version"  # the document's sample says just that
    openai.api_base, openai.api_key = BASE, KEY


def said(chunks) -> list[str]:
    return [text for c in chunks for choice in c["choices"] if (text := choice["delta"].get("content"))]


def chat() -> None:
    use_openai()
    answer = openai.ChatCompletion.create(model=CHAT_MODEL, messages=ASK, temperature=1, max_tokens=1000)
    usage = answer["usage"]
    check_usage(usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"])
    chunks = openai.ChatCompletion.create(
        model=CHAT_MODEL, messages=ASK, temperature=1, max_tokens=1000, stream=True
    )
    check_same(said(chunks), answer["choices"][0]["message"]["content"])


def chat_without_v1_in_the_base() -> None:
    use_openai()
    openai.api_base = BASE
    assert openai.ChatCompletion.create(model=CHAT_MODEL, messages=ASK)["choices"][0]["message"]["content"]


def completion() -> None:
    use_openai()
    answer = openai.Completion.create(model=CHAT_MODEL, prompt="I am a", max_tokens=7, temperature=0)
    assert answer["object"] == "text_completion"
    assert 0 < answer["usage"]["completion_tokens"] <= 7
    chunks = openai.Completion.create(
        model=CHAT_MODEL, prompt="I am a", max_tokens=7, temperature=0, stream=True
    )
    streamed = [choice["text"] for c in chunks for choice in c["choices"] if choice["text"]]
    check_same(streamed, answer["choices"][0]["text"])


def embedding() -> None:
    use_openai()
    answer = openai.Embedding.create(model=EMBEDDING_MODEL, input="The food was delicious and the waiter...")
    assert len(answer["data"][0]["embedding"]) > 100
    assert answer["usage"]["total_tokens"] > 0


def tools() -> None:
    use_openai()
    tool = {"type": "function", "function": WEATHER}
    answer = openai.ChatCompletion.create(model=CHAT_MODEL, messages=ASK, tools=[tool])
    called = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    check_weather(called["name"], called["arguments"])


def image() -> None:
    use_openai()
    drawn = openai.Image.create(model=IMAGE_MODEL, prompt="a red fox")["data"][0]["b64_json"]
    assert base64.b64decode(drawn).startswith(b"\x89PNG")


def transcription() -> None:
    use_openai()
    sound = io.BytesIO(bytes(32_000))
    sound.name = "a.wav"
    assert openai.Audio.transcribe(HEARING_MODEL, sound)["text"]


def moderation() -> None:
    use_openai()
    answer = openai.Moderation.create(model="text-moderation-latest", input="I will kill him")
    assert answer["results"][0]["flagged"]


def models() -> None:
    use_openai()
    assert CHAT_MODEL in {model["id"] for model in openai.Model.list()["data"]}


def a_busy_model_is_a_rate_limit_error() -> None:
    """It asks again by itself never: its user does, as the header says."""
    use_openai()
    for model, said in ((NEVER_MODEL, None), (BUSY_MODEL, "Here.")):
        try:
            openai.ChatCompletion.create(model=model, messages=ASK)
        except openai.error.RateLimitError as error:
            time.sleep(float(error.headers["retry-after"]))
        else:
            raise AssertionError("accepted")
        if said:
            answer = openai.ChatCompletion.create(model=model, messages=ASK)
            assert answer["choices"][0]["message"]["content"] == said


def azure_chat() -> None:
    use_azure()
    answer = openai.ChatCompletion.create(engine=CHAT_MODEL, messages=ASK)
    chunks = openai.ChatCompletion.create(engine=CHAT_MODEL, messages=ASK, stream=True)
    check_same(said(chunks), answer.choices[0].message.content)


def azure_embedding() -> None:
    use_azure()
    assert openai.Embedding.create(engine=EMBEDDING_MODEL, input="hello")["data"][0]["embedding"]


def a_wrong_key_is_an_authentication_error() -> None:
    use_openai()
    openai.api_key = "sk-wrong"
    try:
        openai.ChatCompletion.create(model=CHAT_MODEL, messages=ASK)
    except openai.error.AuthenticationError as error:
        assert error.http_status == 401
        assert KEY not in str(error)
        return
    raise AssertionError("accepted")


run(
    chat,
    chat_without_v1_in_the_base,
    completion,
    embedding,
    tools,
    image,
    transcription,
    moderation,
    models,
    azure_chat,
    azure_embedding,
    a_wrong_key_is_an_authentication_error,
    *([a_busy_model_is_a_rate_limit_error] if BUSY_MODEL else ()),
)
