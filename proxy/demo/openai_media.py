"""OpenAI's sound and edited pictures as the demo speaks them: a tone for each word, and what it heard."""

from __future__ import annotations

import base64
import io
import math
import struct
import time
import wave
from typing import Any

import orjson
from aiohttp import web

from proxy.demo import counting, openai_rest, reading
from proxy.demo.streaming import open_stream, paced

RATE = 8_000  # samples of a second
TONE_S = 0.12
WORDS_MAX = 400
HEARD = "The sun was setting slowly, casting long shadows across the empty field."
TOKENS_PER_SECOND = 10
CHUNK = 8 << 10


async def speech(request: web.Request) -> web.StreamResponse:
    """POST /v1/audio/speech: a WAV file whatever format is asked for, or the same as events."""
    body = await reading.read_object(request)
    text = body.get("input")
    if not isinstance(text, str) or not text:
        raise reading.invalid("Missing required parameter: 'input'.", "missing_required_parameter")
    sound = tones(text)
    pieces = [sound[at : at + CHUNK] for at in range(0, len(sound), CHUNK)]
    if body.get("stream_format") == "sse":
        return await _as_events(request, pieces, counting.text_tokens([text], body["model"]))
    answer = web.StreamResponse(headers={"content-type": "audio/wav"})
    await answer.prepare(request)
    async for piece in paced(request, pieces):
        await answer.write(piece)
    await answer.write_eof()
    return answer


async def _as_events(request: web.Request, pieces: list[bytes], tokens: int) -> web.StreamResponse:
    spoken = len(pieces) * TOKENS_PER_SECOND
    usage = {"input_tokens": tokens, "output_tokens": spoken, "total_tokens": tokens + spoken}
    stream = await open_stream(request)
    async with stream:
        async for piece in paced(request, pieces):
            event = {"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()}
            await stream.send(orjson.dumps(event).decode())
        await stream.send(orjson.dumps({"type": "speech.audio.done", "usage": usage}).decode())
    return stream


def tones(text: str) -> bytes:
    """A mono WAV with a tone for each word; longer words are lower."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        for word in text.split()[:WORDS_MAX]:
            step = 2 * math.pi * 1000 / (1 + len(word)) / RATE
            samples = (int(9000 * math.sin(step * at)) for at in range(int(RATE * TONE_S)))
            file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return out.getvalue()


async def transcribe(request: web.Request) -> web.StreamResponse:
    """POST /v1/audio/transcriptions and /v1/audio/translations: always hears the same sentence."""
    form = await request.post()
    sound = form.get("file")
    if not isinstance(sound, web.FileField) or not form.get("model"):
        raise reading.invalid("Missing required parameter: 'file' or 'model'.", "missing_required_parameter")
    seconds = max(1, math.ceil(len(sound.file.read()) / (2 * RATE)))
    is_by_second = str(form["model"]).startswith("whisper")
    usage: dict[str, Any] = {"type": "duration", "seconds": seconds}
    if not is_by_second:
        usage = _tokens(seconds, str(form["model"]))
    asked = form.get("response_format", "json")
    if asked == "text":
        return web.Response(text=HEARD + "\n")
    if asked in ("srt", "vtt"):
        return web.Response(text=_cues(seconds, str(asked)))
    if form.get("stream") == "true" and not is_by_second:
        stream = await open_stream(request)
        async with stream:
            async for word in paced(request, HEARD.split(" ")):
                await stream.send(
                    orjson.dumps({"type": "transcript.text.delta", "delta": word + " "}).decode()
                )
            done = {"type": "transcript.text.done", "text": HEARD, "usage": usage}
            await stream.send(orjson.dumps(done).decode())
            await stream.send("[DONE]")
        return stream
    answer: dict[str, Any] = {"text": HEARD, "usage": usage}
    if asked == "verbose_json":
        answer |= {"task": "transcribe", "language": "english", "duration": float(seconds), "segments": []}
    return web.json_response(body=orjson.dumps(answer))


def _tokens(seconds: int, model: str) -> dict[str, Any]:
    heard, said = seconds * TOKENS_PER_SECOND, counting.text_tokens([HEARD], model)
    return {
        "type": "tokens",
        "input_tokens": heard,
        "input_token_details": {"text_tokens": 0, "audio_tokens": heard},
        "output_tokens": said,
        "total_tokens": heard + said,
    }


def _cues(seconds: int, kind: str) -> str:
    minutes, rest = divmod(seconds, 60)
    end = f"00:{minutes:02}:{rest:02}"
    if kind == "srt":
        return f"1\n00:00:00,000 --> {end},000\n{HEARD}\n"
    return f"WEBVTT\n\n00:00:00.000 --> {end}.000\n{HEARD}\n"


async def edit(request: web.Request) -> web.Response:
    """POST /v1/images/edits and /v1/images/variations: another square for the same picture."""
    form = await request.post()
    if not isinstance(form.get("image") or form.get("image[]"), web.FileField):
        raise reading.invalid("Missing required parameter: 'image'.", "missing_required_parameter")
    prompt, model = str(form.get("prompt", "")), str(form.get("model", "dall-e-2"))
    n = int(str(form.get("n", "1"))) if str(form.get("n", "1")).isdecimal() else 1
    data = [openai_rest.drawn(request, model, f"{prompt}\0edit{i}") for i in range(min(n, reading.N_MAX))]
    answer: dict[str, Any] = {"created": int(time.time()), "data": data}
    if model.startswith("gpt-image"):
        text, output = counting.text_tokens([prompt], model), openai_rest.IMAGE_OUTPUT_TOKENS * len(data)
        seen = counting.IMAGE_TOKENS
        answer["usage"] = {
            "input_tokens": text + seen,
            "input_tokens_details": {"text_tokens": text, "image_tokens": seen},
            "output_tokens": output,
            "total_tokens": text + seen + output,
        }
    return web.json_response(body=orjson.dumps(answer))
