"use strict";
// Readouts of the curves and the filter of the samples; the page is whole without either.
const charts = JSON.parse(document.getElementById("data").textContent);

function make(name, attributes) {
  const one = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) one.setAttribute(key, attributes[key]);
  return one;
}

// The place in sorted `steps` nearest to `step`.
function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1; else high = middle;
  }
  return low > 0 && step - steps[low - 1] <= steps[low] - step ? low - 1 : low;
}

function follow(figure) {
  const chart = charts[figure.dataset.chart], svg = figure.querySelector(":scope > svg");
  const [width, height, left, right, top, bottom] = chart.box, [first, last] = chart.span;
  const scale = chart.log ? Math.log10 : Number, [low, high] = chart.range.map(scale);
  const x = step => left + (width - left - right) * (step - first) / (last - first);
  const y = value => height - bottom - (height - bottom - top) * (scale(value) - low) / (high - low);
  const steps = [...new Set(chart.curves.flatMap(curve => curve.x))].sort((a, b) => a - b);
  const marks = svg.appendChild(make("g", { hidden: "" }));
  const readout = figure.appendChild(document.createElement("div"));
  readout.className = "readout";
  readout.hidden = true;
  let at = 0;

  function line(curve, step) {
    const place = nearest(curve.x, step), value = curve.y[place], row = document.createElement("div");
    const dot = row.appendChild(document.createElement("i"));
    dot.className = "c" + curve.colour;
    row.append(curve.name + (curve.x[place] === step ? "" : ` (step ${curve.x[place].toLocaleString("en")})`));
    const number = row.appendChild(document.createElement("b"));
    number.textContent = value === null ? "not finite" : String(Number(value.toPrecision(5)));
    if (value !== null) marks.append(make("circle", { class: "spot c" + curve.colour, r: 4,
      cx: x(curve.x[place]), cy: y(value) }));
    return row;
  }

  function show(place) {
    at = Math.max(0, Math.min(steps.length - 1, place));
    const step = steps[at], where = x(step);
    marks.replaceChildren(make("path", { class: "cross", d: `M${where} ${top}V${height - bottom}` }));
    const head = document.createElement("div");
    head.textContent = "step " + step.toLocaleString("en");
    readout.replaceChildren(head, ...chart.curves.filter(curve => curve.x.length).map(curve => line(curve, step)));
    marks.removeAttribute("hidden");
    readout.hidden = false;
    const box = svg.getBoundingClientRect(), above = figure.getBoundingClientRect().top, pixels = where / width * box.width;
    const flip = pixels + 14 + readout.offsetWidth > box.width;
    readout.style.left = Math.max(0, flip ? pixels - 14 - readout.offsetWidth : pixels + 14) + "px";
    readout.style.top = box.top - above + 12 + "px";
  }

  function hide() {
    marks.setAttribute("hidden", "");
    readout.hidden = true;
  }

  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), inside = (event.clientX - box.left) / box.width * width;
    show(nearest(steps, first + (inside - left) / (width - left - right) * (last - first)));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageDown: -20, PageUp: 20 }[event.key];
    if (!by) return;
    event.preventDefault();
    show(readout.hidden ? steps.length - 1 : at + by);
  });
}

function filter(buttons) {
  const rows = document.querySelectorAll("#" + buttons.dataset.of + " tbody tr");
  buttons.hidden = false;
  buttons.addEventListener("click", event => {
    if (!event.target.dataset.only) return;
    for (const one of buttons.children) one.setAttribute("aria-pressed", one === event.target);
    for (const row of rows) {
      row.hidden = !["all", ...row.dataset.is.split(" ")].includes(event.target.dataset.only);
    }
  });
}

document.querySelectorAll("figure[data-chart]").forEach(follow);
document.querySelectorAll(".filter").forEach(filter);
