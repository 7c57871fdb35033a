// Filters, search and keyboard for pages with cards. Without this script, all cards are shown.
"use strict";
const form = document.getElementById("filters");
const cards = [...document.querySelectorAll("[data-tags]")];
const large = document.getElementById("large");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let opened = null;

function visibleCards() {
  return cards.filter((card) => !card.hidden && card.closest("[hidden]") === null);
}

function apply() {
  const chosen = new FormData(form);
  const words = (chosen.get("words") || "").toLowerCase().split(/\s+/).filter(Boolean);
  const tag = chosen.get("tag"), group = chosen.get("group");
  let count = 0;
  for (const card of cards) {
    const text = card.textContent.toLowerCase();
    card.hidden = !(
      (!tag || card.dataset.tags.split(" ").includes(tag)) &&
      (!group || card.dataset.group === group) &&
      words.every((word) => text.includes(word))
    );
    count += !card.hidden;
  }
  document.getElementById("shown").textContent =
    `${count.toLocaleString("en")} of ${cards.length.toLocaleString("en")} cards`;
  document.getElementById("empty").hidden = count > 0;
}

function show(card) {
  opened = card;
  const copy = card.cloneNode(true);
  copy.removeAttribute("id");
  copy.removeAttribute("tabindex");
  for (const clip of copy.querySelectorAll(".clip")) clip.classList.remove("playing");
  for (const details of copy.querySelectorAll("details")) details.open = true;
  large.querySelector("div").replaceChildren(copy);
  if (!large.open) large.showModal();
}

function move(card, key) {
  const rows = visibleCards(), index = rows.indexOf(card);
  if (index < 0) return null;
  if (key === "Home") return rows[0];
  if (key === "End") return rows.at(-1);
  if (key === "ArrowRight") return rows[index + 1];
  if (key === "ArrowLeft") return rows[index - 1];
  // Up and down: the card of the next line that is nearest.
  const here = card.getBoundingClientRect(), down = key === "ArrowDown";
  let best = null, distance = Infinity;
  for (const other of rows) {
    const there = other.getBoundingClientRect();
    if (down ? there.top < here.bottom : there.bottom > here.top) continue;
    const far = Math.abs(there.top - here.top) + Math.abs(there.left - here.left);
    if (far < distance) [best, distance] = [other, far];
  }
  return best;
}

const MOVES = ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End"];
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target, search = form && form.elements.words;
  if (large && large.open) {
    const next = event.key === "ArrowRight" || event.key === "ArrowLeft"
      ? move(opened, event.key) : null;
    if (next) { show(next); event.preventDefault(); }
    return;
  }
  if (target === search) {
    if (event.key === "Escape") { search.value = ""; apply(); }
    const first = visibleCards()[0];
    if ((event.key === "ArrowDown" || event.key === "Enter") && first) {
      first.focus(); event.preventDefault();
    }
    return;
  }
  if (event.key === "/" && search && !target.closest("input, select, textarea")) {
    search.focus(); event.preventDefault();
    return;
  }
  if (!target.matches || !target.matches("[data-tags]")) return;
  if (event.key === "Enter" && large) { show(target); event.preventDefault(); return; }
  const next = MOVES.includes(event.key) ? move(target, event.key) : null;
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); event.preventDefault(); }
});

// The frames of a clip play while its card is pointed at or focused.
function play(card) {
  const clips = [...card.querySelectorAll(".clip")];
  if (!clips.length || still.matches || card.dataset.playing) return;
  let turn = 0;
  const step = () => {
    for (const clip of clips) {
      clip.classList.add("playing");
      [...clip.children].forEach((frame, index, all) =>
        frame.classList.toggle("now", index === turn % all.length));
    }
    turn += 1;
  };
  card.dataset.playing = setInterval(step, 500);
  step();
}
function pause(card) {
  if (card.matches(":hover, :focus")) return;
  clearInterval(Number(card.dataset.playing));
  delete card.dataset.playing;
  for (const clip of card.querySelectorAll(".clip")) clip.classList.remove("playing");
}
for (const card of cards) {
  for (const name of ["pointerenter", "focus"]) card.addEventListener(name, () => play(card));
  for (const name of ["pointerleave", "blur"]) card.addEventListener(name, () => pause(card));
  card.addEventListener("click", (event) => {
    if (large && event.target.closest(".media")) show(card);
  });
}
if (large) {
  document.getElementById("close").addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  large.addEventListener("close", () => { if (opened) opened.focus(); });
}
if (form) {
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}
for (const link of document.querySelectorAll("[data-show]")) {
  link.addEventListener("click", () => {
    const choice = form && form.querySelector(`[name=tag][value="${link.dataset.show}"]`);
    if (choice) { choice.checked = true; apply(); }
  });
}
