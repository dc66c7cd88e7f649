// npm's @anthropic-ai/sdk.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import {
  ASK, BASE, BUSY_MODEL, CITY, CLAUDE_MODEL, KEY, NEVER_MODEL, checkSame, checkWeather, collect, errorOf, run,
  waitingAsTold,
} from "./ways.mjs";

const client = (options = {}) => new Anthropic({ baseURL: BASE, apiKey: KEY, maxRetries: 0, ...options });
const ask = (more = {}) => ({ model: CLAUDE_MODEL, max_tokens: 200, messages: ASK, ...more });

await run(
  {
    async messages() {
      const whole = await client().messages.create(ask());
      const stream = await client().messages.create(ask({ stream: true }));
      checkSame(await collect(stream, (event) => event.delta?.text), whole.content[0].text);
      const final = await client().messages.stream(ask()).finalMessage();
      assert.deepEqual(final.content, whole.content);
      assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
      assert.ok(whole._request_id);
    },
    async messagesWithBearer() {
      const bearer = client({ apiKey: null, authToken: KEY });
      assert.ok((await bearer.messages.create(ask())).content[0].text);
    },
    async tools() {
      const tools = [{ name: "get_weather", input_schema: CITY }];
      const [called] = (await client().messages.create(ask({ tools }))).content;
      checkWeather(called.name, called.input);
      const final = await client().messages.stream(ask({ tools })).finalMessage();
      assert.deepEqual([final.stop_reason, final.content[0].input], ["tool_use", called.input]);
    },
    async countTokensAndModels() {
      const counted = await client().messages.countTokens({ model: CLAUDE_MODEL, messages: ASK });
      assert.equal(counted.input_tokens, (await client().messages.create(ask())).usage.input_tokens);
      const models = await collect(client().models.list(), (model) => model.id);
      assert.ok(models.includes(CLAUDE_MODEL));
    },
    async errorsAreOfTheRightClass() {
      const wrong = await errorOf(() => client({ apiKey: "sk-wrong" }).messages.create(ask()));
      assert.ok(wrong instanceof Anthropic.AuthenticationError);
      assert.equal(wrong.error.error.type, "authentication_error");
      const unknown = await errorOf(() => client().messages.create(ask({ model: "no-such-model" })));
      assert.ok(unknown instanceof Anthropic.NotFoundError);
    },
  },
  {
    async aBusyModelIsARateLimitError() {
      const error = await errorOf(() => client().messages.create(ask({ model: NEVER_MODEL })));
      assert.ok(error instanceof Anthropic.RateLimitError);
      assert.ok(Number(error.headers.get("retry-after")) >= 1);
    },
    async aBusyModelIsAskedAgainWhenItSaid() {
      const patient = client({ maxRetries: 3 });
      const answer = await waitingAsTold(() => patient.messages.create(ask({ model: BUSY_MODEL })));
      assert.equal(answer.content[0].text, "Here.");
    },
  },
);
