// The page: fills the form from the service, generates, shows cards and releases. State is the address (#adapter id).

import { Problem, call, generate, read, token } from "./api.js";
import { renderCard } from "./card.js";
import { $, h } from "./dom.js";

const known = { bases: [], tasks: [], releases: [] };
let running = null;

const list = async (path) => (await read(path)).items;

async function load() {
  try {
    [known.bases, known.tasks, known.releases] = await Promise.all(["/v1/bases", "/v1/tasks", "/v1/releases"].map(list));
    showFault(null);
    const { generator } = await read("/readyz");
    setStatus("ok", `ready · generator ${generator.slice(0, 8)}`);
  } catch (error) {
    setStatus("bad", error.status === 401 || error.status === 403 ? "token needed" : "not ready");
    showFault(error, load);
  }
  showBases();
  showExamples();
  showReleases();
  await showAddress();
}

function setStatus(state, text) {
  $("status").dataset.state = state;
  $("status-text").textContent = text;
}

function showBases() {
  const chosen = $("base").value;
  $("base").replaceChildren(...known.bases.map((base) =>
    h("option", { value: base.id, disabled: Boolean(base.refusal) }, base.refusal ? `${base.id} (not served)` : base.id)));
  const usable = known.bases.filter((base) => !base.refusal);
  $("base").value = usable.some((base) => base.id === chosen) ? chosen : (usable.at(-1)?.id ?? "");
  $("generate").disabled = usable.length === 0;
  const refused = known.bases.find((base) => base.refusal);
  $("base-hint").textContent = usable.length
    ? ""
    : refused ? `No base here can be served: ${refused.refusal}.` : "This store has no base model yet. Put a checkpoint under bases/, or run jobs/corpus.py.";
  showKinds();
}

function showKinds() {
  const base = known.bases.find((item) => item.id === $("base").value);
  $("kind").replaceChildren(...(base?.lora ?? []).map((kind, i) =>
    h("option", { value: i }, `rank ${kind.r} · alpha ${kind.lora_alpha} · ${kind.target_modules.join(", ")}`)));
  $("kind").disabled = (base?.lora.length ?? 0) < 2;
}

function showExamples() {
  const prompts = known.tasks.map(({ prompts }, i) => prompts[i % prompts.length]).filter(Boolean).slice(0, 4);
  $("examples").replaceChildren(...prompts.map((prompt) =>
    h("button", { type: "button", class: "chip", title: prompt, onclick: () => ($("prompt").value = prompt, $("prompt").focus()) }, prompt)));
  $("examples").hidden = prompts.length === 0;
}

function showReleases() {
  if (!known.releases.length) {
    $("releases").replaceChildren(h("p", { class: "empty" }, "Nothing is published yet. jobs/regenerate.py makes a release for every base that lands."));
    return;
  }
  $("releases").replaceChildren(...known.releases.map((release) =>
    h("details", { class: "card release", open: release === known.releases[0] },
      h("summary", {}, h("strong", {}, release.base),
        h("span", { class: "hint" }, `release ${release.sequence} · ${release.adapters.length} adapter${release.adapters.length === 1 ? "" : "s"}`)),
      h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Adapters of ${release.base}` },
        h("table", {},
          h("thead", {}, h("tr", {}, ["Task", "Winner", "Validation", "Base model alone"].map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", {}, release.adapters.map((item) =>
            h("tr", {},
              h("th", { scope: "row" }, h("a", { href: `#${item.digest}` }, item.task)),
              h("td", {}, h("span", { class: "swatch", "data-arm": item.arm }), item.arm.replaceAll("_", " ")),
              h("td", {}, `${(100 * item.score).toFixed(1)}%`),
              h("td", {}, item.scores.base === undefined ? "not measured" : `${(100 * item.scores.base).toFixed(1)}%`)))))))));
}

async function showAdapter(adapter, told = "Stored adapter") {
  const report = await read(`/v1/adapters/${adapter.id}/report`).catch(() => null);
  const base = known.bases.find((item) => item.id === adapter.base);
  $("result").replaceChildren(...renderCard({ adapter, report, base, told, ...known }));
  $("result").hidden = false;
  $("result").focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("result").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}

async function showAddress() {
  const id = location.hash.slice(1);
  if (!/^[0-9a-f]{64}$/.test(id) || $("result").dataset.id === id) return;
  try {
    $("result").dataset.id = id;
    await showAdapter(await read(`/v1/adapters/${id}`));
  } catch (error) {
    delete $("result").dataset.id;
    showFault(error, showAddress);
  }
}

function showFault(error, again = null) {
  $("fault").hidden = !error;
  if (!error) return;
  const unauthorised = error.status === 401 || error.status === 403;
  $("fault").replaceChildren(
    h("p", {}, error instanceof Problem ? error.message : `The page failed: ${error.message}`),
    error.requestId ? h("p", { class: "hint" }, `request ${error.requestId}`) : "",
    unauthorised ? h("button", { type: "button", class: "quiet", onclick: openToken }, "Enter a token") : "",
    again && !unauthorised ? h("button", { type: "button", class: "quiet", onclick: again }, "Try again") : "");
}

async function submit(event) {
  event.preventDefault();
  if (running) return;
  const base = known.bases.find((item) => item.id === $("base").value);
  const kind = base?.lora[$("kind").value] ?? {};
  const request = { prompt: $("prompt").value, base: $("base").value, seed: BigInt($("seed").value), ...kind };
  if (Number($("strength").value) !== 1) request.strength = Number($("strength").value);
  running = new AbortController();
  const started = performance.now();
  const seconds = () => (performance.now() - started) / 1000;
  const clock = setInterval(() => ($("timer").textContent = `${seconds().toFixed(1)} s`), 100);
  busy(true);
  showFault(null);
  $("live").textContent = "Generating the adapter.";
  try {
    const { adapter, stored } = await generate(request, running.signal, (text) => ($("live").textContent = text));
    const took = seconds();
    $("result").dataset.id = adapter.id;
    history.replaceState(null, "", `#${adapter.id}`);
    const told = `${stored ? "Found in the store" : "Generated"} in ${took.toFixed(2)} s`;
    $("live").textContent = `${told}.`;
    await showAdapter(adapter, told);
  } catch (error) {
    $("live").textContent = error.name === "AbortError" ? "Cancelled." : "";
    if (error.name !== "AbortError") showFault(error);
  } finally {
    clearInterval(clock);
    busy(false);
    running = null;
  }
}

const MAX_SEED = 2n ** 63n - 1n;

function checkSeed() {
  const text = $("seed").value.trim();
  const good = /^[0-9]{1,19}$/.test(text) && BigInt(text) <= MAX_SEED;
  $("seed").setCustomValidity(good ? "" : `The seed is a whole number from 0 to ${MAX_SEED}.`);
}

function busy(is) {
  $("generate").disabled = is;
  $("cancel").hidden = $("progress").hidden = !is;
  $("form").setAttribute("aria-busy", is);
  $("timer").textContent = "";
}

function openToken() {
  $("token").value = token.get();
  $("token-dialog").showModal();
}

$("form").addEventListener("submit", submit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), $("form").requestSubmit());
});
$("cancel").addEventListener("click", () => running?.abort());
$("base").addEventListener("change", showKinds);
for (const event of ["input", "change"]) $("seed").addEventListener(event, checkSeed);
$("strength").addEventListener("input", () => ($("strength-value").textContent = Number($("strength").value).toFixed(2)));
$("token-open").addEventListener("click", openToken);
$("token-dialog").addEventListener("close", () => {
  const { returnValue } = $("token-dialog");
  if (returnValue) (token.set(returnValue === "save" ? $("token").value.trim() : ""), load());
  $("token").value = $("token-dialog").returnValue = "";
});
addEventListener("hashchange", showAddress);
load();
