// npm's openai against the server: node openai.mjs URL MODEL KEY
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, model, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "How is the sky?" }];
const greedy = { model, messages, max_tokens: 20, temperature: 0 };

const names = [];
for await (const found of client.models.list()) names.push(found.id);
assert.deepEqual(names, [model]);

const whole = await client.chat.completions.create(greedy);
assert.equal(whole.usage.completion_tokens, 20);
let text = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({
  ...greedy,
  stream: true,
  stream_options: { include_usage: true },
})) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.total_tokens, whole.usage.total_tokens); // those from the cache may differ

// Leaving a stream in the middle ends the request.
for await (const chunk of await client.chat.completions.create({ ...greedy, max_tokens: 500, stream: true })) {
  if (chunk.choices[0]?.delta?.content) break;
}

const Weather = z.object({ kind: z.enum(["sun", "rain", "snow"]), wet: z.boolean() });
const parsed = await client.chat.completions.parse({
  model, messages, max_tokens: 400, seed: 1, response_format: zodResponseFormat(Weather, "weather"),
});
assert.ok(Weather.safeParse(parsed.choices[0].message.parsed).success);

const tools = [{
  type: "function",
  function: { name: "look", parameters: z.toJSONSchema(Weather) },
}];
const called = await client.chat.completions.create({
  model, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 400, seed: 1,
});
assert.equal(called.choices[0].message.tool_calls[0].function.name, "look");

const vectors = await client.embeddings.create({ model, input: ["a", "bb"] });
assert.equal(vectors.data.length, 2);

await assert.rejects(client.chat.completions.create({ ...greedy, model: "nothing" }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ ...greedy, temperature: -1 }), (error) => {
  return error instanceof OpenAI.BadRequestError && error.param === "temperature";
});
await assert.rejects(
  new OpenAI({ baseURL: url, apiKey: "wrong", maxRetries: 0 }).models.list(),
  OpenAI.AuthenticationError,
);
console.log("done");
