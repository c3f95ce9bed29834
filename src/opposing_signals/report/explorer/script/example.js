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
    legend("example-legend", [{ text: `loss of training example ${id}`, colour: "fail" }, { text: "train loss", colour: "ink", kind: "dashed" }]);
    draw(element("example-chart"), {
      from: state.from, to: state.to, log: state.log, label: "loss", axis: true, marks: stepMarks(),
      lines: [{ ...line, colour: "fail" }, { ...trainLoss(1.5), dash: DASHES[1] }],
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
