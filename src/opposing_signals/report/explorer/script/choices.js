const option = (value, text) => node("option", { value, textContent: text });

/** What can be chosen of this run: another quantity, and the class of the training examples. */
function makeChoices() {
  element("also-choice").hidden = !run.other.length;
  element("also-name").replaceChildren(option("", "nothing"), ...run.other.map(({ name, meaning }) => option(name, `${name}: ${meaning}`)));
  element("class-choice").hidden = !run.classes.length;
  element("class").replaceChildren(option("", "all classes"), ...run.classes.map((name) => option(name, name)));
}

async function chooseAlso(name) {
  state.also = name;
  element("also-name").value = name ?? "";
  if (!name) also = null;
  else {
    try {
      const { steps, lines } = await load(`other/${name}`);
      if (state.also !== name) return;
      const at_ = numbers(steps, "i4");
      also = { ...run.other.find((other) => other.name === name), lines: lines.map((values) => ({ steps: at_, values: numbers(values, "f4") })) };
    } catch (error) {
      failed(error);
    }
  }
  update();
}

/** The other runs of the report, to compare with, and the figures that this run is behind. */
function listRuns(listed) {
  runs = listed;
  const own = decodeURIComponent(location.pathname).split("/").at(-2);
  const others = runs.filter(({ page }) => page !== own);
  element("compare-choice").hidden = !others.length;
  element("compare").replaceChildren(option("", "no other run"), ...others.map(({ page }) => option(page, page)));
  const figures = runs.find(({ page }) => page === own)?.figures ?? [];
  element("figures").hidden = !figures.length;
  element("figures").replaceChildren("Behind ", ...figures.flatMap(([name, title], i) => [
    ...(i ? ["; "] : []), node("a", { href: `../../index.html#${name}`, textContent: title }),
  ]));
  chooseCompared(state.compare);
}

async function chooseCompared(page) {
  if (!runs.length) return; // not yet
  const other = runs.find((listed) => listed.page === page);
  state.compare = other ? page : null;
  element("compare").value = state.compare ?? "";
  compared = null;
  if (other) {
    try {
      const { loss, sharpness } = await load("run", `../${encodeURIComponent(page)}/${other.data}/run.js`);
      if (state.compare !== page) return;
      compared = { name: page, loss: curve(loss), sharpness: sharpness && curve(sharpness) };
    } catch (error) {
      failed(error);
    }
  }
  update();
}
