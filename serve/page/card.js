// The card of one adapter: measured arms, norms by module, nearest known adapters, where it came from, how to use it.

import { call, token } from "./api.js";
import { copyButton, h, save } from "./dom.js";
import { snippets } from "./snippets.js";
import { zip } from "./zip.js";

const short = (digest, n = 12) => digest.slice(0, n);
const percent = (value) => `${(100 * value).toFixed(1)}%`;
const section = (title, ...children) => h("section", { class: "panel" }, h("h3", {}, title), ...children);

// about: { adapter, report, base, releases, tasks, told }
export function renderCard(about) {
  const { adapter, report, base, told } = about;
  const folder = `${adapter.base}-${short(adapter.id)}`;
  return [
    h("div", { class: "card-head" },
      h("div", {},
        h("p", { class: "eyebrow" }, told),
        h("h2", { id: "result-title" }, adapter.prompt || adapter.task || "An adapter without a prompt"),
        h("p", { class: "hint" }, `${adapter.base} · rank ${adapter.r} · ${adapter.target_modules.join(", ")} · strength ${adapter.strength}`)),
      downloadButton(adapter, folder)),
    h("div", { class: "panels" },
      comparison(about),
      heatMap(report),
      neighbours(report),
      provenance(adapter)),
    usage(adapter, base, folder),
  ];
}

function downloadButton(adapter, folder) {
  const told = h("p", { class: "hint", role: "status" });
  const button = h("button", { type: "button", class: "primary", id: "download" }, "Download .zip");
  button.addEventListener("click", async () => {
    button.disabled = true;
    told.textContent = "Fetching.";
    try {
      const files = {};
      for (const name of adapter.files) {
        const answer = await call(`/v1/adapters/${adapter.id}/files/${name}`);
        files[`${folder}/${name}`] = new Uint8Array(await answer.arrayBuffer());
      }
      const archive = zip(files);
      save(archive, `${folder}.zip`);
      told.textContent = `${(archive.size / 1024).toFixed(0)} kB, ${adapter.files.length} files.`;
    } catch (error) {
      told.textContent = `Not downloaded: ${error.message}`;
    }
    button.disabled = false;
  });
  return h("div", { class: "download" }, button, told);
}

// What is known of how good it is: its own release, or that of the task whose wording the prompt is.
export function measured({ adapter, releases, tasks }) {
  const all = releases.flatMap((release) => release.adapters.map((item) => ({ ...item, base: release.base })));
  const own = all.find((item) => item.digest === adapter.id);
  if (own) return { task: own.task, item: own, own: true };
  const task = adapter.task || tasks.find((known) => known.prompts.includes(adapter.prompt))?.id;
  return { task, item: all.find((other) => other.task === task && other.base === adapter.base), own: false };
}

function comparison(about) {
  const found = measured(about);
  if (!found.item) {
    const reason = found.task
      ? `No release of ${about.adapter.base} has ${found.task} yet; jobs/regenerate.py measures and publishes it.`
      : "This prompt is no wording of a task with data, so there is nothing here to score it on.";
    return section("How good is it?", h("p", { class: "empty" }, `Not measured. ${reason}`));
  }
  const { item, own } = found;
  const arms = Object.entries(item.scores).sort((a, b) => b[1] - a[1]);
  const bars = arms.map(([arm, score]) =>
    h("li", { class: arm === item.arm ? "won" : null },
      h("span", { class: "arm" }, arm.replaceAll("_", " ")),
      h("span", { class: "bar", "data-arm": arm, "--share": score, "aria-hidden": "true" }),
      h("span", { class: "score" }, percent(score))));
  const note = own
    ? `Accuracy on validation data of ${item.task}. This adapter (${item.arm.replaceAll("_", " ")}) was released.`
    : `Accuracy on validation data of ${item.task}, measured on the released adapter (${item.arm.replaceAll("_", " ")}). This sample itself was not measured.`;
  return section("How good is it?", h("ul", { class: "arms" }, bars), h("p", { class: "hint" }, note));
}

function heatMap(report) {
  if (!report?.norms.length) return section("Where it acts", h("p", { class: "empty" }, "No report for this adapter."));
  const roles = [...new Set(report.norms.map((norm) => norm.role))];
  const layers = [...new Set(report.norms.map((norm) => norm.layer))].sort((a, b) => a - b);
  const strongest = Math.max(...report.norms.map((norm) => norm.norm));
  const norm = (role, layer) => report.norms.find((item) => item.role === role && item.layer === layer);
  const cell = (item) =>
    h("td", item ? { "--v": strongest ? item.norm / strongest : 0, title: `${item.module}: ${item.norm.toPrecision(3)}` } : {},
      h("span", { class: "unseen" }, item ? item.norm.toPrecision(3) : "none"));
  const table = h("table", { class: "heat" },
    h("caption", { class: "unseen" }, "Norm of the change of the weights by module and layer"),
    h("thead", {}, h("tr", {}, h("td"), layers.map((layer) => h("th", { scope: "col" }, String(layer))))),
    h("tbody", {}, roles.map((role) =>
      h("tr", {}, h("th", { scope: "row" }, role), layers.map((layer) => cell(norm(role, layer)))))));
  return section("Where it acts",
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Heat map, scrolls sideways" }, table),
    h("p", { class: "hint legend" }, "layer →", h("span", { class: "ramp", "aria-hidden": "true" }), `0 to ${strongest.toPrecision(3)}, norm of ΔW`));
}

function neighbours(report) {
  const text = "Nearest known adapters";
  const skipped = (report?.skipped ?? []).map((left) =>
    h("p", { class: "hint skipped" }, `Not compared: ${left.id ? short(left.id) : `run ${short(left.run)}`}. ${left.reason}`));
  if (!report?.nearest.length) {
    return section(text, h("p", { class: "empty" }, "The store has no other corpus adapter of this shape to compare with."), skipped);
  }
  const items = report.nearest.map((near) =>
    h("li", {},
      h("a", { href: `#${near.id}` }, near.task || near.prompt || short(near.id)),
      h("span", { class: "hint" }, near.base),
      h("span", { class: "score" }, near.distance.toFixed(2))));
  return section(text, h("ol", { class: "near" }, items),
    h("p", { class: "hint" }, "Relative distance of ΔW: 0 is equal, about 1.4 is unrelated."), skipped);
}

function provenance(adapter) {
  const rows = {
    id: adapter.id, origin: adapter.origin, task: adapter.task, "released as": adapter.arm,
    base: `${adapter.base} (${short(adapter.base_fingerprint)})`,
    generator: adapter.generator && short(adapter.generator), seed: adapter.seed,
    rank: `${adapter.r}, alpha ${adapter.lora_alpha}`, modules: adapter.target_modules.join(", "), uri: adapter.uri,
  };
  const list = Object.entries(rows).filter(([, value]) => value !== "" && value !== undefined).flatMap(([name, value]) => [
    h("dt", {}, name), h("dd", {}, h("code", {}, String(value)))]);
  return section("Provenance", h("dl", {}, list), copyButton(() => adapter.id, "Copy id"));
}

function usage(adapter, base, folder) {
  const all = snippets(adapter, base, folder, location.origin, Boolean(token.get()));
  const code = h("code");
  const panel = h("div", { class: "code", role: "tabpanel", id: "snippet", tabindex: "0", "aria-labelledby": "tab-0" }, h("pre", {}, code));
  const tabs = all.map(({ name }, i) =>
    h("button", { type: "button", role: "tab", id: `tab-${i}`, "aria-controls": "snippet", onclick: () => choose(i) }, name));
  let chosen = 0;
  function choose(i, focus = false) {
    chosen = (i + all.length) % all.length;
    code.textContent = all[chosen].text;
    panel.setAttribute("aria-labelledby", `tab-${chosen}`);
    tabs.forEach((tab, j) => {
      tab.setAttribute("aria-selected", j === chosen);
      tab.tabIndex = j === chosen ? 0 : -1;
    });
    if (focus) tabs[chosen].focus();
  }
  const row = h("div", { class: "tabs", role: "tablist", "aria-label": "Use it with" }, tabs);
  row.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) choose(chosen + step, true);
  });
  choose(0);
  return h("section", { class: "usage" },
    h("div", { class: "usage-head" }, h("h3", {}, "Use it"), row, copyButton(() => all[chosen].text)), panel);
}
