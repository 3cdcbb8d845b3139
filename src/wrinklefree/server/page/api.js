// What the page asks of the server: the OpenAI routes, with the extension fields for decoding.

export class ApiFailure extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.param = error.param ?? null;
    this.code = error.code ?? null;
  }
}

function headers(key) {
  const found = { "Content-Type": "application/json" };
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

async function failure(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // A proxy's page, perhaps; the status must do.
  }
  const wait = response.headers.get("Retry-After");
  const message = error?.message ?? `the server answered ${response.status}`;
  return new ApiFailure(response.status, { ...error, message: wait ? `${message} (Retry-After: ${wait} s)` : message });
}

/** The model that is served: its entry in /v1/models. */
export async function fetchModel(key, signal) {
  const response = await fetch("/v1/models", { headers: headers(key), signal });
  if (!response.ok) throw await failure(response);
  return (await response.json()).data[0];
}

/** Events of a text/event-stream: the data of each, as it comes. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } // Everything else, such as a comment that keeps the line open, says nothing.
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Chunks of a chat completion as they come. Leaving the loop, or aborting, ends the work on the server. */
export async function* streamChat(body, key, signal) {
  const request = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  try {
    const response = await fetch("/v1/chat/completions", request);
    if (!response.ok) throw await failure(response);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiFailure(200, chunk.error);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof TypeError) throw new ApiFailure(0, { message: "the connection to the server broke off" });
    throw error;
  }
  throw new ApiFailure(200, { message: "the server ended the answer before it was complete" });
}

/** The same request for a shell. */
export function asCurl(body, withKey) {
  const quoted = JSON.stringify(body, null, 1).replaceAll("'", "'\\''");
  const key = withKey ? ' \\\n  -H "Authorization: Bearer $WRINKLEFREE_API_KEY"' : "";
  return `curl -N ${location.origin}/v1/chat/completions \\\n  -H "Content-Type: application/json"${key} \\\n  -d '${quoted}'`;
}
