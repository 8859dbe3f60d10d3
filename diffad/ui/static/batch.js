// The Batch tab: rows as they come, two limits that judge them all here in the browser, the way into Inspect and
// along the rows there. The server holds the run (ui/batch.py); its id stands in the address, so a reload finds it.
(() => {
  const diffad = (window.diffad ??= {});
  const { thresholdFor, rateFor, judged: judgedBy } = diffad.scores;
  const RAREST = 1e-5;
  // The two limits: in the address, the usual share of good parts above, and those that Inspect offers, as layout.py
  // says; another rate goes there as its score.
  const LIMITS = {
    threshold: { title: "threshold", rate: "batch-rate", own: "batch-limits", usual: () => 0.01, offered: [0.05, 0.01, 0.001] },
    look: { title: "look limit", rate: "batch-look-rate", own: "batch-look-limits", usual: () => diffad.usualLook, offered: [0.2, 0.1, 0.05] },
  };
  const KINDS = Object.keys(LIMITS);
  const ROW = 58; // px, as batch.css says
  const BESIDE = 8; // rows kept ready above and below those in sight
  const COLUMNS = [
    ["index", "", 0], ["name", "picture", 0], ["verdict", "verdict", 1], ["score", "score", 1], ["category", "category", 0],
    ["regions", "regions", 1], ["seconds", "time", 1],
  ]; // key, title, whether the first click sorts downwards

  const element = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };
  const tab = (name) => [...document.querySelectorAll("[role=tab]")].find((each) => each.textContent.trim() === name)?.click();
  const NATURAL = new Intl.Collator(undefined, { numeric: true });
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const number = (value) => diffad.number(value);
  const span = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);
  const time = (s) => (s < 1 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(1)} s`);

  function batch(root, props, watch, trigger, server) {
    const find = (selector) => root.querySelector(selector);
    const table = find("table");
    const scroller = find(".scroller");
    const body = element("tbody");
    const headers = element("tr");
    table.append(element("thead", {}, headers), body);

    let run = null; // { id, rows, good, usual, ... }: what is known of the batch
    let view = null; // what the person chose to see of it
    let listed = []; // rows that pass the filter, in the chosen order
    let recounting = 0;

    // A run that the address brings back is looked at as it was, a new one judged by Inspect's rates.
    const begin = (id) => {
      const link = new URLSearchParams(location.search);
      const { rate, lookRate } = diffad.choices();
      const saved = link.get("batch") === id ? link : new URLSearchParams({ "batch-rate": rate, "batch-look-rate": lookRate });
      const chosen = (kind) => {
        const share = Number(saved.get(LIMITS[kind].rate));
        const own = [...new URLSearchParams(saved.get(LIMITS[kind].own) ?? "")].map(([name, limit]) => [name, Number(limit)]);
        return { rate: possible(share) ? share : LIMITS[kind].usual(), own: Object.fromEntries(own.filter(([, limit]) => limit >= 0)) };
      };
      run = { id, rows: [], by: {}, usual: {}, measured: {}, total: 0, done: 0, state: "running", finished: false };
      view = {
        sort: "index", down: false, filter: "all", category: null, selected: null, open: null, wanted: parseInt(saved.get("batch-row")),
        threshold: chosen("threshold"), look: chosen("look"),
      }; // wanted: a row to open once it is there; of a limit `own`: by category, where it is not the rate's
      scroller.scrollTop = 0;
    };

    // News from the server

    async function follow(id) {
      begin(id);
      const mine = run;
      address();
      paint();
      while (run === mine) {
        const news = await server.news({ run: id, have: run.rows.length });
        if (run !== mine) return;
        if (news === undefined) { // Gradio's word for an answer that was lost
          doing("The server does not answer; trying again.");
          await pause(2000);
          continue;
        }
        if (news === null) {
          run = null;
          address();
          say("This batch is gone", "The server no longer has it, perhaps after a restart. Give the pictures again.");
          return;
        }
        const rows = news.rows;
        for (const row of rows) {
          row.recount = row.regions;
          row.countedAt = row.error ? 0 : judgedBy(row.score, row.threshold, row.look_threshold).mapLimit;
        }
        run.rows.push(...rows);
        Object.assign(run, news, { rows: run.rows });
        if (rows.length || news.finished || run.state !== mine.painted) paint();
        else progress();
        mine.painted = run.state;
        if (run.rows[view.wanted]) open(view.wanted);
        if (news.finished && run.rows.length === news.done) return isMoved() && judged(); // recounts what came since
        await pause(rows.length >= 100 ? 0 : 600);
      }
    }

    // The run, its limits, and the row that is open while Inspect is looked at.
    const address = () => diffad.address({
      batch: run?.id, "batch-row": run && !root.offsetParent ? view.open : null,
      ...Object.fromEntries(KINDS.flatMap((kind) => [
        [LIMITS[kind].rate, run && view[kind].rate !== LIMITS[kind].usual() ? view[kind].rate : null],
        [LIMITS[kind].own, (run && new URLSearchParams(view[kind].own).toString()) || null],
      ])),
    });

    // Verdicts: a category's limits, its own or the rates'; a tiled picture's lie beyond them by what its tiles ask for.

    const possible = (rate) => rate >= RAREST && rate < 1;
    function limitsOf(category) {
      const of = (kind) => view[kind].own[category] ??
        (view[kind].rate === LIMITS[kind].usual() ? run.usual[category][kind] : thresholdFor(run.by[category], view[kind].rate));
      const threshold = of("threshold");
      return { threshold, look: Math.min(of("look"), threshold) };
    }
    // The limits that are not as usual, by category: threshold and look limit.
    const moved = () => Object.fromEntries(Object.keys(run.by).map((name) => [name, limitsOf(name)])
      .filter(([name, limits]) => KINDS.some((kind) => limits[kind] !== run.usual[name][kind]))
      .map(([name, { threshold, look }]) => [name, [threshold, look]]));
    function judge() {
      const limits = Object.fromEntries(Object.keys(run.by).map((name) => [name, limitsOf(name)]));
      for (const row of run.rows) {
        if (row.error) row.verdict = "failed";
        else {
          row.limit = limits[row.category].threshold + row.beyond.threshold;
          row.look = Math.min(limits[row.category].look + row.beyond.look, row.limit);
          Object.assign(row, judgedBy(row.score, row.limit, row.look));
        }
        // What is to be looked at is neither missed nor a false alarm.
        row.wrong = typeof row.bad === "boolean" && row.verdict === (row.bad ? "good" : "anomalous");
      }
    }

    const isMoved = () => Object.keys(shifted()).length > 0;

    function moveLimit(kind, value) {
      if (!Number.isFinite(value)) return;
      view[kind].own[view.category] = Math.max(0, Math.round(1000 * value) / 1000);
      judged();
    }

    function moveRate(kind, rate) {
      if (!possible(rate)) return;
      view[kind] = { rate, own: {} };
      judged();
    }

    // Regions are found again on the server, once the limits rest; until then the old number is pale.
    let resting = null;
    let due = 0;
    function judged() {
      judge(); // at once; only the drawing waits
      recounting++; // what is being counted is of other limits
      due ||= requestAnimationFrame(() => { due = 0; if (run) paint(); });
      clearTimeout(resting);
      resting = setTimeout(recount, 350);
    }
    async function recount() {
      const [mine, turn] = [run, ++recounting];
      address();
      const counts = isMoved() ? await server.regions({ run: run.id, limits: shifted() }) : null;
      if (run !== mine || turn !== recounting || (isMoved() && !counts)) return;
      for (const row of run.rows) {
        row.recount = isMoved() ? counts[row.index] ?? row.regions : row.regions;
        row.countedAt = row.mapLimit;
      }
      paint();
    }
    const stale = (row) => Math.abs(row.mapLimit - row.countedAt) > 1e-9;

    // Everything that is shown follows from run and view

    function paint() {
      const shown = !!run;
      root.firstElementChild.dataset.state = shown ? run.state : "empty";
      for (const part of [".batch-threshold", ".batch-rows"]) find(part).hidden = !shown || !run.rows.length;
      if (!shown) return;
      const names = Object.keys(run.by);
      if (!names.includes(view.category)) view.category = names[0] ?? null;
      judge();
      summary();
      progress();
      find(".batch-threshold").hidden = !names.length;
      measured(); // takes its place beside the chart before that is drawn
      if (names.length) threshold(names);
      filters();
      list();
      strip();
    }

    function say(title, facts = "") {
      paint();
      find(".batch-summary h2").textContent = title;
      find(".facts").textContent = facts;
      doing("");
      find(".progress").hidden = find(".cancel").hidden = find(".batch-note").hidden = true;
    }
    const doing = (text) => { find(".doing").textContent = text; };

    function summary() {
      const count = (verdict) => run.rows.filter((row) => row.verdict === verdict).length;
      const [bad, failed] = [count("anomalous"), count("failed")];
      const inspected = run.rows.length - failed;
      find(".batch-summary h2").textContent = inspected ? `${bad} of ${inspected} anomalous`
        : run.finished && failed === run.done ? "No picture was read" : "Reading the first picture";
      const facts = inspected ? [`${count("look")} to look at`, `${count("good")} good`] : [];
      if (failed) facts.push(`${failed} not read`);
      const labelled = run.rows.filter((row) => !row.error && typeof row.bad === "boolean");
      if (labelled.length) {
        const defects = labelled.filter((row) => row.bad);
        const goods = labelled.length - defects.length;
        if (defects.length) facts.push(`${defects.filter((row) => row.verdict === "anomalous").length} of ${plural(defects.length, "defect")} found`);
        if (goods) facts.push(`${labelled.filter((row) => !row.bad && row.wrong).length} of ${goods} good rejected`);
      }
      const strange = run.rows.filter((row) => row.fits === false).length;
      if (strange) facts.push(`${strange} unlike a good part`);
      const noted = run.rows.filter((row) => row.notes?.length).length;
      if (noted) facts.push(`${noted} with a note`);
      find(".facts").textContent = run.rows.length ? facts.join(" · ") : "";
      find(".batch-note").hidden = !run.note;
      find(".batch-note").textContent = run.note ?? "";
    }

    function progress() {
      const { done, total, seconds, finished, state } = run;
      find(".batch-summary h2").ariaBusy = !finished; // read out once it stands
      const bar = find(".progress");
      bar.hidden = finished;
      bar.setAttribute("aria-valuemax", total);
      bar.setAttribute("aria-valuenow", done);
      bar.firstElementChild.style.width = `${(100 * done) / Math.max(1, total)}%`;
      const cancel = find(".cancel");
      cancel.hidden = finished || state === "measuring";
      cancel.disabled = state === "stopping";
      const each = done ? ` · ${time(seconds / done)} a picture` : "";
      const left = done > 1 ? ` · about ${span(((total - done) * seconds) / done)} left` : "";
      doing({
        running: `${done} of ${total}${left}${each} · model ${run.model}`,
        stopping: `Ending after this picture · ${done} of ${total}`,
        measuring: "Measuring against the labels",
        done: `${plural(total, "picture")} in ${span(seconds)}${each} · model ${run.model}`,
        stopped: `Cancelled after ${done} of ${total} · model ${run.model}`,
        failed: `Broken off after ${done} of ${total}: ${run.reason}.`,
      }[state]);
    }

    // Scores and limits

    function chips(box, entries, now, choose) {
      box.replaceChildren(...entries.map(([key, text, count]) => {
        const chip = element("button", { type: "button", className: "chip" }, text);
        if (count !== undefined) chip.append(element("span", {}, String(count)));
        chip.setAttribute("aria-pressed", key === now);
        chip.addEventListener("click", () => choose(key));
        chip.dataset.key = key;
        return chip;
      }));
    }

    function refresh(box, key, make) { // leaves what is the same alone, and with it the focus
      if (box.dataset.made === key) return;
      const focused = box.contains(document.activeElement) ? document.activeElement.dataset.key : null;
      make();
      box.dataset.made = key;
      if (focused) box.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    }

    function threshold(names) {
      const entries = names.map((name) => [name, name, run.rows.filter((row) => row.category === name).length]);
      const box = find(".categories");
      refresh(box, JSON.stringify([entries, view.category]), () =>
        chips(box, entries, view.category, (name) => { view.category = name; paint(); }));
      for (const kind of KINDS) told(kind, names);
      find(".usual").hidden = !isMoved();
      chart();
    }

    function told(kind, names) {
      const [box, limit] = [find(`.limit-of[data-limit=${kind}]`), limitsOf(view.category)[kind]];
      const [score, share] = [box.querySelector(".score"), box.querySelector(".rate")];
      const rate = rateFor(run.by[view.category], limit);
      put(score, limit.toFixed(2));
      put(share, String(Math.round(1 / rate)));
      const sayable = rate >= RAREST && rate < 0.5;
      share.parentElement.hidden = !sayable && document.activeElement !== share;
      const alike = names.every((name) => Math.abs(Math.log(rateFor(run.by[name], limitsOf(name)[kind]) / rate)) < 0.01);
      const does = kind === "look" ? "is exceeded by" : "rejects";
      box.querySelector(".beyond").textContent = rate >= 0.5 ? `${does} ${Math.round(100 * rate)} % of the good parts`
        : rate < RAREST ? `${does} fewer than 1 good part in 100 000`
        : names.length < 2 ? "" : alike ? "in every category" : `of ${view.category}; the others keep theirs`;
    }
    const put = (input, text) => { if (document.activeElement !== input) input.value = text; };

    // The chart's axis is logarithmic: good parts lie close together, defects reach far.
    let scale = null;
    const MARGIN = 10;
    function chart() {
      const limits = limitsOf(view.category);
      const rows = run.rows.filter((row) => row.category === view.category);
      const { good } = run.by[view.category];
      const box = find(".chart");
      const [width, height] = [Math.max(260, box.clientWidth), 128];
      const values = [...rows.map((row) => row.score - row.beyond.threshold), ...good].map((value) => Math.max(value, 0.1));
      const usual = run.usual[view.category];
      const low = Math.min(...values, usual.look) * 0.85;
      const high = Math.max(...values, 2 * usual.threshold) * 1.15;
      const at = (value) => MARGIN + ((width - 2 * MARGIN) * Math.log(Math.min(Math.max(value, low), high) / low)) / Math.log(high / low);
      const bins = Math.max(20, Math.round(width / 13));
      scale = { low, high, at, back: (x) => low * (high / low) ** ((x - MARGIN) / (width - 2 * MARGIN)) };
      const bin = (value) => Math.min(bins - 1, Math.max(0, Math.floor((bins * Math.log(Math.max(value, 0.1) / low)) / Math.log(high / low))));
      const counted = (list, of) => list.reduce((counts, item) => (counts[bin(of(item))]++, counts), new Array(bins).fill(0));
      const stacks = ["good", "look", "anomalous"].map((verdict) =>
        [verdict, counted(rows.filter((row) => row.verdict === verdict), (row) => row.score - row.beyond.threshold)]);
      const held = counted(good, (value) => value);
      const [base, tall] = [height - 24, height - 46];
      const below = (i, kind) => stacks.slice(0, kind).reduce((sum, [, counts]) => sum + counts[i], 0);
      const unit = tall / Math.max(1, ...held.map((_, i) => below(i, stacks.length)));
      const heldUnit = tall / Math.max(1, ...held);
      const step = (width - 2 * MARGIN) / bins;
      const bar = (kind, i, from, count, size) => count
        ? `<rect class="${kind}" x="${(MARGIN + i * step + 1).toFixed(1)}" width="${(step - 2).toFixed(1)}" y="${(base - (from + count) * size).toFixed(1)}" height="${(count * size).toFixed(1)}"/>` : "";
      const outline = held.map((count, i) => `${(MARGIN + i * step).toFixed(1)},${(base - count * heldUnit).toFixed(1)} ${(MARGIN + (i + 1) * step).toFixed(1)},${(base - count * heldUnit).toFixed(1)}`).join(" ");
      const ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500].filter((tick) => tick > low * 1.05 && tick < high * 0.95);
      const focused = document.activeElement?.closest?.(".chart .handle")?.dataset.limit;
      box.innerHTML = `<svg width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">
        <polygon class="held" points="${MARGIN},${base} ${outline} ${width - MARGIN},${base}"/>
        ${stacks.map(([verdict, counts], kind) => counts.map((count, i) => bar(verdict, i, below(i, kind), count, unit)).join("")).join("")}
        <line class="axis" x1="0" x2="${width}" y1="${base}" y2="${base}"/>
        ${ticks.map((tick) => `<text x="${at(tick)}" y="${height - 8}" text-anchor="middle">${tick}</text>`).join("")}
        ${["look", "threshold"].map((kind) => handle(kind, limits, at, { low, high, width, base })).join("")}</svg>
        <p class="quiet legend"><span class="good">good</span><span class="look">look at it</span><span class="anomalous">anomalous</span>
          <span class="held">good parts the model was calibrated on</span><span>score in σ</span></p>`;
      const taken = view.holding || focused;
      if (taken) find(`.handle[data-limit=${taken}]`).focus({ preventScroll: true });
    }

    // Knob and name of the look limit are on the left of its line, those of the threshold on the right, so that both can
    // be seen and held where they meet; a name that has no room stands on the other side, below.
    function handle(kind, limits, at, { low, high, width, base }) {
      const [x, side] = [at(limits[kind]), kind === "look" ? -1 : 1];
      const left = side < 0 ? x > 120 : x > width - 130;
      const title = LIMITS[kind].title;
      return `<g class="handle" data-limit="${kind}" tabindex="0" role="slider" aria-label="${title[0].toUpperCase()}${title.slice(1)}"
          aria-valuemin="${low.toFixed(2)}" aria-valuemax="${(kind === "look" ? limits.threshold : high).toFixed(2)}"
          aria-valuenow="${limits[kind].toFixed(2)}" transform="translate(${x.toFixed(1)} 0)">
        <line class="limit" y1="4" y2="${base + 5}"/><path d="M0 4h${10 * side}v7l${-10 * side} 6z"/>
        <text class="name" x="${left ? -14 : 14}" y="${left === side < 0 ? 14 : 30}" text-anchor="${left ? "end" : "start"}">${title} ${number(limits[kind])}</text></g>`;
    }

    find(".chart").addEventListener("pointerdown", (event) => {
      const svg = event.target.closest("svg");
      if (!svg || event.button) return;
      event.preventDefault();
      const left = svg.getBoundingClientRect().left;
      const kind = nearest(event.clientX - left);
      view.holding = kind;
      const move = (moved) => dragLimit(kind, Math.min(scale.high, Math.max(scale.low, scale.back(moved.clientX - left))));
      const end = () => {
        removeEventListener("pointermove", move);
        removeEventListener("pointerup", end);
        removeEventListener("pointercancel", end);
      };
      addEventListener("pointermove", move);
      addEventListener("pointerup", end);
      addEventListener("pointercancel", end);
      move(event);
    });
    // The line that a press in the chart takes: the nearer one, and on either side of both the one with its knob there.
    function nearest(x) {
      const { threshold, look } = limitsOf(view.category);
      return x < (scale.at(threshold) + scale.at(look)) / 2 ? "look" : "threshold";
    }
    // The look limit ends at the threshold; the threshold takes it along.
    const dragLimit = (kind, value) => moveLimit(kind, kind === "look" ? Math.min(value, limitsOf(view.category).threshold) : value);
    find(".chart").addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1.01, ArrowUp: 1.01, ArrowLeft: 1 / 1.01, ArrowDown: 1 / 1.01, PageUp: 1.1, PageDown: 1 / 1.1 }[event.key];
      const kind = event.target.closest(".handle")?.dataset.limit;
      if (!by || !kind) return;
      event.preventDefault();
      view.holding = kind;
      const limit = limitsOf(view.category)[kind];
      dragLimit(kind, limit + Math.abs(limit) * (by - 1));
    });
    find(".chart").addEventListener("focusout", (event) => { if (view && event.relatedTarget) view.holding = null; });
    for (const box of root.querySelectorAll(".limit-of")) {
      const kind = box.dataset.limit;
      box.querySelector(".score").addEventListener("input", (event) => moveLimit(kind, parseFloat(event.target.value)));
      box.querySelector(".rate").addEventListener("input", (event) => moveRate(kind, 1 / parseFloat(event.target.value)));
      box.addEventListener("change", () => { document.activeElement.blur?.(); paint(); });
    }
    find(".usual").addEventListener("click", () => KINDS.forEach((kind) => moveRate(kind, LIMITS[kind].usual())));
    new ResizeObserver(() => { if (run?.rows.length && root.offsetParent) paint(); }).observe(find(".chart"));

    // Measured against the labels

    function measured() {
      const names = Object.keys(run.measured);
      find(".batch").classList.toggle("has-labels", names.length > 0);
      find(".batch-measured").hidden = !names.length;
      if (!names.length) return;
      const name = names.includes(view.category) ? view.category : names[0];
      const box = find(".numbers");
      refresh(box, `${run.id} ${name}`, () => {
        box.innerHTML = diffad.measured(name, run.measured[name]);
      });
    }

    // The table: only the rows in sight are in the page

    const differs = (row) => row.verdict === "anomalous" || row.verdict === "look"; // and has regions
    function filters() {
      const count = (test) => run.rows.filter(test).length;
      const entries = [["all", "All"], ...["anomalous", "look", "good"].map((verdict) => [verdict, wordOf(verdict)]), ["failed", "Not read"]].map(([verdict, word]) =>
        [verdict, word, count((row) => verdict === "all" || row.verdict === verdict)]);
      if (run.rows.some((row) => typeof row.bad === "boolean")) entries.push(["wrong", "Misjudged", count((row) => row.wrong)]);
      if (run.rows.some((row) => row.notes?.length)) entries.push(["noted", "With a note", count((row) => row.notes?.length)]);
      const box = find(".filters");
      refresh(box, JSON.stringify([entries, view.filter]), () =>
        chips(box, entries, view.filter, (key) => { view.filter = key; scroller.scrollTop = 0; paint(); }));
    }

    const wordOf = (verdict) => diffad.verdicts[verdict][0];
    const LAST = { anomalous: 3, look: 2, good: 1, failed: 0 };
    function list() {
      const { filter, sort, down } = view;
      const key = {
        verdict: (row) => LAST[row.verdict] * 1e6 + (row.score ?? 0), regions: (row) => (differs(row) ? row.recount : 0),
      }[sort] ?? ((row) => row[sort]);
      listed = run.rows.filter((row) => filter === "all" || row.verdict === filter || (filter === "wrong" && row.wrong) || (filter === "noted" && row.notes?.length));
      const known = (row) => key(row) !== undefined && key(row) !== null;
      const compare = (a, b) => (typeof a === "string" ? NATURAL.compare(a, b) : a - b);
      if (sort !== "index" || down) // rows without the value come last, whichever way
        listed.sort((a, b) => known(b) - known(a) || (known(a) ? (down ? -1 : 1) * compare(key(a), key(b)) : 0) || a.index - b.index);
      head();
      rows();
    }

    function head() {
      refresh(headers, `${view.sort} ${view.down}`, () => {
        headers.replaceChildren(...COLUMNS.map(([key, title, down]) => {
          const cell = element("th", { scope: "col", className: key });
          if (!title) return Object.assign(cell, { innerHTML: '<span class="unseen">thumbnail</span>' });
          const on = view.sort === key;
          cell.setAttribute("aria-sort", on ? (view.down ? "descending" : "ascending") : "none");
          const button = element("button", { type: "button" }, title, element("i", { ariaHidden: "true" }, on ? (view.down ? " ↓" : " ↑") : ""));
          button.dataset.key = key;
          button.addEventListener("click", () => {
            if (!on) Object.assign(view, { sort: key, down: !!down });
            else if (view.down === !!down) view.down = !down;
            else Object.assign(view, { sort: "index", down: false });
            list();
          });
          cell.append(button);
          return cell;
        }));
      });
    }

    function rows() {
      table.setAttribute("aria-rowcount", listed.length + 1);
      const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - BESIDE);
      const last = Math.min(listed.length, first + Math.ceil((scroller.clientHeight || 600) / ROW) + 2 * BESIDE);
      const space = (count) => {
        const row = element("tr", { ariaHidden: "true", className: "space" });
        row.style.height = `${count * ROW}px`;
        return row;
      };
      const seen = listed.slice(first, last).map((row, i) => update(row, first + i));
      const parts = [...(first ? [space(first)] : []), ...seen, ...(last < listed.length ? [space(listed.length - last)] : [])];
      if (!listed.length) parts.push(element("tr", { className: "none" }, element("td", { colSpan: COLUMNS.length }, "No picture of this kind.")));
      const made = [run.id, first, listed.length, ...seen.map((row) => row.id)].join();
      if (body.dataset.made !== made) body.replaceChildren(...parts);
      body.dataset.made = made;
      const id = view.selected === null ? null : `batch-row-${view.selected}`;
      if (id && seen.some((row) => row.id === id)) table.setAttribute("aria-activedescendant", id);
      else table.removeAttribute("aria-activedescendant");
    }

    // A row's element is made once; what may change in it is written when it does.
    function update(row, place) {
      row.element ??= make(row);
      const { element: tr } = row;
      tr.setAttribute("aria-rowindex", place + 2);
      tr.setAttribute("aria-selected", row.index === view.selected);
      const regions = row.error ? "" : differs(row) ? String(row.recount || (stale(row) ? "…" : 0)) : "–";
      const state = [row.verdict, regions, stale(row), row.wrong, row.limit, row.look].join();
      if (tr.dataset.now === state) return tr;
      tr.dataset.now = state;
      tr.dataset.verdict = row.verdict;
      const cell = (name) => tr.querySelector(`.${name}`);
      const [word, mark] = row.error ? ["not read", "–"] : diffad.verdicts[row.verdict];
      cell("verdict").firstElementChild.replaceChildren(element("i", {}, mark), element("span", {}, ` ${word.toLowerCase()}`));
      cell("verdict").lastElementChild.textContent = row.wrong ? (row.bad ? "missed" : "false alarm") : "";
      if (row.error) return tr;
      // The threshold is the middle of the meter.
      const share = 0.5 + (row.score - row.limit) / (2 * Math.max(Math.abs(row.limit), 1e-6));
      cell("score").lastElementChild.style.setProperty("--share", Math.min(1, Math.max(0, share)).toFixed(3));
      cell("regions").textContent = regions;
      cell("regions").classList.toggle("stale", stale(row));
      return tr;
    }

    function make(row) {
      const cell = (name, ...children) => element("td", { className: name }, ...children);
      const tr = element("tr", { id: `batch-row-${row.index}` });
      tr.dataset.index = row.index;
      const picture = row.thumbnail ? element("img", { src: row.thumbnail, alt: "", decoding: "async" }) : element("span", { className: "no-picture" }, "?");
      const title = element("b", { title: row.name }, row.name.split("/").pop());
      const folder = row.name.includes("/") ? row.name.slice(0, row.name.lastIndexOf("/")) : "";
      const under = element("small", {}, row.error || [folder, row.fits === false ? "unlike a good part" : ""].filter(Boolean).join(" · "));
      if (row.error) {
        Object.assign(under, { title: row.error, className: "reason" });
        const name = cell("name", title, under);
        tr.append(cell("index", picture), name, cell("verdict", element("b"), element("small")), ...["score", "category", "regions", "seconds"].map((key) => cell(key)));
        return tr;
      }
      if (row.notes?.length) {
        Object.assign(under, { title: row.notes.join("\n"), className: "noted" });
        under.prepend(element("i", {}, "! "), row.notes.length === 1 ? row.notes[0] : plural(row.notes.length, "note"), under.textContent && " · ");
      }
      tr.append(
        cell("index", picture), cell("name", title, under), cell("verdict", element("b"), element("small")),
        cell("score", number(row.score), element("i", { className: "meter" })), cell("category", row.category), cell("regions"),
        cell("seconds", time(row.seconds)),
      );
      return tr;
    }

    function select(place) {
      if (!listed.length) return;
      const row = listed[Math.min(listed.length - 1, Math.max(0, place))];
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

    // Into Inspect and along the rows there

    function open(index) {
      const row = run.rows[index];
      if (row.error) return;
      Object.assign(view, { open: index, selected: index, wanted: null });
      const byRate = (kind) => !(row.category in view[kind].own) && LIMITS[kind].offered.includes(view[kind].rate);
      diffad.judgeBy({ ...row, model: run.model }, {
        ...(byRate("threshold") ? { rate: view.threshold.rate } : { threshold: row.limit }),
        ...(byRate("look") ? { lookRate: view.look.rate } : { look: row.look }),
      });
      tab("Inspect");
      diffad.mark?.(null);
      strip();
      trigger("select", { run: run.id, index });
    }

    const bar = element("nav", { id: "batch-strip", hidden: true });
    bar.setAttribute("aria-label", "Through the batch");
    bar.innerHTML = `<button type="button" class="plain-button before" aria-label="Previous picture of the batch">←</button>
      <span class="where"></span><button type="button" class="plain-button after" aria-label="Next picture of the batch">→</button>
      <button type="button" class="plain-button back">Back to the batch</button>`;
    bar.querySelector(".before").addEventListener("click", () => walk(-1));
    bar.querySelector(".after").addEventListener("click", () => walk(1));
    bar.querySelector(".back").addEventListener("click", () => {
      tab("Batch");
      requestAnimationFrame(() => { select(placeOf(view.open)); table.focus(); });
    });

    const readable = () => listed.filter((row) => !row.error);
    function strip() {
      const page = document.querySelector("#page");
      if (page && bar.nextElementSibling !== page) page.before(bar);
      bar.hidden = !run || view.open === null;
      if (bar.hidden) return;
      const row = run.rows[view.open];
      const place = readable().indexOf(row);
      const where = bar.querySelector(".where");
      where.dataset.verdict = row.verdict;
      where.replaceChildren(
        element("b", {}, row.name.split("/").pop()),
        element("span", { className: "quiet" }, ` ${place + 1} of ${readable().length} in the batch · `),
        element("span", { className: "judged" }, `${wordOf(row.verdict).toLowerCase()} there, ${number(row.score)} ` +
          (row.verdict === "look" ? `between ${number(row.look)} and ${number(row.limit)}` : `against ${number(row.verdict === "good" ? row.look : row.limit)}`)),
      );
      bar.querySelector(".before").disabled = place <= 0;
      bar.querySelector(".after").disabled = place >= readable().length - 1;
    }
    function walk(by) {
      const next = readable()[readable().indexOf(run.rows[view.open]) + by];
      if (next) open(next.index);
    }
    // The arrow keys of Inspect walk here while a row is open; another picture ends that.
    document.addEventListener("diffad:walk", (event) => {
      if (!run || view.open === null) return;
      event.preventDefault();
      walk(event.detail.by);
    });
    const leave = () => { if (run && view.open !== null) { view.open = null; strip(); } };
    document.addEventListener("click", (event) => { if (event.isTrusted && event.target.closest?.("#samples button")) leave(); }, true);
    document.addEventListener("change", (event) => { if (event.target.closest?.("#picture")) leave(); }, true);
    document.addEventListener("drop", (event) => { if (event.target.closest?.("#picture")) leave(); }, true);
    document.addEventListener("click", (event) => { if (event.target.closest?.("[role=tab]") && run) setTimeout(address, 200); });

    // Buttons, and what Gradio sends

    find(".cancel").addEventListener("click", async () => {
      const mine = run;
      mine.state = "stopping";
      progress();
      if ((await server.cancel({ run: mine.id })) !== undefined || run !== mine) return;
      mine.state = "running";
      progress();
      doing("The server did not answer: please cancel again.");
    });
    find(".take").addEventListener("click", (event) => {
      const kind = event.target.closest("button")?.dataset.take;
      if (kind) trigger("download", { run: run.id, kind, limits: shifted() });
    });
    watch("value", () => {
      const value = props.value;
      if (value?.refused) {
        find("[role=status]").textContent = value.refused;
        if (run) doing(value.refused);
        else say("That did not work", value.refused);
      } else if (value?.run && value.run !== run?.id) {
        if (run && !run.finished) server.cancel({ run: run.id }); // nobody watches it any more
        follow(value.run);
      }
    });

    // For tests: what is listed, as it is judged.
    diffad.batchState = () => ({ run, view, listed });

    const linked = linkedRun();
    if (linked) diffad.standing.then(() => follow(linked)); // its row is inspected as the address says
  }

  // Gradio makes a tab's parts when it is first looked at, so a link to a run opens the tab.
  const linkedRun = () => new URLSearchParams(location.search).get("batch");
  async function arrive() {
    while (!document.querySelector("#batch")) {
      tab("Batch");
      await pause(100);
    }
  }
  if (linkedRun()) arrive();

  diffad.batch = batch;
})();
