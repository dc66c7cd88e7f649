"""Gemini's API as the demo speaks it: content, embeddings, token counts."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
from aiohttp import web

from proxy.demo import answers, counting, openai_rest, reading, tools
from proxy.demo.streaming import open_stream, paced

DIMENSIONS = 3072  # of gemini-embedding-001
STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND"}


def refused(refusal: reading.RefusalError) -> dict[str, Any]:
    status = STATUSES.get(refusal.status, "INVALID_ARGUMENT")
    return {"error": {"code": refusal.status, "message": refusal.message, "status": status}}


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /v1beta/models/{model}:generateContent and :streamGenerateContent, as events or as an array"""
    body, turns = await _asked(request)
    model, prompt = body["model"], _text(turns[-1:])
    count = counting.counter(model)
    config = body.get("generationConfig") or {}
    limit = reading.count_of(config, "maxOutputTokens", None)
    said = tools.call(body, turns, prompt, count) or answers.answer(prompt, 0, limit, count)
    chunks = _chunks(said, _prompt_tokens(body, turns), model)
    if request.match_info["verb"] == "generateContent":
        *_, last = chunks
        last["candidates"][0]["content"]["parts"] = [_part(said, said.text)]
        return web.json_response(body=orjson.dumps(last))
    if request.query.get("alt") != "sse":
        return web.json_response(body=orjson.dumps(list(chunks)))
    stream = await open_stream(request)
    async with stream:
        async for chunk in paced(request, chunks):
            await stream.send(orjson.dumps(chunk).decode())
    return stream


def _chunks(said: answers.Answer, prompt_tokens: int, model: str) -> Iterator[dict[str, Any]]:
    """A call comes at once, text in pieces; the last one tells why it ends. Each tells the usage so far."""
    pieces = [said.text] if said.function else said.pieces or [""]
    response_id = uuid.uuid4().hex
    for number, piece in enumerate(pieces, 1):
        is_last = number == len(pieces)
        tokens = said.tokens if is_last else min(number, said.tokens)
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": [_part(said, piece)]}, "index": 0}
        if is_last:
            candidate["finishReason"] = "MAX_TOKENS" if said.is_cut else "STOP"
        yield {
            "candidates": [candidate],
            "usageMetadata": {
                "promptTokenCount": prompt_tokens,
                "candidatesTokenCount": tokens,
                "totalTokenCount": prompt_tokens + tokens,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt_tokens}],
            },
            "modelVersion": model,
            "responseId": response_id,
        }


def _part(said: answers.Answer, text: str) -> dict[str, Any]:
    if said.function:
        return {"functionCall": {"name": said.function, "args": orjson.loads(text)}}
    return {"text": text}


async def embed(request: web.Request) -> web.Response:
    """POST /v1beta/models/{model}:embedContent and :batchEmbedContents"""
    body = await reading.read_object(request, request.match_info["model"])
    is_batch = request.match_info["verb"] == "batchEmbedContents"
    asked = body.get("requests") if is_batch else [body]
    if not isinstance(asked, list) or not all(isinstance(one, dict) and one.get("content") for one in asked):
        raise reading.invalid("EmbedContentRequest.content is required")
    texts = [_text([one["content"]]) for one in asked]
    sizes = [reading.count_of(one, "outputDimensionality", DIMENSIONS, DIMENSIONS) or 1 for one in asked]
    found = [{"values": openai_rest.unit_vector(text, size)} for text, size in zip(texts, sizes, strict=True)]
    answer: dict[str, Any] = {"embeddings": found} if is_batch else {"embedding": found[0]}
    answer["usageMetadata"] = {"promptTokenCount": counting.text_tokens(texts, request.match_info["model"])}
    return web.json_response(body=orjson.dumps(answer))


async def count_tokens(request: web.Request) -> web.Response:
    """POST /v1beta/models/{model}:countTokens: the figure that `generate` will report as its prompt."""
    body, turns = await _asked(request)
    return web.json_response(body=orjson.dumps({"totalTokens": _prompt_tokens(body, turns)}))


async def _asked(request: web.Request) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Body, whose `model` is the path's, and contents. Raises RefusalError."""
    body = await reading.read_object(request, request.match_info["model"])
    turns = body.get("contents")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise reading.invalid("GenerateContentRequest.contents: contents is not specified")
    return body, turns


def _prompt_tokens(body: dict[str, Any], turns: list[dict[str, Any]]) -> int:
    system = [body["systemInstruction"]] if isinstance(body.get("systemInstruction"), dict) else []
    return counting.text_tokens(itertools.chain.from_iterable(map(_texts, system + turns)), body["model"])


def _text(turns: list[dict[str, Any]]) -> str:
    return " ".join(itertools.chain.from_iterable(map(_texts, turns)))


def _texts(turn: object) -> list[str]:
    return reading.texts_of(turn.get("parts")) if isinstance(turn, dict) else []
