// What ways.py is for Python: calls every way and prints what became of each, one line of JSON a way.
import assert from "node:assert/strict";

export const BASE = process.env.HEADRACE_BASE_URL.replace(/\/$/, "");
export const KEY = process.env.HEADRACE_KEY;
const named = (name, otherwise) => process.env[name] || otherwise;
export const CHAT_MODEL = named("HEADRACE_CHAT_MODEL", "gpt-3.5-turbo");
export const CLAUDE_MODEL = named("HEADRACE_CLAUDE_MODEL", "claude-sonnet-4-5");
export const EMBEDDING_MODEL = named("HEADRACE_EMBEDDING_MODEL", "text-embedding-3-small");
export const GEMINI_MODEL = named("HEADRACE_GEMINI_MODEL", "gemini-2.5-flash");
export const GEMINI_EMBEDDING_MODEL = named("HEADRACE_GEMINI_EMBEDDING_MODEL", "gemini-embedding-001");
export const BUSY_MODEL = named("HEADRACE_BUSY_MODEL", ""); // "": the station has none
export const NEVER_MODEL = BUSY_MODEL + "-never";
export const [SPEECH_MODEL, HEARING_MODEL, IMAGE_MODEL] = ["tts-1", "whisper-1", "gpt-image-1"];

export const PROMPT = "Say this is a test!";
export const ASK = [{ role: "user", content: PROMPT }];
export const CITY = {
  type: "object",
  properties: { city: { type: "string" }, unit: { type: "string", enum: ["C", "F"] } },
  required: ["city", "unit"],
  additionalProperties: false,
};

/** Exit status 1 if one of them failed. `whenBusy`: only where the station has busy models. */
export async function run(ways, whenBusy = {}) {
  for (const [name, way] of Object.entries({ ...ways, ...(BUSY_MODEL ? whenBusy : {}) })) {
    let error = "";
    try {
      await way();
    } catch (e) {
      error = e?.stack || String(e);
      process.exitCode = 1;
    }
    console.log(JSON.stringify({ way: name, error }));
  }
}

/** A stream came in pieces, and says what the whole answer says. */
export function checkSame(streamed, whole) {
  assert.ok(whole, "an empty answer");
  assert.ok(streamed.length > 1, `the stream came in ${streamed.length} piece`);
  assert.equal(streamed.join(""), whole);
}

/** A call of `get_weather` with all that CITY wants. */
export function checkWeather(name, told) {
  const given = typeof told === "string" ? JSON.parse(told) : told;
  assert.deepEqual([name, given.unit], ["get_weather", "C"]);
  assert.ok(given.city);
}

export async function collect(iterable, pick) {
  const found = [];
  for await (const one of iterable) {
    const picked = pick(one);
    if (picked !== undefined && picked !== null && picked !== "") found.push(picked);
  }
  return found;
}

/** The error that `call` ends with. */
export async function errorOf(call) {
  try {
    await call();
  } catch (e) {
    return e;
  }
  throw new Error("accepted");
}

/** `call` is refused with `retry-after: 1` first; SDKs left alone wait less. */
export async function waitingAsTold(call) {
  const started = performance.now();
  const answer = await call();
  assert.ok(performance.now() - started > 900, "retry-after was not honoured");
  return answer;
}
