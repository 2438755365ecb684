// What a PNG file says it was made with: ldmrt writes it as JSON into a text chunk (PNG specification, 11.3.3.4).

import {parse} from "./json.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/** The parameters in a file's text chunk `ldmrt`; null where it has none. */
export async function parametersOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!SIGNATURE.every((byte, place) => bytes[place] === byte)) return null;
  for (const [type, data] of chunks(bytes)) {
    if (type !== "iTXt") continue;
    const [keyword, text] = await internationalText(data);
    if (keyword === "ldmrt") return parse(text);
  }
  return null;
}

/** The chunks of a PNG file: its length, type, data, checksum. */
function* chunks(bytes) {
  const view = new DataView(bytes.buffer), latin = new TextDecoder("latin1");
  for (let at = SIGNATURE.length; at + 12 <= bytes.length;) {
    const length = view.getUint32(at), data = bytes.subarray(at + 8, at + 8 + length);
    yield [latin.decode(bytes.subarray(at + 4, at + 8)), data];
    at += 12 + length;
  }
}

/** An iTXt chunk: keyword, 0, whether it is compressed, method, language, 0, translated keyword, 0, text. */
async function internationalText(data) {
  const end = data.indexOf(0), language = data.indexOf(0, end + 3), begin = data.indexOf(0, language + 1) + 1;
  const compressed = data[end + 1] === 1, text = data.subarray(begin);
  return [
    new TextDecoder("latin1").decode(data.subarray(0, end)),
    compressed ? await inflated(text) : new TextDecoder().decode(text),
  ];
}

const inflated = bytes =>
  new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
