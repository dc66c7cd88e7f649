"""litellm as a client: OpenAI's, Anthropic's and Gemini's API under one roof, with a base URL each."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices

import litellm
from ways import (
    ASK,
    BASE,
    BUSY_MODEL,
    CHAT_MODEL,
    CLAUDE_MODEL,
    EMBEDDING_MODEL,
    GEMINI_MODEL,
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

litellm.telemetry = False

OPENAI = {"api_base": BASE + "/v1", "api_key": KEY, "max_retries": 0}
FAMILIES = {
    "openai/" + CHAT_MODEL: OPENAI,
    "anthropic/" + CLAUDE_MODEL: {"api_base": BASE, "api_key": KEY},
    "gemini/" + GEMINI_MODEL: {"api_base": BASE + "/v1beta", "api_key": KEY},
}


def chat() -> None:
    for model, there in FAMILIES.items():
        whole = litellm.completion(model=model, messages=ASK, max_tokens=200, **there)
        usage = whole.usage
        check_usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
        chunks = litellm.completion(model=model, messages=ASK, max_tokens=200, stream=True, **there)
        said = [chunk.choices[0].delta.content for chunk in chunks]
        check_same([text for text in said if text], whole.choices[0].message.content)


def tools() -> None:
    for model, there in FAMILIES.items():
        tool = {"type": "function", "function": WEATHER}
        answer = litellm.completion(model=model, messages=ASK, tools=[tool], max_tokens=200, **there)
        (called,) = answer.choices[0].message.tool_calls
        check_weather(called.function.name, called.function.arguments)


def embedding() -> None:
    answer = litellm.embedding(model="openai/" + EMBEDDING_MODEL, input=["a", "b"], **OPENAI)
    assert len(answer.data) == 2


def image() -> None:
    (drawn,) = litellm.image_generation(model="openai/" + IMAGE_MODEL, prompt="a red fox", **OPENAI).data
    assert drawn.b64_json.startswith("iVBORw0K")


def audio() -> None:
    spoken = litellm.speech(model="openai/" + SPEECH_MODEL, voice="alloy", input="one two", **OPENAI).content
    assert spoken.startswith(b"RIFF")
    heard = litellm.transcription(model="openai/" + HEARING_MODEL, file=("a.wav", spoken), **OPENAI)
    assert heard.text


def check_error(kind: type[Exception], model: str, **there) -> None:
    try:
        litellm.completion(model=model, messages=ASK, max_tokens=10, num_retries=0, **there)
    except kind:
        return
    raise AssertionError("accepted")


def errors_are_of_the_right_class() -> None:
    for model, there in FAMILIES.items():
        check_error(litellm.AuthenticationError, model, **there | {"api_key": "sk-wrong"})
    check_error(litellm.NotFoundError, "openai/no-such-model", **OPENAI)
    check_error(litellm.NotFoundError, "anthropic/no-such-model", api_base=BASE, api_key=KEY)


def a_busy_model_is_a_rate_limit_error() -> None:
    check_error(litellm.RateLimitError, "openai/" + NEVER_MODEL, **OPENAI)
    check_error(litellm.RateLimitError, "anthropic/" + NEVER_MODEL, api_base=BASE, api_key=KEY)


def a_busy_model_is_asked_again_when_it_said() -> None:
    with waiting_as_told():
        answer = litellm.completion(model="openai/" + BUSY_MODEL, messages=ASK, **OPENAI | {"max_retries": 3})
    assert answer.choices[0].message.content == "Here."


run(
    chat,
    tools,
    embedding,
    image,
    audio,
    errors_are_of_the_right_class,
    *([a_busy_model_is_a_rate_limit_error, a_busy_model_is_asked_again_when_it_said] if BUSY_MODEL else ()),
)
