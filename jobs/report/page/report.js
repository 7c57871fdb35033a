// Shows the rows that match the filters. Without this script, all rows are shown without filters.
const form = document.getElementById("filters");
const rows = [...document.querySelectorAll("[data-verdict]")];
const shown = document.getElementById("shown");
const section = document.getElementById("errors");

function apply() {
  const chosen = new FormData(form);
  const words = (chosen.get("words") || "").toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(
      (!chosen.get("verdict") || row.dataset.verdict === chosen.get("verdict")) &&
      (!chosen.get("group") || row.dataset.group === chosen.get("group")) &&
      words.every((word) => text.includes(word))
    );
    count += !row.hidden;
  }
  shown.textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  document.getElementById("empty").hidden = count > 0;
  if (section) section.hidden = !section.querySelector("li:not([hidden])");
}

form.addEventListener("input", apply);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
apply();
