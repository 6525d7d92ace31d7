// What the page asks of the service: JSON in and out, the token from this tab, problems as errors with their detail.

import { decode, encode } from "./json.js";

const TOKEN = "oral_token";

export class Problem extends Error {
  constructor(status, detail, requestId = "", retryAfter = null) {
    super(detail);
    Object.assign(this, { status, requestId, retryAfter });
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { accept: "application/json", ...headers };
  if (token.get()) sent.authorization = `Bearer ${token.get()}`;
  if (body !== undefined) sent["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body: body && encode(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service does not answer. It may be starting, or the connection is gone.");
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

export const read = async (path, options) => decode(await (await call(path, options)).text());

async function problemOf(answer) {
  const wait = Number(answer.headers.get("retry-after"));
  const told = await answer.json().catch(() => ({}));
  const detail = told.detail ?? `The service answered ${answer.status}.`;
  const requestId = told.request_id || answer.headers.get("x-request-id") || "";
  return new Problem(answer.status, detail, requestId, wait > 0 ? wait : null);
}

export const sleep = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const stop = () => (clearTimeout(timer), reject(new DOMException("stopped", "AbortError")));
    const timer = setTimeout(() => (signal?.removeEventListener("abort", stop), resolve()), 1000 * seconds);
    signal?.addEventListener("abort", stop, { once: true });
  });

// Generate: repeats what may pass, waits for a job where there is one, and says what happens to `tell`.
// `stored`: an equal request was answered before, and so was this one.
export async function generate(request, signal, tell) {
  const headers = { "idempotency-key": crypto.randomUUID?.() ?? String(Math.random()), prefer: "wait=20" };
  for (let attempt = 1; ; attempt++) {
    try {
      const answer = await call("/v1/adapters", { method: "POST", body: request, headers, signal });
      const made = decode(await answer.text());
      if (answer.status === 202) return { adapter: await finished(made, signal, tell), stored: false };
      return { adapter: made, stored: (answer.headers.get("cache-status") ?? "").includes("hit") };
    } catch (error) {
      const passes = [429, 502, 503, 504].includes(error.status) && attempt < 6;
      if (!passes) throw error;
      const wait = error.retryAfter ?? 2 ** attempt;
      tell(`Busy. Trying again in ${wait} s.`);
      await sleep(wait, signal);
      tell("Trying again.");
    }
  }
}

async function finished(job, signal, tell) {
  tell(`Accepted as job ${job.id.slice(0, 8)}. Waiting for it.`);
  try {
    while (job.status !== "succeeded") {
      if (job.status === "failed") throw new Problem(job.problem.status, job.problem.detail, job.problem.request_id);
      if (job.status === "cancelled") throw new Problem(0, "The job was cancelled.");
      await sleep(1, signal);
      job = await read(`/v1/jobs/${job.id}`, { signal });
    }
  } catch (error) {
    if (error.name === "AbortError") await call(`/v1/jobs/${job.id}`, { method: "DELETE" }).catch(() => {});
    throw error;
  }
  return job.adapter;
}
