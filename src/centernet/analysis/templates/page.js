"use strict";

// Tables of class "sortable": a click on a header sorts the rows, the next one reverses the order.

function cellValue(row, column) {
  const cell = row.cells[column];
  const text = ((cell && (cell.dataset.value ?? cell.textContent)) || "").trim();
  if (["", "-", "nan"].includes(text.toLowerCase())) return null;
  const number = Number(text.replace(/\s*%$/, ""));
  return Number.isNaN(number) ? text : number;
}

function compareValues(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, undefined, {numeric: true});
}

function sortRows(table, header, column) {
  const cell = header.cells[column];
  const direction = cell.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of header.cells) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const rows = [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => row !== header);
  const values = new Map(rows.map((row) => [row, cellValue(row, column)]));
  rows.sort((one, other) => {
    const a = values.get(one), b = values.get(other);
    // Rows without a value stay at the end.
    return a === null || b === null ? (a === null) - (b === null) : direction * compareValues(a, b);
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const header = table.tHead ? table.tHead.rows[table.tHead.rows.length - 1] : table.rows[0];
  for (const cell of header ? header.cells : []) {
    if (!cell.textContent.trim()) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...cell.childNodes);
    button.addEventListener("click", () => sortRows(table, header, cell.cellIndex));
    cell.append(button);
  }
}

// Galleries: figures with data-class, a JSON list of names or names separated by spaces, and data-score.

function classesOf(figure) {
  const text = figure.dataset.class || "";
  try {
    const names = JSON.parse(text);
    if (Array.isArray(names)) return names.map(String);
  } catch { /* not JSON */ }
  return text.split(/\s+/).filter(Boolean);
}

function labeled(text, input) {
  const label = document.createElement("label");
  label.append(text, " ", input);
  return label;
}

function numberInput(value) {
  const input = document.createElement("input");
  Object.assign(input, {type: "number", min: 0, max: 1, step: 0.05, value});
  return input;
}

for (const gallery of document.querySelectorAll(".images")) {
  const figures = [...gallery.querySelectorAll("figure")].map((element) => (
    {element, classes: classesOf(element), score: "score" in element.dataset ? Number(element.dataset.score) : null}));
  const names = [...new Set(figures.flatMap((figure) => figure.classes))].sort((a, b) => a.localeCompare(b));
  const scored = figures.some((figure) => figure.score !== null);
  if (figures.length < 2 || (names.length < 2 && !scored)) continue;

  const form = document.createElement("form");
  const select = document.createElement("select"), low = numberInput(0), high = numberInput(1);
  const shown = document.createElement("output");
  form.className = "filters";
  select.append(new Option("all", ""), ...names.map((name, k) => new Option(name, k)));
  if (names.length > 1) form.append(labeled("class", select));
  if (scored) form.append(labeled(`${gallery.dataset.scoreName || "score"} from`, low), labeled("to", high));
  form.append(shown);

  const update = () => {
    const name = select.value === "" ? null : names[Number(select.value)];
    const least = low.value === "" ? -Infinity : Number(low.value);
    const most = high.value === "" ? Infinity : Number(high.value);
    let count = 0;
    for (const {element, classes, score} of figures) {
      const visible = (name === null || classes.includes(name)) && (score === null || (score >= least && score <= most));
      element.hidden = !visible;
      count += visible;
    }
    shown.value = `${count} of ${figures.length} shown`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
  gallery.before(form);
}

// The report of a training in progress shows it as running until the next one is overdue.

function checkDue() {
  const badge = document.querySelector(".badge[data-due]");
  if (badge && Date.now() > Number(badge.dataset.due)) {
    badge.textContent = "interrupted?";
    badge.title = `The next report was due by ${new Date(Number(badge.dataset.due)).toLocaleString()}.`;
    badge.classList.add("late");
  }
}

checkDue();
setInterval(checkDue, 30_000);

// It is loaded again from time to time, but not while somebody works with the page.

const RELOAD_AFTER = 60_000;
let lastInput = Date.now();
for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "change"]) {
  addEventListener(kind, () => { lastInput = Date.now(); }, {passive: true});
}

function reloadIfIdle(now) {
  if (document.querySelector(".badge[data-due]") && now - lastInput > RELOAD_AFTER) location.reload();
}

setInterval(() => reloadIfIdle(Date.now()), RELOAD_AFTER / 2);

// What is wider than its container scrolls there, also by the keyboard.

function markScrolling() {
  for (const element of document.querySelectorAll(".wide")) {
    if (element.scrollWidth > element.clientWidth || element.scrollHeight > element.clientHeight) element.tabIndex = 0;
    else element.removeAttribute("tabindex");
  }
}

markScrolling();
window.addEventListener("resize", markScrolling);
