// Vercel's AI SDK against the server: node ai_sdk.mjs URL MODEL KEY
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [url, model, key] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "wrinklefree",
  baseURL: url,
  apiKey: key,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const prompt = "How is the sky?";
const greedy = { model: provider(model), prompt, maxOutputTokens: 20, temperature: 0, maxRetries: 0 };

const whole = await generateText(greedy);
assert.equal(whole.usage.outputTokens, 20);
assert.equal(whole.finishReason, "length");
const stream = streamText(greedy);
let text = "";
for await (const piece of stream.textStream) text += piece;
assert.equal(text, whole.text);
assert.equal((await stream.usage).outputTokens, 20);

const Weather = z.object({ kind: z.enum(["sun", "rain", "snow"]), wet: z.boolean() });
const { object } = await generateObject({ ...greedy, maxOutputTokens: 1400, schema: Weather });
assert.ok(Weather.safeParse(object).success);

const called = await generateText({
  ...greedy,
  maxOutputTokens: 1400,
  tools: { look: tool({ description: "Look at the sky.", inputSchema: Weather }) },
  toolChoice: "required",
});
assert.equal(called.toolCalls[0].toolName, "look");

const { embeddings } = await embedMany({ model: provider.textEmbeddingModel(model), values: ["a", "bb"] });
assert.equal(embeddings.length, 2);

const stopped = new AbortController();
let error = null;
try {
  for await (const piece of streamText({ ...greedy, maxOutputTokens: 500, abortSignal: stopped.signal }).textStream) {
    if (piece) stopped.abort();
  }
} catch (found) {
  error = found;
}
assert.ok(error === null || error.name === "AbortError", String(error));
console.log("done");
