"""langchain-openai, which many applications use without knowing the HTTP API."""

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from ways import (
    BASE,
    BUSY_MODEL,
    CHAT_MODEL,
    EMBEDDING_MODEL,
    KEY,
    NEVER_MODEL,
    WEATHER,
    check_same,
    check_weather,
    run,
    waiting_as_told,
)


def model(name: str = CHAT_MODEL, **settings) -> ChatOpenAI:
    settings = {"use_responses_api": False, "max_retries": 0, "api_key": KEY} | settings
    return ChatOpenAI(base_url=BASE + "/v1", model=name, **settings)


def both_ways(asked: ChatOpenAI) -> None:
    whole = asked.invoke("Say this is a test!")
    assert whole.usage_metadata["output_tokens"] > 0
    pieces = [piece.text for piece in asked.stream("Say this is a test!")]
    check_same([piece for piece in pieces if piece], whole.text)


def chat() -> None:
    both_ways(model())


def responses() -> None:
    both_ways(model(use_responses_api=True))


def tools() -> None:
    tool = {"type": "function", "function": WEATHER}
    for asked in (model(), model(use_responses_api=True)):
        (called,) = asked.bind_tools([tool]).invoke("Say this is a test!").tool_calls
        check_weather(called["name"], called["args"])
        *_, last = accumulated(asked.bind_tools([tool]).stream("Say this is a test!"))
        assert last.tool_calls[0]["args"] == called["args"]


def accumulated(pieces):
    whole = None
    for piece in pieces:
        whole = piece if whole is None else whole + piece
        yield whole


def errors_are_those_of_openai() -> None:
    for asked, kind in (
        (model(api_key="sk-wrong"), openai.AuthenticationError),
        (model("no-such-model"), openai.NotFoundError),
        *([(model(NEVER_MODEL), openai.RateLimitError)] if BUSY_MODEL else ()),
    ):
        try:
            asked.invoke("Hi")
        except kind:
            continue
        raise AssertionError(f"no {kind.__name__}")


def a_busy_model_is_asked_again_when_it_said() -> None:
    with waiting_as_told():
        assert model(BUSY_MODEL, max_retries=3).invoke("Hi").text == "Here."


def embedding() -> None:
    model = OpenAIEmbeddings(
        base_url=BASE + "/v1", api_key=KEY, model=EMBEDDING_MODEL, check_embedding_ctx_length=False
    )
    assert model.embed_query("hello")


run(
    chat,
    responses,
    tools,
    embedding,
    errors_are_those_of_openai,
    *([a_busy_model_is_asked_again_when_it_said] if BUSY_MODEL else ()),
)
