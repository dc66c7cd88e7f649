"""OpenAI's other paths as the demo speaks them: embeddings, moderations, images, models."""

from __future__ import annotations

import base64
import hashlib
import math
import random
import re
import struct
import time
import uuid
import zlib
from typing import Any

import orjson
from aiohttp import web

from proxy.demo import counting, reading

CREATED = 1_735_689_600  # one birthday for all demo models
MODELS = (
    "gpt-4o-mini",
    "gpt-4o",
    "gpt-3.5-turbo",
    "claude-sonnet-4-5",
    "gemini-2.5-flash",
    "text-embedding-3-small",
    "text-embedding-3-large",
    "omni-moderation-latest",
    "gpt-image-1",
    "tts-1",
    "gpt-4o-mini-tts",
    "whisper-1",
    "gpt-4o-mini-transcribe",
)
DIMENSIONS = {"text-embedding-3-large": 3072}
DIMENSIONS_DEFAULT = 1536
DIMENSIONS_MAX = 3072
INPUTS_MAX = 2048  # OpenAI's limit of one embeddings call
IMAGE_SIDE = 64  # pixels
IMAGE_OUTPUT_TOKENS = 272  # what gpt-image-1 reports for a low-quality square
MODERATION_CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")
VIOLENT = re.compile(r"\b(kill|murder|attack)\b", re.IGNORECASE)


async def models(request: web.Request) -> web.Response:
    """GET /v1/models"""
    cards = [{"id": m, "object": "model", "created": CREATED, "owned_by": "headrace-demo"} for m in MODELS]
    return web.json_response(body=orjson.dumps({"object": "list", "data": cards}))


async def embeddings(request: web.Request) -> web.Response:
    """POST /v1/embeddings: the same input always gets the same unit vector."""
    body = await reading.read_object(request)
    inputs = reading.inputs_of(body.get("input"), "input")
    if len(inputs) > INPUTS_MAX:
        raise reading.invalid(f"'input' may hold at most {INPUTS_MAX} items.", "array_above_max_length")
    model = body["model"]
    dimensions = reading.count_of(
        body, "dimensions", DIMENSIONS.get(model, DIMENSIONS_DEFAULT), DIMENSIONS_MAX
    )
    is_base64 = body.get("encoding_format") == "base64"
    data = []
    for index, item in enumerate(inputs):
        vector = unit_vector(f"{model}\0{item}", dimensions or DIMENSIONS_DEFAULT)
        embedding = packed(vector) if is_base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    tokens = counting.input_tokens(inputs, model)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": model, "usage": usage}
    return web.json_response(body=orjson.dumps(answer))


def unit_vector(text: str, dimensions: int) -> list[float]:
    """A vector of length 1 whose direction depends on `text` alone."""
    seeded = random.Random(hashlib.sha256(text.encode("utf-8", "replace")).digest())  # noqa: S311
    vector = [seeded.uniform(-1, 1) for _ in range(dimensions)]
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def packed(vector: list[float]) -> str:
    """OpenAI's `encoding_format: base64`: little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def moderations(request: web.Request) -> web.Response:
    """POST /v1/moderations: flags a few violent words, so that both outcomes can be seen."""
    body = await reading.read_object(request, model_default="omni-moderation-latest")
    value = body.get("input")
    texts = reading.texts_of(value) or reading.inputs_of(value, "input")
    answer = {
        "id": "modr-" + uuid.uuid4().hex,
        "model": body["model"],
        "results": [verdict(str(text)) for text in texts],
    }
    return web.json_response(body=orjson.dumps(answer))


def verdict(text: str) -> dict[str, Any]:
    scores = dict.fromkeys(MODERATION_CATEGORIES, 0.0001)
    if VIOLENT.search(text):
        scores["violence"] = 0.93
    categories = {name: score > 0.5 for name, score in scores.items()}
    return {"flagged": any(categories.values()), "categories": categories, "category_scores": scores}


async def images(request: web.Request) -> web.Response:
    """POST /v1/images/generations: a small square whose colours depend on the prompt."""
    body = await reading.read_object(request, model_default="gpt-image-1")
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise reading.invalid("Missing required parameter: 'prompt'.", "missing_required_parameter")
    n = reading.count_of(body, "n", 1, reading.N_MAX) or 1
    data = [drawn(request, body["model"], f"{prompt}\0{i}") for i in range(n)]
    answer: dict[str, Any] = {"created": int(time.time()), "data": data}
    if body["model"].startswith("gpt-image"):  # the older models report none and are billed per image
        text, output = counting.text_tokens([prompt], body["model"]), IMAGE_OUTPUT_TOKENS * n
        answer["usage"] = {
            "input_tokens": text,
            "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
            "output_tokens": output,
            "total_tokens": text + output,
        }
    return web.json_response(body=orjson.dumps(answer))


def drawn(request: web.Request, model: str, text: str) -> dict[str, str]:
    """One picture in an answer: Flux's are fetched from where they are, the others come along."""
    if model.startswith("flux"):
        name = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        return {"url": f"{request.url.origin()}/_demo/files/{name}/0.png"}
    return {"b64_json": base64.b64encode(png(text)).decode()}


def png(text: str) -> bytes:
    """An RGB picture of IMAGE_SIDE x IMAGE_SIDE: a gradient between two colours taken from `text`."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    top, bottom, last = digest[:3], digest[3:6], IMAGE_SIDE - 1
    rows = b""
    for y in range(IMAGE_SIDE):
        colour = bytes((a * (last - y) + b * y) // last for a, b in zip(top, bottom, strict=True))
        rows += b"\0" + colour * IMAGE_SIDE
    header = struct.pack(">IIBBBBB", IMAGE_SIDE, IMAGE_SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
