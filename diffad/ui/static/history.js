// The History tab: filters, a page of rows from the server, the chosen inspection (history_detail.js), drift and report.
// What is chosen lives here in the browser, so two people never see each other's choice.
(() => {
  const diffad = (window.diffad ??= {});
  const { chips, element, number, refresh } = diffad;
  const REST = 250; // ms without typing before the server is asked
  const COLUMNS = [
    ["pick", "", 0], ["thumb", "", 0], ["picture", "name", 0], ["verdict", "verdict", 1], ["score", "score", 1],
    ["correction", "correction", 0], ["category", "category", 0], ["time", "time", 1], ["who", "who", 0],
  ]; // key, title, whether the first click sorts downwards
  const SAID = { right: "right", good: "it is good", defective: "it is defective" };
  const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
  const TIME = new Intl.DateTimeFormat("en-GB", { timeStyle: "short" });
  const COUNT = new Intl.NumberFormat("en");
  const plural = (count, word) => `${COUNT.format(count)} ${word}${count === 1 ? "" : "s"}`;

  const showTab = (name) => [...document.querySelectorAll("[role=tab]")].find((tab) => tab.textContent.trim() === name)?.click();
  // Midnight at the beginning of a day typed in, or some days later, in seconds.
  const midnight = (text, later = 0) => {
    const [year, month, day] = text.split("-").map(Number);
    return text ? new Date(year, month - 1, day + later).getTime() / 1000 : null;
  };

  function history(root, props, watch, trigger, server) {
    const find = (selector) => root.querySelector(selector);
    const [form, table, scroller] = [find("form"), find("table"), find(".history-scroller")];
    const [headers, body] = [element("tr"), element("tbody")];
    table.append(element("thead", {}, headers), body);
    const view = { sort: "time", down: true, page: 0, chosen: null, marked: new Set(), category: null };
    let found = { rows: [], total: 0, may: {}, categories: [], people: [] };
    const detail = diffad.historyDetail(find(".history-detail"), {
      ask: change, act: { close: () => choose(null), reopen, remove, complain },
    });

    // Asking the server

    const typedNumber = (name) => (form[name].value === "" ? null : Number(form[name].value));
    const query = () => ({
      text: form.text.value, category: form.category.value, verdict: form.verdict.value, correction: form.correction.value,
      who: form.who.value, since: midnight(form.since.value), until: midnight(form.until.value, 1),
      score_from: typedNumber("score_from"), score_to: typedNumber("score_to"), sort: view.sort, down: view.down, zone: ZONE,
    });

    function complain(text) {
      find(".trouble").textContent = text;
    }
    // An answer of the server, or null with a sentence shown.
    async function answered(question, asked) {
      const answer = await server[question](asked);
      if (answer === undefined || answer === null) complain("The server did not answer: please try again.");
      else if (answer.refused) complain(answer.refused);
      else {
        complain("");
        return answer;
      }
      return null;
    }

    let newest = 0; // older answers are void
    // anew: what is kept may have changed, not only what is asked for.
    async function load(anew = false) {
      const turn = ++newest;
      root.firstElementChild.ariaBusy = true;
      const answer = await answered("rows", { ...query(), page: view.page });
      if (turn !== newest) return;
      root.firstElementChild.ariaBusy = false;
      if (!answer) return;
      found = answer;
      view.page = answer.page;
      draw();
      if (anew) summed = "";
      fill();
    }
    let resting = null;
    function filtered() {
      view.page = 0;
      view.marked.clear();
      clearTimeout(resting);
      resting = setTimeout(load, REST);
    }

    // Rows

    function draw() {
      options(form.category, "all", found.categories.map(([name, count]) => [name, `${name} (${COUNT.format(count)})`]));
      options(form.who, "everybody", found.people.map((name) => [name, name]));
      find(".of-who").hidden = !found.people.length;
      table.classList.toggle("with-who", found.people.length > 0);
      find(".history-rows h2").textContent = plural(found.total, "inspection");
      head();
      body.replaceChildren(...(found.rows.length ? found.rows.map(rowOf)
        : [element("tr", { className: "none" }, element("td", { colSpan: COLUMNS.length }, found.categories.length ? "Nothing was found." : "Nothing is kept yet: inspect a picture."))]));
      scroller.scrollTop = 0;
      pager();
      marks();
    }

    function options(select, all, entries) {
      refresh(select, JSON.stringify(entries), () => {
        const { value } = select;
        select.replaceChildren(new Option(all, ""), ...entries.map(([name, text]) => new Option(text, name)));
        select.value = entries.some(([name]) => name === value) ? value : "";
      });
    }

    function head() {
      refresh(headers, `${view.sort} ${view.down}`, () => headers.replaceChildren(...COLUMNS.map(([key, title, down]) => {
        const cell = element("th", { scope: "col", className: key });
        if (!title) return Object.assign(cell, { innerHTML: `<span class="unseen">${key === "pick" ? "marked" : "thumbnail"}</span>` });
        const sorted = view.sort === key;
        cell.setAttribute("aria-sort", sorted ? (view.down ? "descending" : "ascending") : "none");
        const button = element("button", { type: "button" }, title, element("i", { ariaHidden: "true" }, sorted ? (view.down ? " ↓" : " ↑") : ""));
        button.dataset.key = key;
        button.addEventListener("click", () => {
          Object.assign(view, { sort: key, down: sorted ? !view.down : !!down, page: 0 });
          load();
        });
        cell.append(button);
        return cell;
      })));
    }

    function rowOf(row, place) {
      const cell = (name, ...children) => element("td", { className: name }, ...children);
      const tr = element("tr", { id: `history-row-${row.id}` });
      Object.assign(tr.dataset, { id: row.id, verdict: row.verdict });
      tr.setAttribute("aria-rowindex", place + 2);
      const name = row.picture.split("/").pop();
      const box = element("input", { type: "checkbox", checked: view.marked.has(row.id), tabIndex: -1, ariaLabel: `Mark ${name}` });
      const thumbnail = row.thumbnail ? element("img", { src: row.thumbnail, alt: "", decoding: "async" }) : element("span", { className: "no-picture" }, "?");
      const [word, mark] = diffad.verdicts[row.verdict];
      const when = new Date(1000 * row.time);
      const from = row.source === "batch" ? "from a batch" : "";
      const limit = row.verdict === "good" ? row.look_threshold : row.threshold;
      tr.append(
        cell("pick", box), cell("thumb", thumbnail),
        cell("picture", element("b", { title: row.picture }, name), element("small", {}, [from, row.noted && "with a note"].filter(Boolean).join(" · ")),
          element("small", { className: "also" }, SAID[row.correction] ? `said: ${SAID[row.correction]}` : "")),
        cell("verdict", element("b", {}, element("i", { ariaHidden: "true" }, mark), element("span", {}, ` ${word.toLowerCase()}`))),
        cell("score", element("b", {}, number(row.score)), element("small", {}, `of ${number(limit)}`)),
        cell("correction", SAID[row.correction] ?? ""), cell("category", row.category),
        cell("time", TIME.format(when), element("small", { title: diffad.stamp(row.time) }, DATE.format(when).replace(` ${new Date().getFullYear()}`, ""))),
        cell("who", row.who),
      );
      tr.querySelector(".correction").dataset.said = row.correction;
      return tr;
    }

    function pager() {
      const { total, page, size, rows } = found;
      find(".pager").hidden = total <= rows.length;
      find(".where").textContent = `${COUNT.format(page * size + 1)} to ${COUNT.format(page * size + rows.length)} of ${COUNT.format(total)}`;
      find(".newer").disabled = page <= 0;
      find(".older").disabled = (page + 1) * size >= total;
      for (const button of root.querySelectorAll("[data-take]")) button.disabled = !total;
    }

    function marks() {
      for (const tr of body.querySelectorAll("tr[data-id]")) tr.setAttribute("aria-selected", Number(tr.dataset.id) === view.chosen);
      const shown = body.querySelector(`#history-row-${view.chosen}`);
      if (shown) table.setAttribute("aria-activedescendant", shown.id);
      else table.removeAttribute("aria-activedescendant");
      const button = find(".delete-chosen");
      button.hidden = !view.marked.size || !found.may.delete;
      button.textContent = `Delete ${plural(view.marked.size, "inspection")}`;
    }

    // The chosen inspection

    async function choose(id) {
      view.chosen = id;
      marks();
      if (id === null) return detail.show(null);
      detail.wait();
      body.querySelector(`#history-row-${id}`)?.scrollIntoView({ block: "nearest" });
      const answer = await answered("detail", { id });
      if (view.chosen !== id || !answer) return;
      detail.show(answer, found.may);
    }

    // Asks for a change of one inspection, and shows it where it is listed.
    async function change(question, id, more = {}) {
      const answer = await answered(question, { id, ...more });
      if (!answer) return;
      took(answer);
      summed = "";
      fill();
      diffad.announce({ id, correction: answer.correction, from: "history" });
    }
    function took(answer) {
      if (view.chosen === answer.id) detail.show(answer, found.may);
      const place = found.rows.findIndex((row) => row.id === answer.id);
      if (place < 0) return;
      found.rows[place] = answer;
      body.children[place].replaceWith(rowOf(answer, place));
      marks();
    }
    document.addEventListener("diffad:corrected", ({ detail: { from } }) => { if (from !== "history" && root.offsetParent) load(true); });

    const confirm = find(".confirm");
    let doomed = [];
    function remove(ids) {
      doomed = ids;
      confirm.querySelector("p").textContent = `Delete ${plural(ids.length, "inspection")} with ${ids.length === 1 ? "its picture" : "their pictures"}? This cannot be undone.`;
      confirm.showModal();
    }
    confirm.querySelector(".no").addEventListener("click", () => confirm.close());
    confirm.querySelector(".yes").addEventListener("click", async () => {
      confirm.close();
      if (!(await answered("remove", { ids: doomed }))) return;
      for (const id of doomed) view.marked.delete(id);
      if (doomed.includes(view.chosen)) choose(null);
      load(true);
    });
    find(".delete-chosen").addEventListener("click", () => remove([...view.marked]));

    // Into Inspect: the server sets the controls, then reopen below asks for the picture.
    function reopen(id) {
      trigger("edit", { id });
    }
    diffad.reopen = ({ model, kind, id, off, ...link }) => {
      const score = (name) => (link[name] === undefined ? null : Number(link[name]));
      const rate = (name) => (link[name] === undefined ? undefined : Number(link[name]));
      diffad.judgeAgain(model, kind, {
        alpha: Number(link.alpha), off, threshold: score("threshold"), look: score("look"), rate: rate("rate"), lookRate: rate("look-rate"),
      });
      showTab("Inspect");
      diffad.mark(null);
      trigger("select", { id });
    };

    // Drift and report of one category

    let summed = ""; // what drift and report are shown for
    async function fill() {
      const names = found.categories.map(([name]) => name);
      const wanted = form.category.value || view.category;
      view.category = names.includes(wanted) ? wanted : found.rows[0]?.category ?? names[0] ?? null;
      const [{ since, until }, { category }] = [query(), view];
      chips(find(".about"), found.categories.map(([name, count]) => [name, name, COUNT.format(count)]), category, (name) => {
        view.category = name;
        if (!form.category.value) return fill();
        form.category.value = name;
        filtered();
      });
      const key = JSON.stringify([category, since, until]);
      if (key === summed) return;
      summed = key;
      const period = [form.since.value && `from ${form.since.value}`, form.until.value && `to ${form.until.value}`].filter(Boolean).join(" ");
      find(".period").textContent = category ? `${category}, ${period || "all time"}` : "";
      if (!category) return;
      for (const [question, slot] of [["report", ".report-slot"], ["drift", ".drift-slot"]]) {
        const answer = await server[question]({ category, since, until, zone: ZONE });
        if (key !== summed) return;
        if (answer?.html) find(slot).innerHTML = answer.html;
      }
    }

    // What the person does

    form.addEventListener("input", filtered);
    form.addEventListener("reset", () => setTimeout(filtered));
    form.addEventListener("submit", (event) => { event.preventDefault(); filtered(); });
    find(".newer").addEventListener("click", () => { view.page -= 1; load(); });
    find(".older").addEventListener("click", () => { view.page += 1; load(); });
    body.addEventListener("click", (event) => {
      const tr = event.target.closest("tr[data-id]");
      if (!tr || String(getSelection())) return;
      const id = Number(tr.dataset.id);
      if (event.target.closest("td.pick")) return mark(id, event.target.matches("input"));
      // On a narrow page the detail is below the list.
      choose(id).then(() => matchMedia("(max-width: 1100px)").matches && find(".history-detail").scrollIntoView({ block: "start" }));
    });
    function mark(id, done = false) {
      const box = body.querySelector(`#history-row-${id} input`);
      if (!done) box.checked = !box.checked;
      view.marked[box.checked ? "add" : "delete"](id);
      marks();
    }
    table.addEventListener("keydown", (event) => {
      if (event.target !== table) return;
      const now = found.rows.findIndex((row) => row.id === view.chosen);
      const last = found.rows.length - 1;
      const to = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: last, PageDown: now + 8, PageUp: now - 8 }[event.key];
      if (to !== undefined && last >= 0) choose(found.rows[Math.min(Math.max(to, 0), last)].id);
      else if (event.key === " " && now >= 0) mark(view.chosen);
      else if (event.key === "Enter" && now >= 0) reopen(view.chosen);
      else return;
      event.preventDefault();
    });
    for (const button of root.querySelectorAll("[data-take]"))
      button.addEventListener("click", () => trigger("download", { kind: button.dataset.take, ...query() }));

    diffad.historyShown = () => {
      load(true);
      if (view.chosen !== null) choose(view.chosen);
    };
    // For tests.
    diffad.historyState = () => ({ view, found });
    if (root.offsetParent) load();
  }

  Object.assign(diffad, { history });
})();
