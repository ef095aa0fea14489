"use strict";

// The pages work without this script; it refreshes them in place and remembers the theme.

const root = document.documentElement;
const saved = localStorage.getItem("busbar-theme");
if (saved) root.dataset.theme = saved;

function currentTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return root.dataset.theme || (dark ? "dark" : "light");
}

function wireThemeButton() {
  const button = document.getElementById("theme");
  if (!button) return;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = currentTheme() === "dark" ? "light" : "dark";
    localStorage.setItem("busbar-theme", root.dataset.theme);
  });
}

function openDetails(area) {
  return new Set([...area.querySelectorAll("details[open][id]")].map((item) => item.id));
}

async function refresh(area, status) {
  if (document.hidden || area.contains(document.activeElement)) return;
  try {
    const answer = await fetch(location.href, { headers: { "x-partial": "1", accept: "text/html" } });
    if (answer.redirected || answer.status === 401) return location.reload();
    if (!answer.ok) throw new Error(String(answer.status));
    const open = openDetails(area);
    area.innerHTML = await answer.text();
    for (const item of area.querySelectorAll("details[id]")) {
      if (open.has(item.id)) item.open = true;
    }
    status.textContent = "live";
    status.className = "live-state";
  } catch {
    status.textContent = "telemetry does not answer";
    status.className = "live-state stale";
  }
}

function wireLiveArea() {
  const area = document.querySelector("[data-live-ms]");
  const status = document.getElementById("live");
  if (!area || !status) return;
  status.textContent = "live";
  let busy = false;
  setInterval(async () => {
    if (busy) return;
    busy = true;
    await refresh(area, status);
    busy = false;
  }, Number(area.dataset.liveMs));
}

function wireFilters() {
  const form = document.querySelector("form.filters");
  if (!form) return;
  form.addEventListener("change", () => form.requestSubmit());
  form.querySelector("button").hidden = true;
}

document.addEventListener("DOMContentLoaded", () => {
  wireThemeButton();
  wireLiveArea();
  wireFilters();
});
