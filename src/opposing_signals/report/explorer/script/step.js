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
