const pairColour = (pair, side) => `pair-${pair % 4}${"ab"[side]}`;
const DASHES = [[], [5, 3], [2, 2]];
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
  const other = compared ? [{ ...compared.loss, colour: "other", dash: DASHES[2] }] : [];
  draw(element("loss"), { from, to, log, lines: [...lines, ...other, trainLoss()], label: "loss", marks: stepMarks(), axis: !run.sharpness && !hasChanges() && !also });
  legend("legend", [
    { text: `train loss, ${run.lossIs}`, colour: "ink" },
    ...(compared ? [{ text: `train loss of ${compared.name}`, colour: "other", kind: "dotted" }] : []),
    ...shown.flatMap((i) => [0, 1].map((side) => ({
      text: `pair ${i + 1}${"ab"[side]}`, colour: pairColour(i, side), kind: side ? "dashed" : "",
    }))),
  ]);
  if (run.sharpness) {
    draw(element("sharpness"), {
      from, to, label: "sharpness λ", zero: true, level: run.threshold, marks: stepMarks(), axis: !hasChanges() && !also,
      lines: [...(compared?.sharpness ? [{ ...compared.sharpness, colour: "other", dash: DASHES[2] }] : []), { ...run.sharpness, colour: "ink" }],
      band: run.bound && { lower: run.sharpness, upper: run.bound },
    });
    legend("sharpness-legend", [
      { text: `sharpness λ${run.bound ? "; shaded: up to its bound" : ""}`, colour: "ink" },
      ...(compared?.sharpness ? [{ text: `of ${compared.name}`, colour: "other", kind: "dotted" }] : []),
      ...(run.threshold === null ? [] : [{ text: `2/η = ${number(run.threshold)}`, colour: "muted", kind: "dashed" }]),
      ...(run.breakEven === null ? [] : [{ text: `break-even at step ${count(run.breakEven)}`, colour: "muted", kind: "dotted" }]),
    ]);
  }
  if (hasChanges()) {
    draw(element("change"), {
      from, to, zero: true, label: "mean Δ", marks: stepMarks(), axis: !also,
      lines: [{ ...run.changes.rise, colour: "fail" }, { ...run.changes.fall, colour: "link", dash: DASHES[1] }],
    });
    legend("change-legend", [
      { text: `▲ mean loss change of the ${run.changes.shown} risers`, colour: "fail" },
      { text: "▼ of the fallers", colour: "link", kind: "dashed" },
    ]);
  }
  element("also").hidden = element("also-legend").hidden = !also;
  if (also) {
    const colours = ["ink", ...[0, 1, 2, 3].flatMap((pair) => [pairColour(pair, 0), pairColour(pair, 1)])];
    const colourOf = (i) => colours[i % colours.length];
    draw(element("also"), { from, to, lines: also.lines.map((line, i) => ({ ...line, colour: colourOf(i) })), label: also.unit === "1" ? "" : also.unit, marks: stepMarks(), axis: true });
    const several = also.lines.length > 1;
    legend("also-legend", [
      { text: `${also.name}: ${also.meaning}`, colour: several ? "muted" : "ink" },
      ...(several ? also.lines.map((_, i) => ({ text: `[${i}]`, colour: colourOf(i) })) : []),
    ]);
  }
  placePairRows();
}

function makePairRows() {
  element("pairs").replaceChildren(...run.pairs.map((pair, i) => {
    const bar = node("button", { type: "button" });
    bar.style.borderColor = colour(pairColour(i, 0));
    bar.ariaLabel = `Pair ${i + 1}, corr. ${hundredths(pair.correlation)}, steps ${pair.window[0]} to ${pair.window[1]}`;
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
    bar.textContent = outside ? (start > state.to ? "›" : "‹") : `corr. ${hundredths(run.pairs[i].correlation)}`;
    bar.style.opacity = outside ? 0.45 : 1;
    bar.ariaPressed = String(state.pair === i);
    mark.hidden = step < state.from || step > state.to;
    mark.style.left = `${share(step)}%`;
  });
}
