"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  system.addEventListener("change", label);
  label();

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = (cell.dataset.value ?? cell.textContent).trim();
    if (text === "" || text === "–") return null;
    return Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true }));
  const sortBy = (table, head) => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: valueOf(row, head.cellIndex) }));
    rows.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      return ascending ? compare(a.value, b.value) : compare(b.value, a.value);
    });
    body.append(...rows.map((entry) => entry.row));
  };
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    for (const head of table.tHead.rows[table.tHead.rows.length - 1].cells) {
      if ("noSort" in head.dataset) continue;
      const sort = document.createElement("button");
      sort.type = "button";
      sort.className = "sort";
      sort.append(...head.childNodes);
      sort.addEventListener("click", () => sortBy(table, head));
      head.append(sort);
    }
  }

  const filters = [...document.querySelectorAll("[data-rows-of]")];
  const wanted = (filter) => (filter.type === "checkbox" && !filter.checked ? "" : filter.value);
  const show = (id) => {
    const ofTable = filters.filter((filter) => filter.dataset.rowsOf === id);
    for (const row of document.getElementById(id).tBodies[0].rows) {
      row.hidden = ofTable.some((filter) => wanted(filter) !== "" && row.dataset[filter.dataset.key] !== wanted(filter));
    }
  };
  for (const filter of filters) {
    filter.addEventListener("change", () => show(filter.dataset.rowsOf));
    show(filter.dataset.rowsOf);
  }
})();
