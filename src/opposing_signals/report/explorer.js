"use strict";
// The explorer of one run. Data come as scripts that call explorer.receive(name, content), because a page from the
// file system may load scripts and pictures beside it but not read files.
const explorer = (() => {
  const MARGIN = { left: 60, right: 16, top: 8, bottom: 6 };
  const AXIS = 20; // height of the step axis below a chart
  const DRAG = 5; // pixels from which on a click is a drag
  const NARROWEST = 8; // steps
  const SPIKES = 0.05; // share of the steps with the largest rise of the train loss
  const place = document.body.dataset.place;
  const element = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // -- data --------------------------------------------------------------------------------------------------------

  const received = new Map(); // name of a file ↦ promise of its content
  const waiting = new Map(); // name ↦ how to keep the promise

  /** Called by a data file. */
  function receive(name, content) {
    if (name === "run") begin(content);
    else waiting.get(name)?.resolve(content);
  }

  function load(name) {
    if (!received.has(name)) {
      received.set(name, new Promise((resolve, reject) => {
        waiting.set(name, { resolve });
        const script = document.createElement("script");
        script.src = `${place}/${name}.js`;
        script.onload = () => { waiting.delete(name); script.remove(); };
        script.onerror = () => {
          waiting.delete(name);
          received.delete(name);
          script.remove();
          reject(new Error(`${script.getAttribute("src")} cannot be loaded. If the report was built again: reload the page.`));
        };
        document.head.append(script);
      }));
    }
    return received.get(name);
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

  // -- words -------------------------------------------------------------------------------------------------------

  function number(value, digits = 4) {
    if (value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    return String(Number(value.toPrecision(digits))).replace(/-/g, "−");
  }
  const signed = (value) => (Number.isFinite(value) ? (value > 0 ? "+" : "") + value.toPrecision(3).replace(/-/g, "−") : number(value));
  const count = (value) => value.toLocaleString("en-US");
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  // -- state -------------------------------------------------------------------------------------------------------

  let run; // what run.js holds, unpacked
  const state = { step: null, pair: null, from: 0, to: 1, log: false, example: null };

  function begin(packed) {
    run = { ...packed, loss: curve(packed.loss) };
    run.sharpness = packed.sharpness && curve(packed.sharpness);
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
    listen();
    readAddress();
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
    state.step = null;
    if (hasChanges()) {
      const wanted = whole("step") ?? run.pairs[state.pair ?? 0]?.step ?? run.spikes[0] ?? run.changes.steps[0];
      state.step = run.changes.steps[nearest(run.changes.steps, wanted)];
    }
    state.example = null;
    update();
    const example = whole("example");
    if (example === null) element("example").close(); else lookUp(example);
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

  // -- charts ------------------------------------------------------------------------------------------------------

  function node(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function ticks(low, high, most) {
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const size = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
    const found = [];
    for (let i = Math.ceil(low / size - 1e-9); i * size <= high + 1e-9 * size; i += 1) found.push(i * size + 0); // + 0: no −0
    return found;
  }

  function decades(low, high) {
    const found = [];
    const wide = high / low > 1e3;
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
      for (const factor of wide ? [1] : [1, 2, 5]) {
        if (factor * 10 ** power >= low && factor * 10 ** power <= high) found.push(factor * 10 ** power);
      }
    }
    return found;
  }

  /** Lines over steps from `from` to `to`; lines are {steps, values, colour, width, dash, alpha}. */
  function draw(canvas, { from, to, lines, label, log = false, zero = false, level = null, marks = [], axis = false }) {
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const left = MARGIN.left, right = width - MARGIN.right;
    const top = MARGIN.top, bottom = height - MARGIN.bottom - (axis ? AXIS : 0);
    let low = Infinity, high = -Infinity;
    for (const { steps, values } of lines) {
      for (let i = placeOf(steps, from); i < steps.length && steps[i] <= to; i += 1) {
        if (Number.isFinite(values[i]) && (!log || values[i] > 0)) {
          low = Math.min(low, values[i]);
          high = Math.max(high, values[i]);
        }
      }
    }
    if (level !== null) [low, high] = [Math.min(low, level), Math.max(high, level)];
    if (zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
    if (!(low <= high)) [low, high] = [0, 1];
    if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
    const scaled = log ? Math.log10 : (value) => value;
    const pad = 0.05 * (scaled(high) - scaled(low));
    const bottomValue = scaled(low) - (zero && low === 0 ? 0 : pad), topValue = scaled(high) + pad;
    const x = (step) => left + ((step - from) / (to - from)) * (right - left);
    const y = (value) => bottom - ((scaled(value) - bottomValue) / (topValue - bottomValue)) * (bottom - top);

    context.strokeStyle = colour("line");
    context.fillStyle = colour("muted");
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const value of log ? decades(low, high) : ticks(low, high, Math.max(2, (bottom - top) / 34))) {
      context.beginPath();
      context.moveTo(left, y(value));
      context.lineTo(right, y(value));
      context.stroke();
      context.fillText(number(value), left - 6, y(value));
    }
    if (axis) {
      context.textAlign = "center";
      for (const step of ticks(from, to, Math.max(2, width / 90)).filter(Number.isInteger)) {
        context.beginPath();
        context.moveTo(x(step), bottom);
        context.lineTo(x(step), bottom + 4);
        context.stroke();
        context.fillText(count(step), x(step), bottom + 12);
      }
      context.textAlign = "right";
      context.fillText("step", left - 14, bottom + 12);
    }
    context.save();
    context.translate(11, (top + bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText(label, 0, 0);
    context.restore();

    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, bottom + 1);
    context.clip();
    for (const { step, dash, name } of marks.filter((mark) => mark.step >= from && mark.step <= to)) {
      context.strokeStyle = colour(name);
      context.setLineDash(dash);
      context.beginPath();
      context.moveTo(x(step), 0);
      context.lineTo(x(step), bottom);
      context.stroke();
    }
    if (level !== null) {
      context.strokeStyle = colour("muted");
      context.setLineDash([6, 4]);
      context.beginPath();
      context.moveTo(left, y(level));
      context.lineTo(right, y(level));
      context.stroke();
    }
    for (const line of lines) drawLine(context, line, from, to, x, y, log);
    context.restore();
  }

  /** One line; where several values share a pixel, from the smallest to the largest of them. */
  function drawLine(context, { steps, values, colour: name, width = 1.5, dash = [], alpha = 1 }, from, to, x, y, log) {
    const start = Math.max(0, placeOf(steps, from) - 1), stop = Math.min(steps.length, placeOf(steps, to) + 2);
    context.strokeStyle = context.fillStyle = colour(name);
    context.lineWidth = width;
    context.globalAlpha = alpha;
    context.setLineDash(dash);
    context.lineJoin = "round";
    const perPixel = (stop - start) / Math.max(1, x(to) - x(from));
    const size = perPixel > 4 ? Math.ceil(perPixel) : 1;
    context.beginPath();
    let drawn = 0, open = false;
    for (let i = start; i < stop; i += size) {
      let low = Infinity, high = -Infinity;
      for (let j = i; j < Math.min(stop, i + size); j += 1) {
        if (Number.isFinite(values[j]) && (!log || values[j] > 0)) {
          low = Math.min(low, values[j]);
          high = Math.max(high, values[j]);
        }
      }
      if (low > high) { open = false; continue; }
      if (open) context.lineTo(x(steps[i]), y(low)); else context.moveTo(x(steps[i]), y(low));
      if (high > low) context.lineTo(x(steps[i]), y(high));
      open = true;
      drawn += 1;
    }
    context.stroke();
    context.setLineDash([]);
    if (drawn && width > 1 && (x(to) - x(from)) / ((to - from) / Math.max(1, (steps.at(-1) - steps[0]) / (steps.length - 1) || 1)) > 14) {
      for (let i = start; i < stop; i += 1) { // few enough for points
        if (Number.isFinite(values[i]) && (!log || values[i] > 0)) {
          context.beginPath();
          context.arc(x(steps[i]), y(values[i]), width + 0.7, 0, 2 * Math.PI);
          context.fill();
        }
      }
    }
    context.globalAlpha = 1;
  }

  function legend(id, entries) {
    element(id).replaceChildren(...entries.map(({ text, colour: name, kind = "" }) => {
      const swatch = node("i", { className: kind });
      swatch.style.borderColor = colour(name);
      return node("span", {}, swatch, text);
    }));
  }

  const pairColour = (pair, side) => `pair-${pair % 4}${"ab"[side]}`;
  const DASHES = [[], [5, 3]];
  const trainLoss = (width = 2) => ({ ...run.loss, colour: "ink", width });

  function stepMarks() {
    const marks = [];
    if (run.breakEven !== null) marks.push({ step: run.breakEven, dash: [2, 3], name: "muted" });
    if (state.step !== null) marks.push({ step: state.step, dash: [], name: "link" });
    return marks;
  }

  function drawOverview() {
    const { from, to, log } = state;
    element("log").checked = log;
    element("range").textContent = `steps ${count(from)} to ${count(to)}`;
    element("zoom-all").disabled = element("zoom-out").disabled = from === run.first && to === run.last;
    const shown = run.pairs.map((_, i) => i).filter((i) => state.pair === null || state.pair === i);
    const lines = shown.flatMap((i) => run.pairs[i].losses.map((line, side) => {
      const first = state.pair === null ? placeOf(line.steps, run.pairs[i].window[0]) : 0;
      const end = state.pair === null ? placeOf(line.steps, run.pairs[i].window[1] + 1) : line.steps.length;
      return {
        steps: line.steps.slice(first, end), values: line.values.slice(first, end), colour: pairColour(i, side),
        dash: DASHES[side], width: state.pair === null ? 1.2 : 1.7,
      };
    }));
    draw(element("loss"), { from, to, log, lines: [...lines, trainLoss()], label: "loss", marks: stepMarks(), axis: !run.sharpness && !hasChanges() });
    legend("legend", [
      { text: `train loss, ${run.lossIs}`, colour: "ink" },
      ...shown.flatMap((i) => [0, 1].map((side) => ({
        text: `pair ${i + 1}${"ab"[side]}`, colour: pairColour(i, side), kind: side ? "dashed" : "",
      }))),
    ]);
    if (run.sharpness) {
      draw(element("sharpness"), {
        from, to, lines: [{ ...run.sharpness, colour: "ink" }], label: "sharpness λ", zero: true, level: run.threshold,
        marks: stepMarks(), axis: !hasChanges(),
      });
      legend("sharpness-legend", [
        { text: "sharpness λ", colour: "ink" },
        ...(run.threshold === null ? [] : [{ text: `2/η = ${number(run.threshold)}`, colour: "muted", kind: "dashed" }]),
        ...(run.breakEven === null ? [] : [{ text: `break-even at step ${count(run.breakEven)}`, colour: "muted", kind: "dotted" }]),
      ]);
    }
    if (hasChanges()) {
      draw(element("change"), {
        from, to, zero: true, label: "mean Δ", marks: stepMarks(), axis: true,
        lines: [{ ...run.changes.rise, colour: "rise" }, { ...run.changes.fall, colour: "fall", dash: DASHES[1] }],
      });
      legend("change-legend", [
        { text: `▲ mean loss change of the ${run.changes.shown} risers`, colour: "rise" },
        { text: "▼ of the fallers", colour: "fall", kind: "dashed" },
      ]);
    }
    placePairRows();
  }

  function makePairRows() {
    element("pairs").replaceChildren(...run.pairs.map((pair, i) => {
      const bar = node("button", { type: "button" });
      bar.style.borderColor = colour(pairColour(i, 0));
      bar.ariaLabel = `Pair ${i + 1}, steps ${pair.window[0]} to ${pair.window[1]}, correlation ${number(pair.correlation, 2)}`;
      bar.onclick = () => choosePair(state.pair === i ? null : i);
      const row = node("div", { className: "row" }, node("span", { className: "name", textContent: `pair ${i + 1}` }), bar, node("span", { className: "mark" }));
      row.title = `Pair ${i + 1}${pair.name ? ` (${pair.name})` : ""}: active in steps ${count(pair.window[0])} to ${count(pair.window[1])}, selected at step ${count(pair.step)}`;
      return row;
    }));
  }

  function placePairRows() {
    [...element("pairs").children].forEach((row, i) => {
      const { window: [start, stop], step } = run.pairs[i];
      const share = (value) => 100 * Math.max(0, Math.min(1, (value - state.from) / (state.to - state.from)));
      const bar = row.querySelector("button"), mark = row.querySelector(".mark");
      const outside = stop < state.from || start > state.to;
      bar.style.left = outside && start > state.to ? "auto" : `${share(start)}%`;
      bar.style.right = outside && start > state.to ? "0" : "auto";
      bar.style.width = `${share(stop) - share(start)}%`;
      bar.textContent = outside ? (start > state.to ? "›" : "‹") : `corr. ${number(run.pairs[i].correlation, 2)}`;
      bar.style.opacity = outside ? 0.45 : 1;
      bar.ariaPressed = String(state.pair === i);
      mark.hidden = step < state.from || step > state.to;
      mark.style.left = `${share(step)}%`;
    });
  }

  // -- training examples -------------------------------------------------------------------------------------------

  const block = (rank) => Math.floor(rank / run.examples.inFile);

  /** {id, caption, rises, falls} of the point at place `rank` of the files. */
  async function example(rank) {
    const content = await load(file("examples", block(rank)));
    content.unpacked ??= { ids: numbers(content.ids, "u4"), rises: numbers(content.rises, "u4"), falls: numbers(content.falls, "u4") };
    const i = rank % run.examples.inFile;
    const { ids, rises, falls } = content.unpacked;
    return { id: ids[i], caption: content.captions[i], rises: rises[i], falls: falls[i] };
  }

  async function losses(rank) {
    if (rank >= run.examples.withSeries) return null;
    const content = await load(file("series", block(rank)));
    content.unpacked ??= numbers(content.values, "f4");
    const length = run.loss.steps.length, start = (rank % run.examples.inFile) * length;
    return { steps: run.loss.steps, values: content.unpacked.slice(start, start + length) };
  }

  /** Let `frame` show the picture at `rank`, about `size` pixels wide. */
  function picture(frame, rank, size) {
    const [width, height, columns] = run.examples.picture;
    const scale = size / Math.max(width, height);
    const inBlock = rank % run.examples.inFile;
    const inSheet = Math.min(run.examples.inFile, run.examples.kept - run.examples.inFile * block(rank));
    const column = inBlock % columns, row = Math.floor(inBlock / columns);
    frame.className = "picture";
    Object.assign(frame.style, {
      width: `${width * scale}px`,
      height: `${height * scale}px`,
      backgroundImage: `url("${place}/${file("images", block(rank))}.png")`,
      backgroundSize: `${columns * width * scale}px ${Math.ceil(inSheet / columns) * height * scale}px`,
      backgroundPosition: `${-column * width * scale}px ${-row * height * scale}px`,
    });
  }

  /** Cards of training examples in `list`; those that are there are used again, so that the focus stays. */
  async function showCards(list, ranks, describe, isCurrent) {
    const found = await Promise.all(ranks.map(example));
    if (!isCurrent()) return found;
    list.className = `cards ${run.examples.kind}`;
    while (list.children.length > ranks.length) list.lastChild.remove();
    while (list.children.length < ranks.length) {
      const button = node("button", { type: "button" });
      button.append(node("span", { className: "picture" }), node("span", { className: "caption" }), node("span", { className: "value" }), node("span", { className: "badge" }));
      list.append(node("li", {}, button));
    }
    ranks.forEach((rank, i) => {
      const { id, caption } = found[i], { value, words } = describe(i);
      const button = list.children[i].firstChild;
      const [frame, text, shown, badge] = button.children;
      if (run.examples.picture) picture(frame, rank, 60); else frame.hidden = true;
      text.textContent = caption || `#${id}`;
      shown.textContent = value;
      const pairs = run.memberships.get(rank) ?? [];
      badge.hidden = !pairs.length;
      badge.textContent = pairs.length > 2 ? `${pairs[0]} +${pairs.length - 1}` : pairs.join(" ");
      button.dataset.id = id;
      button.title = `#${id}${caption ? `: ${caption}` : ""}\n${words}${pairs.length ? `\nin pair ${pairs.join(", ")}` : ""}`;
      button.ariaLabel = `Training example ${id}, ${caption}, ${words}${pairs.length ? `, in pair ${pairs.join(", ")}` : ""}`;
      button.onclick = () => showExample(rank);
    });
    return found;
  }

  function classesOf(found) {
    if (!run.classes.length) return `${found.length} training examples`;
    const counts = new Map();
    for (const { caption } of found) counts.set(caption, (counts.get(caption) ?? 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1]).map(([name, times]) => `${times} × ${name}`).join(", ");
  }

  function group(parent, i, title) {
    if (!parent.children[i]) parent.append(node("div", { className: "group" }, node("h3"), node("p", { className: "muted" }), node("ul", { className: "cards" })));
    const [heading, classes, list] = parent.children[i].children;
    heading.replaceChildren(...title);
    return { classes, list };
  }

  function failed(error) {
    element("notices").hidden = false;
    const list = element("notices").querySelector("ul");
    if (![...list.children].some((item) => item.textContent === error.message)) list.append(node("li", { textContent: error.message }));
  }

  // -- a step ------------------------------------------------------------------------------------------------------

  /** [risers, fallers] of the step at place `i`: {ranks, before, after}. */
  async function selected(i) {
    const content = await load(file("steps", Math.floor(i / run.changes.inFile)));
    content.unpacked ??= {
      counts: numbers(content.counts, "u1"), ranks: numbers(content.ranks, "u4"),
      before: numbers(content.before, "f4"), after: numbers(content.after, "f4"),
    };
    const { counts, ranks, before, after } = content.unpacked;
    const first = 2 * (i % run.changes.inFile);
    let start = counts.slice(0, first).reduce((sum, size) => sum + size, 0);
    return [first, first + 1].map((j) => {
      const [a, b] = [start, start += counts[j]];
      return { ranks: ranks.slice(a, b), before: before.slice(a, b), after: after.slice(a, b) };
    });
  }

  /** The last sharpness measured up to `step`, in words. */
  function sharpnessAt(step) {
    const i = placeOf(run.sharpness?.steps ?? [], step + 1) - 1;
    if (i < 0) return [];
    const value = run.sharpness.values[i], measured = run.sharpness.steps[i];
    const edge = run.threshold === null ? "" : `, ${number(value / run.threshold, 3)} times 2/η`;
    return [`sharpness ${number(value)}${edge}${measured === step ? "" : ` (measured at step ${count(measured)})`}`];
  }

  async function showStep() {
    if (!hasChanges()) return;
    const { step } = state, i = run.changes.steps.indexOf(step);
    const isCurrent = () => state.step === step;
    element("step-title").textContent = `Step ${count(step)}`;
    element("slider").value = i;
    element("slider").setAttribute("aria-valuetext", `step ${step}`);
    element("step-back").disabled = i === 0;
    element("step-on").disabled = i === run.changes.steps.length - 1;
    element("spike-back").disabled = !(run.spikes[0] < step);
    element("spike-on").disabled = !(run.spikes.at(-1) > step);
    const before = at(run.loss, step), after = at(run.loss, step + 1);
    element("step-facts").textContent = [
      `Train loss ${number(before)} → ${number(after)} (${signed(after - before)})`,
      ...sharpnessAt(step),
      `${percent(run.changes.share.values[i])} of all recorded training examples rise`,
      ...(run.spikes.includes(step) ? [`a spike: among the ${SPIKES * 100}% largest rises of the train loss`] : []),
    ].join(" · ");
    try {
      const groups = await selected(i);
      if (!isCurrent()) return;
      await Promise.all(groups.map(async ({ ranks, before: from, after: to }, side) => {
        const sign = node("span", { className: side ? "fall" : "rise", textContent: side ? "▼" : "▲", ariaHidden: "true" });
        const title = `${ranks.length} ${side ? "fallers" : "risers"}: largest ${side ? "falls" : "rises"} of the loss`;
        const { classes, list } = group(element("step-groups"), side, [sign, title]);
        list.dataset.side = side ? "fallers" : "risers";
        const found = await showCards(list, ranks, (j) => ({
          value: signed(Math.fround(to[j] - from[j])),
          words: `loss ${number(from[j])} → ${number(to[j])}`,
        }), isCurrent);
        if (isCurrent()) {
          classes.textContent = classesOf(found);
          list.dataset.step = step;
        }
      }));
    } catch (error) {
      failed(error);
    }
  }

  // -- a pair ------------------------------------------------------------------------------------------------------

  function pairRange(pair) {
    if (state.from > run.first || state.to < run.last) return [state.from, state.to];
    return [Math.max(pair.window[0], pair.step - 20), Math.min(pair.window[1], pair.step + 20)];
  }

  async function showPair() {
    element("pair").hidden = state.pair === null;
    if (state.pair === null) return;
    const number_ = state.pair, pair = run.pairs[number_], { from, to, log } = state;
    const isCurrent = () => state.pair === number_ && state.from === from && state.to === to && state.log === log;
    const [start, stop] = pairRange(pair);
    element("pair-title").textContent = `Pair ${number_ + 1}${pair.name ? `: ${pair.name}` : ""}`;
    element("pair-facts").textContent =
      `Correlation of the groups' one-step changes ${number(pair.correlation, 3)}, amplitude ${number(pair.amplitude, 3)}; active in ` +
      `steps ${count(pair.window[0])} to ${count(pair.window[1])}, selected at step ${count(pair.step)}. Below: steps ` +
      `${count(start)} to ${count(stop)}, each member as a thin line.`;
    legend("pair-legend", [
      { text: `${number_ + 1}a ▲ mean of ${pair.rising.length}`, colour: pairColour(number_, 0) },
      { text: `${number_ + 1}b ▼ mean of ${pair.falling.length}`, colour: pairColour(number_, 1), kind: "dashed" },
      { text: "train loss", colour: "ink" },
    ]);
    const means = pair.losses.map((line, side) => ({ ...line, colour: pairColour(number_, side), dash: DASHES[side], width: 2.4 }));
    const chart = (members) => draw(element("pair-chart"), {
      from: start, to: Math.max(stop, start + 1), log, label: "loss", axis: true, marks: stepMarks(),
      lines: [...members, trainLoss(1.5), ...means],
    });
    try {
      const groups = [pair.rising, pair.falling];
      const members = await Promise.all(groups.map((ranks, side) => Promise.all(ranks.map(async (rank) => ({
        ...await losses(rank), colour: pairColour(number_, side), dash: DASHES[side], width: 0.7, alpha: 0.35,
      })))));
      if (!isCurrent()) return;
      chart(members.flat());
      await Promise.all(groups.map(async (ranks, side) => {
        const title = `${number_ + 1}${"ab"[side]}: ${side ? "falls" : "rises"} at step ${count(pair.step)}`;
        const sign = node("span", { textContent: side ? "▼" : "▲", ariaHidden: "true" });
        sign.style.color = colour(pairColour(number_, side));
        const { classes, list } = group(element("pair-groups"), side, [sign, title]);
        const found = await showCards(list, ranks, (j) => {
          const before = at(members[side][j], pair.step), after = at(members[side][j], pair.step + 1);
          return { value: signed(Math.fround(after - before)), words: `at step ${pair.step}: loss ${number(before)} → ${number(after)}` };
        }, isCurrent);
        if (isCurrent()) {
          classes.textContent = classesOf(found);
          list.dataset.pair = number_ + 1;
        }
      }));
    } catch (error) {
      failed(error);
    }
  }

  // -- a training example ------------------------------------------------------------------------------------------

  async function showExample(rank) {
    try {
      const [{ id, caption, rises, falls }, line] = await Promise.all([example(rank), losses(rank)]);
      state.example = id;
      writeAddress();
      element("example-title").textContent = `Training example ${id}`;
      element("example-text").textContent = caption;
      const pairs = run.memberships.get(rank) ?? [];
      element("example-facts").textContent =
        `Among the ${run.changes.shown} risers at ${count(rises)} steps, among the fallers at ${count(falls)}, of ${count(run.changes.steps.length)}` +
        `${pairs.length ? `; in pair ${pairs.join(", ")}` : ""}.`;
      element("example-picture").hidden = !run.examples.picture;
      if (run.examples.picture) picture(element("example-picture"), rank, 128);
      element("example-chart").hidden = element("example-legend").hidden = !line;
      element("example-missing").hidden = Boolean(line);
      element("example-missing").textContent =
        `Its losses over the steps are not part of this page: they are kept for the ${count(run.examples.withSeries)} training examples that are selected most often.`;
      if (!element("example").open) element("example").showModal();
      if (!line) return;
      legend("example-legend", [{ text: `loss of training example ${id}`, colour: "rise" }, { text: "train loss", colour: "ink", kind: "dashed" }]);
      draw(element("example-chart"), {
        from: state.from, to: state.to, log: state.log, label: "loss", axis: true, marks: stepMarks(),
        lines: [{ ...line, colour: "rise" }, { ...trainLoss(1.5), dash: DASHES[1] }],
      });
    } catch (error) {
      failed(error);
    }
  }

  async function lookUp(id) {
    element("find-answer").textContent = "";
    try {
      const content = await load("ids");
      content.ranks ??= new Map(numbers(content.ids, "u4").map((known, rank) => [known, rank]));
      if (content.ranks.has(id)) await showExample(content.ranks.get(id));
      else {
        element("find-answer").textContent = id < run.examples.among
          ? `Training example ${id} is never among the ${run.changes.shown} risers or fallers of a step, nor in a pair.`
          : `There is no training example ${id}: their numbers are 0 to ${count(run.examples.among - 1)}.`;
      }
    } catch (error) {
      failed(error);
    }
  }

  // -- what the user does ------------------------------------------------------------------------------------------

  function stepAt(clientX, canvas = element("loss"), [from, to] = [state.from, state.to]) {
    const { left, width } = canvas.getBoundingClientRect();
    const share = (clientX - left - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
    return from + Math.max(0, Math.min(1, share)) * (to - from);
  }

  function showTip(event) {
    const step = hasChanges() ? run.changes.steps[nearest(run.changes.steps, stepAt(event.clientX))] : run.loss.steps[nearest(run.loss.steps, stepAt(event.clientX))];
    const rows = [`step ${count(step)}`, `train loss ${number(at(run.loss, step))}`];
    if (run.sharpness && at(run.sharpness, step) !== undefined) rows.push(`sharpness ${number(at(run.sharpness, step))}`);
    if (hasChanges()) {
      rows.push(`▲ ${signed(at(run.changes.rise, step))}  ▼ ${signed(at(run.changes.fall, step))}`, `${percent(at(run.changes.share, step))} rise`);
    }
    if (state.pair !== null) {
      run.pairs[state.pair].losses.forEach((line, side) => rows.push(`pair ${state.pair + 1}${"ab"[side]} ${number(at(line, step))}`));
    }
    const tip = element("tip"), { left, top, width } = element("charts").getBoundingClientRect();
    tip.textContent = rows.join("\n");
    tip.hidden = false;
    const x = event.clientX - left;
    tip.style.left = x > width / 2 ? "auto" : `${x + 14}px`;
    tip.style.right = x > width / 2 ? `${width - x + 14}px` : "auto";
    tip.style.top = `${event.clientY - top + 12}px`;
  }

  function listenToCharts() {
    let start = null;
    const brush = (event) => {
      const { left } = element("charts").getBoundingClientRect();
      element("brush").hidden = Math.abs(event.clientX - start) < DRAG;
      element("brush").style.left = `${Math.min(start, event.clientX) - left}px`;
      element("brush").style.width = `${Math.abs(event.clientX - start)}px`;
    };
    for (const canvas of element("charts").querySelectorAll("canvas")) {
      canvas.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        start = event.clientX;
        canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (start !== null) brush(event);
        showTip(event);
      });
      canvas.addEventListener("pointerup", (event) => {
        if (start === null) return;
        const [a, b] = [start, event.clientX].sort((one, other) => one - other).map((x) => stepAt(x));
        const isDrag = Math.abs(event.clientX - start) >= DRAG;
        start = null;
        element("brush").hidden = true;
        if (isDrag) zoom(b - a, (a + b) / 2); else goTo(Math.round(b));
      });
      canvas.addEventListener("pointercancel", () => { start = null; element("brush").hidden = true; });
      canvas.addEventListener("pointerleave", () => { element("tip").hidden = true; });
      canvas.addEventListener("dblclick", () => setRange(run.first, run.last));
    }
  }

  function listen() {
    const width = () => state.to - state.from;
    const toggleLog = () => { state.log = !state.log; update(); };
    const actions = {
      "zoom-in": () => zoom(width() / 2),
      "zoom-out": () => zoom(width() * 2),
      "zoom-all": () => setRange(run.first, run.last),
      "step-back": () => move(-1),
      "step-on": () => move(1),
      "spike-back": () => moveToSpike(-1),
      "spike-on": () => moveToSpike(1),
      "pair-step": () => goTo(run.pairs[state.pair].step),
      "pair-close": () => {
        const row = element("pairs").children[state.pair];
        choosePair(null);
        row.querySelector("button").focus();
      },
    };
    for (const [id, action] of Object.entries(actions)) element(id).addEventListener("click", action);
    element("log").addEventListener("change", toggleLog);
    element("slider").addEventListener("input", (event) => goTo(run.changes.steps[event.target.value]));
    element("find").addEventListener("submit", (event) => {
      event.preventDefault();
      lookUp(Number(element("find-id").value));
    });
    element("example").addEventListener("close", () => {
      state.example = null;
      writeAddress();
    });
    listenToCharts();
    element("pair-chart").addEventListener("click", (event) => {
      goTo(Math.round(stepAt(event.clientX, event.target, pairRange(run.pairs[state.pair]))));
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || element("example").open) return;
      if (event.target.matches("input:not([type=checkbox])")) return;
      const keys = {
        ArrowLeft: () => move(event.shiftKey ? -10 : -1),
        ArrowRight: () => move(event.shiftKey ? 10 : 1),
        PageUp: () => moveToSpike(-1),
        PageDown: () => moveToSpike(1),
        Escape: () => choosePair(null),
        "+": actions["zoom-in"],
        "-": actions["zoom-out"],
        0: actions["zoom-all"],
        l: toggleLog,
      };
      const needsSteps = /^(Arrow|Page)/.test(event.key);
      if (/^[1-9]$/.test(event.key) && event.key <= run.pairs.length) choosePair(event.key - 1);
      else if (Object.hasOwn(keys, event.key) && (!needsSteps || hasChanges())) keys[event.key]();
      else return;
      event.preventDefault();
    });
    let pending = 0;
    addEventListener("resize", () => {
      cancelAnimationFrame(pending);
      pending = requestAnimationFrame(update);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      makePairRows();
      update();
    });
    addEventListener("hashchange", readAddress);
  }

  return { receive };
})();
