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

/** Lines over steps from `from` to `to`; lines are {steps, values, colour, width, dash, alpha}, a band {lower, upper}. */
function draw(canvas, { from, to, lines, label, log = false, zero = false, level = null, marks = [], axis = false, band = null }) {
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
  for (const { steps, values } of band ? [...lines, band.upper] : lines) {
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
  if (band) {
    context.fillStyle = colour("muted");
    context.globalAlpha = 0.2;
    context.beginPath();
    band.lower.steps.forEach((step, i) => context.lineTo(x(step), y(band.lower.values[i])));
    [...band.upper.steps.keys()].reverse().forEach((i) => context.lineTo(x(band.upper.steps[i]), y(band.upper.values[i])));
    context.fill();
    context.globalAlpha = 1;
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
