// Vercel's `ai` with @ai-sdk/openai: chat completions and, as it prefers, responses.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import {
  APICallError, embedMany, experimental_generateSpeech as generateSpeech, experimental_transcribe as transcribe,
  generateImage, generateText, jsonSchema, streamText, tool,
} from "ai";
import {
  BASE, BUSY_MODEL, CHAT_MODEL, CITY, EMBEDDING_MODEL, HEARING_MODEL, IMAGE_MODEL, KEY, NEVER_MODEL, PROMPT,
  SPEECH_MODEL, checkSame, checkWeather, collect, errorOf, run, waitingAsTold,
} from "./ways.mjs";

const openai = (apiKey = KEY) => createOpenAI({ baseURL: `${BASE}/v1`, apiKey });
const tools = { get_weather: tool({ description: "The weather.", inputSchema: jsonSchema(CITY) }) };

async function bothWays(model) {
  const whole = await generateText({ model, prompt: PROMPT, maxRetries: 0 });
  assert.ok(whole.usage.inputTokens > 0 && whole.usage.outputTokens > 0);
  const stream = streamText({ model, prompt: PROMPT, maxRetries: 0 });
  checkSame(await collect(stream.textStream, (piece) => piece), whole.text);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
}

async function calls(model) {
  const whole = await generateText({ model, prompt: PROMPT, tools, maxRetries: 0 });
  checkWeather(whole.toolCalls[0].toolName, whole.toolCalls[0].input);
  const [streamed] = await streamText({ model, prompt: PROMPT, tools, maxRetries: 0 }).toolCalls;
  checkWeather(streamed.toolName, streamed.input);
}

const fails = (model) => errorOf(() => generateText({ model, prompt: PROMPT, maxRetries: 0 }));

await run(
  {
    chat: () => bothWays(openai().chat(CHAT_MODEL)),
    chatWithTools: () => calls(openai().chat(CHAT_MODEL)),
    responses: () => bothWays(openai()(CHAT_MODEL)),
    responsesWithTools: () => calls(openai()(CHAT_MODEL)),
    async embeddings() {
      const model = openai().textEmbeddingModel(EMBEDDING_MODEL);
      const { embeddings, usage } = await embedMany({ model, values: ["a", "b"] });
      assert.deepEqual(embeddings.map((one) => one.length), [1536, 1536]);
      assert.ok(usage.tokens > 0);
    },
    async images() {
      const { image } = await generateImage({ model: openai().image(IMAGE_MODEL), prompt: "a red fox" });
      assert.equal(image.mediaType, "image/png");
    },
    async audio() {
      const { audio } = await generateSpeech({ model: openai().speech(SPEECH_MODEL), text: "one two three" });
      assert.equal(Buffer.from(audio.uint8Array).subarray(0, 4).toString(), "RIFF");
      const model = openai().transcription(HEARING_MODEL);
      assert.ok((await transcribe({ model, audio: audio.uint8Array })).text);
    },
    async errorsAreCallErrors() {
      for (const [model, status] of [
        [openai("sk-wrong").chat(CHAT_MODEL), 401],
        [openai().chat("no-such-model"), 404],
      ]) {
        const error = await fails(model);
        assert.ok(APICallError.isInstance(error), String(error));
        assert.deepEqual([error.statusCode, error.isRetryable], [status, false]);
        assert.ok(error.message);
      }
    },
  },
  {
    async aBusyModelMayBeAskedAgain() {
      const error = await fails(openai().chat(NEVER_MODEL));
      assert.deepEqual([error.statusCode, error.isRetryable], [429, true]);
    },
    async aBusyModelIsAskedAgainWhenItSaid() {
      const ask = { model: openai().chat(BUSY_MODEL), prompt: PROMPT, maxRetries: 3 };
      assert.equal((await waitingAsTold(() => generateText(ask))).text, "Here.");
    },
  },
);
