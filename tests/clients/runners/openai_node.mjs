// npm's openai.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";
import {
  ASK, BASE, BUSY_MODEL, CHAT_MODEL, CITY, EMBEDDING_MODEL, HEARING_MODEL, IMAGE_MODEL, KEY, NEVER_MODEL,
  PROMPT, SPEECH_MODEL, checkSame, checkWeather, collect, errorOf, run, waitingAsTold,
} from "./ways.mjs";

const client = (options = {}) => new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY, maxRetries: 0, ...options });
const weather = { type: "function", function: { name: "get_weather", parameters: CITY } };

await run(
  {
    async chat() {
      const ask = { model: CHAT_MODEL, messages: ASK };
      const whole = await client().chat.completions.create(ask);
      const { prompt_tokens, completion_tokens, total_tokens } = whole.usage;
      assert.equal(prompt_tokens + completion_tokens, total_tokens);
      const stream = await client().chat.completions.create({ ...ask, stream: true });
      const pieces = await collect(stream, (chunk) => chunk.choices[0].delta.content);
      checkSame(pieces, whole.choices[0].message.content);
    },
    async tools() {
      const ask = { model: CHAT_MODEL, messages: ASK, tools: [weather] };
      const whole = await client().chat.completions.create(ask);
      const [called] = whole.choices[0].message.tool_calls;
      checkWeather(called.function.name, called.function.arguments);
      const final = await client().chat.completions.stream(ask).finalChatCompletion();
      const [streamed] = final.choices[0].message.tool_calls;
      checkWeather(streamed.function.name, streamed.function.arguments);
    },
    async responses() {
      const whole = await client().responses.create({ model: CHAT_MODEL, input: PROMPT });
      const stream = await client().responses.create({ model: CHAT_MODEL, input: PROMPT, stream: true });
      const isText = (event) => event.type === "response.output_text.delta";
      checkSame(await collect(stream, (event) => (isText(event) ? event.delta : "")), whole.output_text);
    },
    async embeddings() {
      const { data } = await client().embeddings.create({ model: EMBEDDING_MODEL, input: ["a", "b"] });
      assert.deepEqual(data.map((one) => one.embedding.length), [1536, 1536]);
    },
    async images() {
      const drawn = await client().images.generate({ model: IMAGE_MODEL, prompt: "a red fox" });
      const picture = Buffer.from(drawn.data[0].b64_json, "base64");
      const image = await toFile(picture, "a.png", { type: "image/png" });
      const edited = await client().images.edit({ model: IMAGE_MODEL, image, prompt: "a cat" });
      assert.ok(edited.data[0].b64_json.startsWith("iVBORw0K"));
    },
    async audio() {
      const ask = { model: SPEECH_MODEL, voice: "alloy", input: "one two three" };
      const spoken = Buffer.from(await (await client().audio.speech.create(ask)).arrayBuffer());
      assert.equal(spoken.subarray(0, 4).toString(), "RIFF");
      const file = await toFile(spoken, "a.wav");
      assert.ok((await client().audio.transcriptions.create({ model: HEARING_MODEL, file })).text);
    },
    async listsAreOnesOwn() {
      for (const listed of [await client().files.list(), await client().batches.list()])
        assert.deepEqual(listed.data, []);
      const models = await collect(client().models.list(), (model) => model.id);
      assert.ok(models.includes(CHAT_MODEL));
    },
    async errorsAreOfTheRightClass() {
      const chat = (asker, more) =>
        errorOf(() => asker.chat.completions.create({ model: CHAT_MODEL, messages: ASK, ...more }));
      assert.ok((await chat(client({ apiKey: "sk-wrong" }))) instanceof OpenAI.AuthenticationError);
      assert.ok((await chat(client(), { model: "no-such-model" })) instanceof OpenAI.NotFoundError);
      const bad = await chat(client(), { n: 99 });
      assert.ok(bad instanceof OpenAI.BadRequestError);
      assert.ok(bad.requestID);
    },
  },
  {
    async aBusyModelIsARateLimitError() {
      const ask = { model: NEVER_MODEL, messages: ASK };
      const error = await errorOf(() => client().chat.completions.create(ask));
      assert.ok(error instanceof OpenAI.RateLimitError);
      assert.ok(Number(error.headers.get("retry-after")) >= 1);
    },
    async aBusyModelIsAskedAgainWhenItSaid() {
      const patient = client({ maxRetries: 3 });
      const ask = { model: BUSY_MODEL, messages: ASK };
      const answer = await waitingAsTold(() => patient.chat.completions.create(ask));
      assert.equal(answer.choices[0].message.content, "Here.");
    },
  },
);
