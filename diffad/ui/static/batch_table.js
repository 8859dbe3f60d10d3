// The Batch tab's table of pictures: filtered, sorted, chosen by keys or pointer. Only the rows in sight are in the page.
(() => {
  const diffad = (window.diffad ??= {});
  const { chips, clamp, duration, element, number, plural, refresh } = diffad;
  const ROW = 58; // px, as in batch.css
  const SPARE = 8; // rows kept above and below those in sight
  const COLUMNS = [
    ["index", "", 0], ["name", "picture", 0], ["verdict", "verdict", 1], ["score", "score", 1], ["category", "category", 0],
    ["regions", "regions", 1], ["seconds", "time", 1],
  ]; // key, title, whether the first click sorts downwards
  const SEVERITY = { anomalous: 3, look: 2, good: 1, failed: 0 };
  const NATURAL = new Intl.Collator(undefined, { numeric: true });

  const wordOf = (verdict) => diffad.verdicts[verdict][0];
  const hasRegions = (row) => row.verdict === "anomalous" || row.verdict === "look";
  const isLabelled = (row) => typeof row.bad === "boolean";
  const isNoted = (row) => row.notes?.length > 0;
  // The regions were counted under other limits; the server is counting again.
  const isStale = (row) => Math.abs(row.mapLimit - row.countedAt) > 1e-9;
  const cell = (name, ...children) => element("td", { className: name }, ...children);

  // open(index): a row was chosen; changed(): another filter was; drawn(): the rows are drawn, perhaps with another chosen.
  function batchTable(root, { open, changed, drawn }) {
    const [table, scroller] = [root.querySelector("table"), root.querySelector(".scroller")];
    const [headers, body] = [element("tr"), element("tbody")];
    table.append(element("thead", {}, headers), body);
    let run = null;
    let view = null; // sort, down, filter and selected are used here
    let listed = []; // rows that pass the filter, sorted

    function draw(newRun, newView) {
      [run, view] = [newRun, newView];
      filters();
      list();
    }

    const passes = (row, filter) =>
      filter === "all" || (filter === "wrong" ? row.wrong : filter === "noted" ? isNoted(row) : row.verdict === filter);

    function filters() {
      const verdicts = ["anomalous", "look", "good"].map((verdict) => [verdict, wordOf(verdict)]);
      const kinds = [["all", "All"], ...verdicts, ["failed", "Not read"]];
      if (run.rows.some(isLabelled)) kinds.push(["wrong", "Misjudged"]);
      if (run.rows.some(isNoted)) kinds.push(["noted", "With a note"]);
      const entries = kinds.map(([filter, word]) => [filter, word, run.rows.filter((row) => passes(row, filter)).length]);
      chips(root.querySelector(".filters"), entries, view.filter, (filter) => {
        view.filter = filter;
        scroller.scrollTop = 0;
        changed();
      });
    }

    function list() {
      const { filter, sort, down } = view;
      const key = {
        verdict: (row) => SEVERITY[row.verdict] * 1e6 + (row.score ?? 0), regions: (row) => (hasRegions(row) ? row.recount : 0),
      }[sort] ?? ((row) => row[sort]);
      const known = (row) => key(row) !== undefined && key(row) !== null;
      const compare = (a, b) => (typeof a === "string" ? NATURAL.compare(a, b) : a - b);
      listed = run.rows.filter((row) => passes(row, filter));
      if (sort !== "index" || down) // rows without a value come last in both directions
        listed.sort((a, b) => known(b) - known(a) || (known(a) ? (down ? -1 : 1) * compare(key(a), key(b)) : 0) || a.index - b.index);
      head();
      rows();
    }

    function head() {
      refresh(headers, `${view.sort} ${view.down}`, () => headers.replaceChildren(...COLUMNS.map(([key, title, down]) => {
        const cell = element("th", { scope: "col", className: key });
        if (!title) return Object.assign(cell, { innerHTML: '<span class="unseen">thumbnail</span>' });
        const sorted = view.sort === key;
        cell.setAttribute("aria-sort", sorted ? (view.down ? "descending" : "ascending") : "none");
        const arrow = element("i", { ariaHidden: "true" }, sorted ? (view.down ? " ↓" : " ↑") : "");
        const button = element("button", { type: "button" }, title, arrow);
        button.dataset.key = key;
        button.addEventListener("click", () => {
          if (!sorted) Object.assign(view, { sort: key, down: !!down });
          else if (view.down === !!down) view.down = !down;
          else Object.assign(view, { sort: "index", down: false });
          list();
        });
        cell.append(button);
        return cell;
      })));
    }

    function rows() {
      table.setAttribute("aria-rowcount", listed.length + 1);
      const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - SPARE);
      const last = Math.min(listed.length, first + Math.ceil((scroller.clientHeight || 600) / ROW) + 2 * SPARE);
      const space = (count) => {
        const row = element("tr", { ariaHidden: "true", className: "space" });
        row.style.height = `${count * ROW}px`;
        return row;
      };
      const inSight = listed.slice(first, last).map((row, i) => update(row, first + i));
      const parts = [...(first ? [space(first)] : []), ...inSight, ...(last < listed.length ? [space(listed.length - last)] : [])];
      if (!listed.length) parts.push(element("tr", { className: "none" }, element("td", { colSpan: COLUMNS.length }, "No picture of this kind.")));
      const made = [run.id, first, listed.length, ...inSight.map((row) => row.id)].join();
      if (body.dataset.made !== made) body.replaceChildren(...parts);
      body.dataset.made = made;
      const id = view.selected === null ? null : `batch-row-${view.selected}`;
      if (id && inSight.some((row) => row.id === id)) table.setAttribute("aria-activedescendant", id);
      else table.removeAttribute("aria-activedescendant");
      drawn();
    }

    // A row's element is made once; only what changes in it is written again.
    function update(row, place) {
      row.element ??= make(row);
      const { element: tr } = row;
      tr.setAttribute("aria-rowindex", place + 2);
      tr.setAttribute("aria-selected", row.index === view.selected);
      const regions = row.error ? "" : hasRegions(row) ? String(row.recount || (isStale(row) ? "…" : 0)) : "–";
      const state = [row.verdict, regions, isStale(row), row.wrong, row.limit, row.look, row.correction].join();
      if (tr.dataset.now === state) return tr;
      tr.dataset.now = state;
      tr.dataset.verdict = row.verdict;
      const find = (name) => tr.querySelector(`.${name}`);
      const [word, mark] = row.error ? ["not read", "–"] : diffad.verdicts[row.verdict];
      find("verdict").firstElementChild.replaceChildren(element("i", {}, mark), element("span", {}, ` ${word.toLowerCase()}`));
      find("verdict").lastElementChild.textContent = [row.wrong ? (row.bad ? "missed" : "false alarm") : "",
        { right: "said to be right", good: "said to be good", defective: "said: defective" }[row.correction]].filter(Boolean).join(" · ");
      find("verdict").lastElementChild.classList.toggle("quiet", !row.wrong);
      if (row.error) return tr;
      // The threshold is in the middle of the meter.
      const share = 0.5 + (row.score - row.limit) / (2 * Math.max(Math.abs(row.limit), 1e-6));
      find("score").lastElementChild.style.setProperty("--share", clamp(share, 0, 1).toFixed(3));
      find("regions").textContent = regions;
      find("regions").classList.toggle("stale", isStale(row));
      return tr;
    }

    function select(place) {
      if (!listed.length) return;
      const row = listed[clamp(place, 0, listed.length - 1)];
      view.selected = row.index;
      const top = listed.indexOf(row) * ROW;
      const room = scroller.clientHeight - headers.offsetHeight;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      else if (top + ROW > scroller.scrollTop + room) scroller.scrollTop = top + ROW - room;
      rows();
    }
    const placeOf = (index) => listed.findIndex((row) => row.index === index);

    scroller.addEventListener("scroll", () => requestAnimationFrame(() => run && rows()));
    body.addEventListener("click", (event) => {
      const tr = event.target.closest("tr[data-index]");
      if (!tr || String(getSelection())) return;
      select(placeOf(Number(tr.dataset.index)));
      open(Number(tr.dataset.index));
    });
    table.addEventListener("keydown", (event) => {
      if (event.target !== table || !run) return;
      const now = placeOf(view.selected);
      const page = Math.max(1, Math.floor(scroller.clientHeight / ROW) - 1);
      const to = { ArrowDown: now + 1, ArrowUp: now - 1, PageDown: now + page, PageUp: now - page, Home: 0, End: listed.length - 1 }[event.key];
      if (to !== undefined) select(to);
      else if (event.key === "Enter" && now >= 0) open(view.selected);
      else return;
      event.preventDefault();
    });

    return {
      draw,
      listed: () => listed,
      toTop: () => { scroller.scrollTop = 0; },
      focus: (index) => {
        select(placeOf(index));
        table.focus();
      },
    };
  }

  function make(row) {
    const tr = element("tr", { id: `batch-row-${row.index}` });
    tr.dataset.index = row.index;
    const picture = row.thumbnail ? element("img", { src: row.thumbnail, alt: "", decoding: "async" }) : element("span", { className: "no-picture" }, "?");
    const title = element("b", { title: row.name }, row.name.split("/").pop());
    const folder = row.name.includes("/") ? row.name.slice(0, row.name.lastIndexOf("/")) : "";
    const detail = element("small", {}, row.error || [folder, row.fits === false ? "unlike a good part" : ""].filter(Boolean).join(" · "));
    const verdict = cell("verdict", element("b"), element("small"));
    if (row.error) {
      Object.assign(detail, { title: row.error, className: "reason" });
      tr.append(cell("index", picture), cell("name", title, detail), verdict, ...["score", "category", "regions", "seconds"].map((name) => cell(name)));
      return tr;
    }
    if (isNoted(row)) {
      Object.assign(detail, { title: row.notes.join("\n"), className: "noted" });
      detail.prepend(element("i", {}, "! "), row.notes.length === 1 ? row.notes[0] : plural(row.notes.length, "note"), detail.textContent && " · ");
    }
    tr.append(
      cell("index", picture), cell("name", title, detail), verdict, cell("score", number(row.score), element("i", { className: "meter" })),
      cell("category", row.category), cell("regions"), cell("seconds", duration(row.seconds)),
    );
    return tr;
  }

  Object.assign(diffad, { batchTable });
})();
