let run; // what run.js holds, unpacked
const state = { step: null, pair: null, from: 0, to: 1, log: false, example: null, also: null, compare: null, class: null };
let runs = []; // the runs of the report: {page, data, summary, figures}
let also = null; // the quantity that is shown beside the others: {name, meaning, lines}
let compared = null; // curves of another run: {name, loss, sharpness}

function begin(packed) {
  run = { ...packed, loss: curve(packed.loss) };
  run.sharpness = packed.sharpness && curve(packed.sharpness);
  run.bound = packed.bound && curve(packed.bound);
  if (packed.changes) {
    const { steps, rise, fall, share } = packed.changes;
    run.changes = { ...packed.changes, steps: numbers(steps, "i4") };
    for (const [name, values] of Object.entries({ rise, fall, share })) {
      run.changes[name] = { steps: run.changes.steps, values: numbers(values, "f4") };
    }
  }
  run.pairs = packed.pairs.map((pair) => ({
    ...pair,
    rising: numbers(pair.rising, "u4"),
    falling: numbers(pair.falling, "u4"),
    losses: pair.losses.map((values) => ({ steps: run.loss.steps, values: numbers(values, "f4") })),
  }));
  run.memberships = new Map();
  run.pairs.forEach((pair, i) => [pair.rising, pair.falling].forEach((group, side) => group.forEach((rank) => {
    run.memberships.set(rank, [...(run.memberships.get(rank) ?? []), `${i + 1}${"ab"[side]}`]);
  })));
  run.spikes = spikes();
  const known = [run.loss.steps, run.sharpness?.steps ?? []].filter((steps) => steps.length);
  run.first = Math.min(...known.map((steps) => steps[0]));
  run.last = Math.max(...known.map((steps) => steps.at(-1)));
}

document.addEventListener("DOMContentLoaded", () => {
  if (run) show(); else element("summary").textContent = `${place}/run.js cannot be loaded: keep the page beside its data, or build the report again.`;
});

/** Whether there are steps to choose. */
const hasChanges = () => Boolean(run.changes?.steps.length);

function spikes() {
  if (!run.changes?.steps.length) return [];
  const rises = run.changes.steps.map((step) => at(run.loss, step + 1) - at(run.loss, step));
  const sorted = rises.filter((rise) => rise > 0).sort((a, b) => b - a);
  const least = sorted[Math.min(sorted.length, Math.ceil(SPIKES * rises.length)) - 1];
  return run.changes.steps.filter((_, i) => rises[i] >= least);
}

function show() {
  element("summary").textContent = run.summary;
  element("folder").textContent = run.folder;
  element("notices").hidden = !run.notices.length;
  element("notices").querySelector("ul").replaceChildren(...run.notices.map((text) => node("li", { textContent: text })));
  if (!Number.isFinite(run.first)) return;
  element("overview").hidden = false;
  element("sharpness").hidden = !run.sharpness;
  element("change").hidden = !hasChanges();
  element("step").hidden = !hasChanges();
  element("pairs").hidden = !run.pairs.length;
  if (hasChanges()) element("slider").max = run.changes.steps.length - 1;
  makePairRows();
  showPairCards();
  makeChoices();
  listen();
  readAddress();
  load("runs", "../runs.js").then(listRuns, () => {}); // an explorer by itself has none
}

function readAddress() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const whole = (name) => (/^\d+$/.test(fields.get(name) ?? "") ? Number(fields.get(name)) : null);
  const pair = whole("pair");
  state.pair = pair >= 1 && pair <= run.pairs.length ? pair - 1 : null;
  state.from = Math.max(run.first, whole("from") ?? run.first);
  state.to = Math.min(run.last, whole("to") ?? run.last);
  if (!(state.from < state.to)) [state.from, state.to] = [run.first, run.last];
  state.log = fields.get("log") === "1";
  state.class = run.classes.includes(fields.get("class")) ? fields.get("class") : null;
  state.also = run.other.some(({ name }) => name === fields.get("also")) ? fields.get("also") : null;
  state.compare = fields.get("compare");
  state.step = null;
  if (hasChanges()) {
    const wanted = whole("step") ?? run.pairs[state.pair ?? 0]?.step ?? run.spikes[0] ?? run.changes.steps[0];
    state.step = run.changes.steps[nearest(run.changes.steps, wanted)];
  }
  state.example = null;
  update();
  const example = whole("example");
  if (example === null) element("example").close(); else lookUp(example);
  if (state.also !== (also?.name ?? null)) chooseAlso(state.also);
  if (state.compare !== (compared?.name ?? null)) chooseCompared(state.compare);
}

function writeAddress() {
  const fields = new URLSearchParams();
  if (state.step !== null) fields.set("step", state.step);
  if (state.pair !== null) fields.set("pair", state.pair + 1);
  if (state.from > run.first || state.to < run.last) {
    fields.set("from", state.from);
    fields.set("to", state.to);
  }
  if (state.log) fields.set("log", 1);
  for (const name of ["class", "also", "compare"]) if (state[name] !== null) fields.set(name, state[name]);
  if (state.example !== null) fields.set("example", state.example);
  history.replaceState(null, "", `#${fields}`);
}

/** Show the state: everything that depends on it. */
function update() {
  writeAddress();
  drawOverview();
  showStep();
  showPair();
}

function goTo(step) {
  if (!hasChanges()) return;
  const steps = run.changes.steps;
  state.step = steps[nearest(steps, step)];
  if (state.step < state.from || state.step > state.to) zoom(state.to - state.from, state.step); else update();
}

function move(by) {
  const steps = run.changes.steps;
  goTo(steps[Math.max(0, Math.min(steps.length - 1, steps.indexOf(state.step) + by))]);
}

function moveToSpike(direction) {
  const next = direction > 0 ? run.spikes.find((step) => step > state.step) : run.spikes.findLast((step) => step < state.step);
  if (next !== undefined) goTo(next);
}

function choosePair(pair) {
  state.pair = pair;
  update();
}

function setRange(from, to) {
  [state.from, state.to] = [Math.max(run.first, Math.round(from)), Math.min(run.last, Math.round(to))];
  update();
}

function zoom(width, around = state.step ?? (state.from + state.to) / 2) {
  const kept = Math.min(run.last - run.first, Math.max(Math.min(NARROWEST, run.last - run.first), width));
  const from = Math.min(Math.max(run.first, around - kept / 2), run.last - kept);
  setRange(from, from + kept);
}
