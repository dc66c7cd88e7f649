"""langchain-openai, which many applications use without knowing the HTTP API."""

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from ways import BASE, CHAT_MODEL, EMBEDDING_MODEL, KEY, check_same, run


def chat() -> None:
    model = ChatOpenAI(base_url=BASE + "/v1", api_key=KEY, model=CHAT_MODEL, use_responses_api=False)
    whole = model.invoke("Say this is a test!")
    assert whole.usage_metadata["output_tokens"] > 0
    check_same(
        [piece.content for piece in model.stream("Say this is a test!") if piece.content], whole.content
    )


def embedding() -> None:
    model = OpenAIEmbeddings(
        base_url=BASE + "/v1", api_key=KEY, model=EMBEDDING_MODEL, check_embedding_ctx_length=False
    )
    assert model.embed_query("hello")


run(chat, embedding)
