// The server's API: models, cards, and answers while they are written.

let key = "";

// What the server says of a request it turned down, in its own words.
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function useKey(text) {
  key = text;
}

export async function models() {
  return (await (await call("v1/models")).json()).data;
}

export async function adapter(name) {
  return (await call(`v1/adapters/${encodeURIComponent(name)}`)).json();
}

// Yields {text, tokens} for every piece, then {reason} and {usage}. Throws ServerError.
export async function* answer(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  yield { note: response.headers.get("X-Finetune-Note") };
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, response.status);
    if (chunk.usage) yield { usage: chunk.usage };
    for (const choice of chunk.choices) {
      const tokens = choice.logprobs?.content ?? [];
      if (choice.delta.content || tokens.length) yield { text: choice.delta.content ?? "", tokens };
      if (choice.finish_reason) yield { reason: choice.finish_reason };
    }
  }
  throw new ServerError("The connection ended before the answer did.", response.status);
}

// The data of server-sent events, whatever parts the network cuts them into.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice("data: ".length);
    }
  } finally {
    reader.cancel().catch(() => {});  // nobody reads on: the server stops writing
  }
}

async function call(address, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(`The server cannot be reached (${error.message}).`, 0);
  }
  if (!response.ok) throw new ServerError(await reason(response), response.status);
  return response;
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}
