"""google-genai with Gemini's own API."""

from google import genai
from google.genai import errors, types
from ways import (
    BASE,
    BUSY_MODEL,
    GEMINI_EMBEDDING_MODEL,
    GEMINI_MODEL,
    KEY,
    NEVER_MODEL,
    WEATHER,
    check_same,
    check_weather,
    run,
)

ASK = "Say this is a test!"


def client(key: str = KEY, **options) -> genai.Client:
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=BASE, **options))


def generate_both_ways() -> None:
    for version in ("v1beta", "v1"):
        google = client(api_version=version)
        whole = google.models.generate_content(model=GEMINI_MODEL, contents=ASK)
        usage = whole.usage_metadata
        assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count
        pieces = list(google.models.generate_content_stream(model=GEMINI_MODEL, contents=ASK))
        check_same([piece.text for piece in pieces], whole.text)
        assert pieces[-1].usage_metadata.total_token_count == usage.total_token_count


def a_limit_ends_the_answer() -> None:
    config = types.GenerateContentConfig(max_output_tokens=5, system_instruction="Be brief.")
    google = client()  # it closes its connection when it is forgotten
    answer = google.models.generate_content(model=GEMINI_MODEL, contents=ASK, config=config)
    assert answer.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS


def a_chat_goes_on() -> None:
    google = client()
    chat = google.chats.create(model=GEMINI_MODEL)
    assert chat.send_message(ASK).text
    assert [piece.text for piece in chat.send_message_stream("And now?")]
    assert len(chat.get_history()) >= 4  # of a stream, it keeps every piece


def tools() -> None:
    google = client()
    declared = types.FunctionDeclaration(name=WEATHER["name"], parameters_json_schema=WEATHER["parameters"])
    config = types.GenerateContentConfig(tools=[types.Tool(function_declarations=[declared])])
    ask = {"model": GEMINI_MODEL, "config": config}
    answer = google.models.generate_content(contents=ASK, **ask)
    (called,) = answer.function_calls
    check_weather(called.name, called.args)
    streamed = list(google.models.generate_content_stream(contents=ASK, **ask))
    check_weather(streamed[0].function_calls[0].name, streamed[0].function_calls[0].args)
    result = types.Part.from_function_response(name=called.name, response={"sky": "sunny"})
    turns = [types.UserContent(ASK), answer.candidates[0].content, types.UserContent([result])]
    assert google.models.generate_content(contents=turns, **ask).text


def embed_and_count() -> None:
    google = client()
    found = google.models.embed_content(model=GEMINI_EMBEDDING_MODEL, contents=["a", "b"])
    assert len(found.embeddings) == 2
    assert found.embeddings[0].values
    assert google.models.count_tokens(model=GEMINI_MODEL, contents=ASK).total_tokens > 0


def models() -> None:
    google = client()
    assert f"models/{GEMINI_MODEL}" in [model.name for model in google.models.list()]


def check_error(google: genai.Client, model: str, code: int, status: str) -> None:
    try:
        google.models.generate_content(model=model, contents=ASK)
    except errors.ClientError as e:
        assert (e.code, e.status) == (code, status), e
        return
    raise AssertionError("accepted")


def errors_are_its_own() -> None:
    check_error(client("sk-wrong"), GEMINI_MODEL, 401, "UNAUTHENTICATED")
    check_error(client(), "no-such-model", 404, "NOT_FOUND")


def a_busy_model_is_a_client_error() -> None:
    check_error(client(), NEVER_MODEL, 429, "RESOURCE_EXHAUSTED")


def a_busy_model_is_asked_again() -> None:
    """This SDK knows no retry-after: it waits by a rule of its own."""
    patient = client(retry_options=types.HttpRetryOptions(attempts=4))
    assert patient.models.generate_content(model=BUSY_MODEL, contents=ASK).text == "Here."


run(
    generate_both_ways,
    a_limit_ends_the_answer,
    a_chat_goes_on,
    tools,
    embed_and_count,
    models,
    errors_are_its_own,
    *([a_busy_model_is_a_client_error, a_busy_model_is_asked_again] if BUSY_MODEL else ()),
)
