// JSON with integers of any size. JavaScript's numbers round those beyond 2^53, and seeds go up to 2^63 - 1.

const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g;

// Integers of 16 digits and more become strings of the same digits, everything else is as from JSON.parse.
export const decode = (text) => JSON.parse(text.replace(TOKENS, (token) => (/^-?\d{16,}$/.test(token) ? `"${token}"` : token)));

// An object whose values may be BigInts.
export function encode(body) {
  const fields = Object.entries(body).map(([name, value]) =>
    `${JSON.stringify(name)}:${typeof value === "bigint" ? value : JSON.stringify(value)}`);
  return `{${fields.join(",")}}`;
}
