const IN_CARD = 6; // members of a group on the card of its pair

/** A card of each pair, with pictures of the members that change most. */
function showPairCards() {
  element("pair-cards").hidden = !run.pairs.length;
  element("pair-cards").replaceChildren(...run.pairs.map((pair, i) => {
    const card = node("button", { type: "button", onclick: () => choosePair(state.pair === i ? null : i) },
      node("strong", { textContent: `Pair ${i + 1}` }), ` correlation ${hundredths(pair.correlation)}`);
    [pair.rising, pair.falling].forEach(async (ranks, side) => {
      const row = node("span", { className: "members" });
      row.style.borderColor = colour(pairColour(i, side));
      card.append(row);
      try {
        const found = await Promise.all(ranks.map(example));
        if (run.examples.picture) ranks.slice(0, IN_CARD).forEach((rank) => {
          const frame = node("span");
          picture(frame, rank, 36);
          row.append(frame);
        });
        row.append(node("span", { className: "muted", textContent: run.classes.length || !found[0].caption ? classesOf(found) : found[0].caption }));
      } catch (error) {
        failed(error);
      }
    });
    return card;
  }));
}

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
