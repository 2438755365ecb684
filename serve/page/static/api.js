// The server's API: JSON, images, and events row by row.

import {parse, write} from "./json.js";
import {askForKey} from "./key.js";

const KEY = "ldmrt key";

/** Send a request, with the API key where one is known; where the server wants one, ask for it and send again. */
async function send(path, {method = "GET", body, keepalive} = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY), headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, {method, headers, body: body && write(body), keepalive});
    } catch {
      throw new Error("The server does not answer.");
    }
    if (answer.status === 401) {
      sessionStorage.setItem(KEY, await askForKey(Boolean(key)));
    } else if (answer.ok) {
      return answer;
    } else {
      throw new Error(await problem(answer));
    }
  }
}

/** What an answer says is wrong. */
async function problem(answer) {
  try {
    return parse(await answer.text()).error.message;
  } catch {
    return `The server answers ${answer.status} ${answer.statusText}.`;
  }
}

export const json = async (path, options) => parse(await (await send(path, options)).text());
export const blob = async path => (await send(path)).blob();

/** The data of a request's server-sent events, one after another. `EventSource` could not send the key. */
export async function* events(path) {
  const lines = (await send(path)).body.pipeThrough(new TextDecoderStream());
  let rest = "";
  for await (const text of chunks(lines)) {
    const parts = (rest + text).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find(line => line.startsWith("data: "));
      if (data) yield parse(data.slice(6));
    }
  }
}

/** The chunks of a stream; not every browser can iterate over one. */
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } catch {
    throw new Error("The connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
