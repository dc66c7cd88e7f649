// npm's @google/genai with Gemini's own API.
import assert from "node:assert/strict";
import { ApiError, GoogleGenAI } from "@google/genai";
import {
  BASE, BUSY_MODEL, CITY, GEMINI_EMBEDDING_MODEL, GEMINI_MODEL, KEY, NEVER_MODEL, PROMPT, checkSame,
  checkWeather, collect, errorOf, run,
} from "./ways.mjs";

const client = (apiKey = KEY, more = {}) => new GoogleGenAI({ apiKey, httpOptions: { baseUrl: BASE, ...more } });
const ask = (more = {}) => ({ model: GEMINI_MODEL, contents: PROMPT, ...more });

await run(
  {
    async generate() {
      for (const apiVersion of ["v1beta", "v1"]) {
        const google = client(KEY, { apiVersion });
        const whole = await google.models.generateContent(ask());
        const stream = await google.models.generateContentStream(ask());
        checkSame(await collect(stream, (chunk) => chunk.text), whole.text);
        const { promptTokenCount, candidatesTokenCount, totalTokenCount } = whole.usageMetadata;
        assert.equal(promptTokenCount + candidatesTokenCount, totalTokenCount);
      }
    },
    async tools() {
      const declared = { name: "get_weather", parametersJsonSchema: CITY };
      const config = { tools: [{ functionDeclarations: [declared] }] };
      const [called] = (await client().models.generateContent(ask({ config }))).functionCalls;
      checkWeather(called.name, called.args);
      const stream = await client().models.generateContentStream(ask({ config }));
      const [streamed] = await collect(stream, (chunk) => chunk.functionCalls?.[0]);
      checkWeather(streamed.name, streamed.args);
    },
    async embedAndCount() {
      const found = await client().models.embedContent({ model: GEMINI_EMBEDDING_MODEL, contents: ["a", "b"] });
      assert.equal(found.embeddings.length, 2);
      assert.ok(found.embeddings[0].values.length > 0);
      assert.ok((await client().models.countTokens(ask())).totalTokens > 0);
    },
    async models() {
      const names = await collect(await client().models.list(), (model) => model.name);
      assert.ok(names.includes(`models/${GEMINI_MODEL}`), names);
    },
    async errorsAreItsOwn() {
      for (const [google, model, status] of [
        [client("sk-wrong"), GEMINI_MODEL, 401],
        [client(), "no-such-model", 404],
      ]) {
        const error = await errorOf(() => google.models.generateContent(ask({ model })));
        assert.ok(error instanceof ApiError, String(error));
        assert.equal(error.status, status);
      }
    },
  },
  {
    async aBusyModelIsAnApiError() {
      const error = await errorOf(() => client().models.generateContent(ask({ model: NEVER_MODEL })));
      assert.deepEqual([error instanceof ApiError, error.status], [true, 429]);
    },
    async aBusyModelIsAskedAgain() {
      const patient = client(KEY, { retryOptions: { attempts: 5 } });
      assert.equal((await patient.models.generateContent(ask({ model: BUSY_MODEL }))).text, "Here.");
    },
  },
);
