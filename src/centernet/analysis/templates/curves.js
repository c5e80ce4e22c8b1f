"use strict";

// Curves: draws the panels in #panels with Plotly, which the page holds compressed in #library.

async function loadLibrary() {
  const bytes = Uint8Array.from(atob(document.getElementById("library").textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

// Plotly reads some markup in texts.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const STYLES = {
  every: {mode: "lines", opacity: 0.3, line: {width: 1}},
  mean: {mode: "lines", line: {width: 2}},
  step: {mode: "lines", line: {width: 2, shape: "vh"}},
  line: {mode: "lines", line: {width: 2}},
  score: {mode: "lines+markers", line: {width: 2}, marker: {size: 6}},
  validation: {mode: "markers", cliponaxis: false, marker: {size: 9, symbol: "diamond"}},
};

function traceOf(series, panel, names) {
  const style = STYLES[series.kind], ink = series.color === null ? color("ink") : color(`curve-${series.color % 8}`);
  const several = names.length > 1;
  return {
    type: "scatter", x: series.x, y: series.y, mode: style.mode, opacity: style.opacity ?? 1,
    cliponaxis: style.cliponaxis ?? true, line: {...style.line, color: ink}, marker: {...style.marker, color: ink},
    name: plain(several ? `${names[series.run]}, ${series.label}` : series.label),
    visible: !hidden.has(series.run), showlegend: panel.legend && !several,
    hoverinfo: several && series.kind === "every" ? "skip" : undefined,
  };
}

function layoutOf(panel) {
  const axis = {gridcolor: color("line"), zeroline: false, linecolor: color("line"), automargin: true};
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: 270, margin: {l: 44, r: 14, t: 28, b: 36},
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: color("ink")},
    xaxis: {...axis, range: panel.range, title: {text: plain(panel.x), standoff: 6}, hoverformat: ".2f"},
    yaxis: {...axis, type: panel.log ? "log" : "linear", rangemode: panel.fromZero ? "tozero" : "normal",
      hoverformat: ".4g", tickformat: panel.log ? "~g" : ""},
    modebar: {bgcolor: "rgba(0,0,0,0)", color: color("soft"), activecolor: color("accent")},
    hovermode: "x unified", hoverlabel: {bgcolor: color("panel"), bordercolor: color("line"), namelength: 60},
    // On touch screens a finger scrolls the page; the buttons zoom.
    dragmode: touch ? false : "zoom", uirevision: "kept",
    legend: {x: 1, xanchor: "right", y: 0, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)"},
  };
}

const touch = matchMedia("(pointer: coarse)").matches;
const boxes = [...document.querySelectorAll(".runs input")];
const hidden = new Set(boxes.filter((box) => !box.checked).map((box) => Number(box.value)));  // indices of runs
const places = [...document.querySelectorAll(".plot > div")];
const {panels, names} = JSON.parse(document.getElementById("panels").textContent);

function draw() {
  const config = {
    responsive: true, displaylogo: false, displayModeBar: touch ? true : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };
  return Promise.all(panels.map((panel, k) => (
    Plotly.react(places[k], panel.series.map((series) => traceOf(series, panel, names)), layoutOf(panel), config))));
}

// Zooming one plot shows the same epochs, or other values, in those with the same axis.
function linkAxes() {
  let following = false;
  for (const [k, place] of places.entries()) {
    const others = places.filter((_, j) => j !== k && panels[j].x === panels[k].x);
    place.on("plotly_relayout", async (change) => {
      const range = "xaxis.range[0]" in change ? [change["xaxis.range[0]"], change["xaxis.range[1]"]] : change["xaxis.range"];
      const update = range ? {"xaxis.range": [...range]} : change["xaxis.autorange"] ? {"xaxis.autorange": true} : null;
      if (following || !update) return;
      following = true;
      await Promise.all(others.map((other) => Plotly.relayout(other, update)));
      following = false;
    });
  }
}

async function showCurves() {
  await loadLibrary();
  await draw();
  linkAxes();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  for (const box of boxes) {
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(Number(box.value)); else hidden.add(Number(box.value));
      draw();
    });
  }
  document.documentElement.dataset.curves = "drawn";
}

showCurves().catch((error) => {
  console.error(error);
  document.getElementById("no-curves").hidden = false;
});
