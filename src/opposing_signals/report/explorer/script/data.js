const MARGIN = { left: 60, right: 16, top: 8, bottom: 6 };
const AXIS = 20; // height of the step axis below a chart
const DRAG = 5; // pixels from which on a click is a drag
const NARROWEST = 8; // steps
const SPIKES = 0.05; // share of the steps with the largest rise of the train loss
const place = document.body.dataset.place;
const element = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const received = new Map(); // name of a file ↦ promise of its content
const waiting = new Map(); // name ↦ how to keep the promise

/** Called by a data file. */
function receive(name, content) {
  if (name === "run" && !run) begin(content);
  else waiting.get(name)?.resolve(content);
}

function load(name, source = `${place}/${name}.js`) {
  if (!received.has(source)) {
    received.set(source, new Promise((resolve, reject) => {
      waiting.set(name, { resolve });
      const script = document.createElement("script");
      script.src = source;
      script.onload = () => { waiting.delete(name); script.remove(); };
      script.onerror = () => {
        waiting.delete(name);
        received.delete(source);
        script.remove();
        reject(new Error(`${script.getAttribute("src")} cannot be loaded. If the report was built again: reload the page.`));
      };
      document.head.append(script);
    }));
  }
  return received.get(source);
}

const file = (folder, number) => `${folder}/${String(number).padStart(4, "0")}`;

function numbers(text, kind) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const size = Number(kind.slice(1));
  const view = new DataView(bytes.buffer);
  const read = { u1: "getUint8", u4: "getUint32", i4: "getInt32", f4: "getFloat32" }[kind];
  return Array.from({ length: bytes.length / size }, (_, i) => view[read](size * i, true));
}

const curve = (packed) => ({ steps: numbers(packed.steps, "i4"), values: numbers(packed.values, "f4") });

/** First place in ascending `values` that is not below `value`. */
function placeOf(values, value) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}

function at(series, step) {
  const i = placeOf(series.steps, step);
  return series.steps[i] === step ? series.values[i] : undefined;
}

function nearest(values, value) {
  const i = placeOf(values, value);
  if (i === 0) return 0;
  return i === values.length || value - values[i - 1] <= values[i] - value ? i - 1 : i;
}

function number(value, digits = 4) {
  if (value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return String(Number(value.toPrecision(digits))).replace(/-/g, "−");
}
const signed = (value) => (Number.isFinite(value) ? (value > 0 ? "+" : "") + value.toPrecision(3).replace(/-/g, "−") : number(value));
const count = (value) => value.toLocaleString("en-US");
const hundredths = (value) => value.toFixed(2).replace("-", "−");
const percent = (share) => `${(100 * share).toFixed(1)}%`;
