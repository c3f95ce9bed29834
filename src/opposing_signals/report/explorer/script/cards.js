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
    list.children[i].hidden = state.class !== null && caption !== state.class;
    text.textContent = caption || `#${id}`;
    shown.textContent = value;
    const pairs = run.memberships.get(rank) ?? [];
    badge.hidden = !pairs.length;
    badge.textContent = pairs.length > 2 ? `${pairs[0]} +${pairs.length - 1}` : pairs.join(" ");
    button.dataset.id = id;
    button.title = `#${id}${caption ? `: ${caption}` : ""}\n${words}${pairs.length ? `\nin pair ${pairs.join(", ")}` : ""}`;
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
