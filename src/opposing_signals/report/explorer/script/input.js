function stepAt(clientX, canvas = element("loss"), [from, to] = [state.from, state.to]) {
  const { left, width } = canvas.getBoundingClientRect();
  const share = (clientX - left - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
  return from + Math.max(0, Math.min(1, share)) * (to - from);
}

function showTip(event) {
  const step = hasChanges() ? run.changes.steps[nearest(run.changes.steps, stepAt(event.clientX))] : run.loss.steps[nearest(run.loss.steps, stepAt(event.clientX))];
  const rows = [`step ${count(step)}`, `train loss ${number(at(run.loss, step))}`];
  if (run.sharpness && at(run.sharpness, step) !== undefined) {
    const bound = run.bound && at(run.bound, step);
    rows.push(`sharpness ${number(at(run.sharpness, step))}${bound ? `, at most ${number(bound)}` : ""}`);
  }
  if (compared) rows.push(`${compared.name}: train loss ${number(at(compared.loss, step))}`);
  if (also) rows.push(`${also.name} ${also.lines.map((line) => number(at(line, step))).join(", ")}`);
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
  element("also-name").addEventListener("change", (event) => chooseAlso(event.target.value || null));
  element("compare").addEventListener("change", (event) => chooseCompared(event.target.value || null));
  element("class").addEventListener("change", (event) => {
    state.class = event.target.value || null;
    update();
  });
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
    if (event.target.matches("select, input:not([type=checkbox])")) return;
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
