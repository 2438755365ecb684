// Seeds go up to 2^64 - 1, which JavaScript's numbers cannot hold: they stay texts.

export function parse(text) {
  return JSON.parse(text, (key, value, context) => {
    const whole = typeof value === "number" && !Number.isSafeInteger(value) && /^\d+$/.test(context?.source ?? "");
    return whole ? context.source : value;
  });
}

/** The JSON of an object, in which the text `seed` is a number. */
export function write({seed, ...others}) {
  const text = JSON.stringify(others);
  return seed === undefined ? text : text.replace(/\}$/, `${text === "{}" ? "" : ","}"seed":${BigInt(seed)}}`);
}
