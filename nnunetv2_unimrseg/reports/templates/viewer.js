(() => {
  const cases = JSON.parse(document.getElementById("viewer-data").textContent);
  const get = (id) => document.getElementById(id);
  const viewer = get("viewer"), ofCase = get("viewer-case"), ofSubset = get("viewer-subset"), below = get("viewer-below");
  const slice = get("viewer-slice"), place = get("viewer-place"), outlines = get("viewer-outlines"), dice = get("viewer-dice");
  const current = () => cases[ofCase.selectedIndex];
  const subset = () => current().subsets[ofSubset.value];
  const options = (select, values, chosen) => {
    select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
  };

  const picture = (stack, source, name) => {
    const image = document.createElement("img");
    image.src = source;
    image.alt = name;
    stack.append(image);
  };
  const panel = (caption, sources, faded = false) => {
    const figure = document.createElement("figure"), stack = document.createElement("div"), text = document.createElement("figcaption");
    stack.className = "stack";
    stack.style.setProperty("--ratio", current().ratio);
    for (const source of sources) picture(stack, source, caption);
    text.textContent = caption;
    figure.classList.toggle("faded", faded);
    figure.append(stack, text);
    return figure;
  };
  const draw = () => {
    const { images, reference, slices, num_slices: total, case: name } = current();
    const at = Number(slice.value), made = subset(), base = images[below.value][at];
    const over = (source) => (outlines.checked ? [base, source] : [base]);
    place.textContent = `slice ${slices[at] + 1} of ${total}`;
    dice.textContent = made.dice === null ? "Dice undefined" : `Dice ${made.dice.toFixed(1)} %`;
    get("viewer-large").replaceChildren(
      panel(`reference, on ${below.value}`, over(reference[at])),
      panel(`prediction from ${ofSubset.selectedOptions[0].text}, on ${below.value}`, over(made.pictures[at])),
    );
    get("viewer-small").replaceChildren(...Object.entries(images).map(([modality, pictures]) => {
      const given = made.available.includes(modality);
      return panel(given ? modality : `${modality} (left out)`, [pictures[at]], !given);
    }));
    viewer.setAttribute("aria-label", `${name}, ${place.textContent}`);
  };
  const chooseSubset = () => {
    const shown = Object.keys(current().images), given = shown.filter((name) => subset().available.includes(name));
    options(below, (given.length ? given : shown).map((name) => [name, name]), subset().background);
    draw();
  };
  const chooseCase = () => {
    const known = Object.entries(current().subsets), kept = ofSubset.value;
    options(ofSubset, known.map(([name, entry]) => [name, entry.words]), kept in current().subsets ? kept : known[0][0]);
    slice.max = current().slices.length - 1;
    slice.value = current().start;
    slice.disabled = current().slices.length === 1;
    chooseSubset();
  };
  const step = (control, by) => {
    const last = control.options ? control.options.length - 1 : Number(control.max);
    const at = control.options ? control.selectedIndex : Number(control.value);
    const to = Math.min(Math.max(at + by, 0), last);
    if (control.options) control.selectedIndex = to; else control.value = to;
    control.dispatchEvent(new Event(control.options ? "change" : "input"));
  };
  const keys = { ArrowUp: [slice, 1], ArrowDown: [slice, -1], ArrowRight: [ofSubset, 1], ArrowLeft: [ofSubset, -1] };
  viewer.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.target.matches("select, [type=range]")) return;
    event.preventDefault();
    step(...keys[event.key]);
  });
  options(ofCase, cases.map((entry, index) => [String(index), `${entry.case} (${entry.why})`]), "0");
  ofCase.addEventListener("change", chooseCase);
  ofSubset.addEventListener("change", chooseSubset);
  for (const control of [below, outlines]) control.addEventListener("change", draw);
  slice.addEventListener("input", draw);
  chooseCase();
})();
