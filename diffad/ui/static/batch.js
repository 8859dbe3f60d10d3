// The Batch tab: rows as they arrive, judged here in the browser by two limits, and the way from a row into Inspect. The
// server holds the run (batch.py); its id is in the address, so a reload finds it again. batch_chart.js draws the
// histogram, batch_table.js the rows, measured.js the comparison with labels; batch_corrections.js hears what people say.
(() => {
  const diffad = (window.diffad ??= {});
  const { chips, duration, element, number, plural, refresh } = diffad;
  const { thresholdFor, rateFor, judged } = diffad.scores;
  const RAREST = 1e-5; // share of good parts; smaller ones cannot be chosen
  // The names of each limit in the address.
  const NAMES = {
    threshold: { rate: "batch-rate", own: "batch-limits" },
    look: { rate: "batch-look-rate", own: "batch-look-limits" },
  };
  const KINDS = Object.keys(NAMES);

  const showTab = (name) => [...document.querySelectorAll("[role=tab]")].find((tab) => tab.textContent.trim() === name)?.click();
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const span = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);
  const isPossible = (rate) => rate >= RAREST && rate < 1;
  const isLabelled = (row) => !row.error && typeof row.bad === "boolean";

  function batch(root, props, watch, trigger, server) {
    const find = (selector) => root.querySelector(selector);
    const table = diffad.batchTable(root, { open, changed: paint, drawn: () => said.offer() });
    const said = diffad.batchCorrections(root, {
      now: () => ({ run, view, listed: table.listed() }), limits: () => changedLimits(), describe: (text) => describe(text),
      redraw: () => table.draw(run, view), server,
    });
    const chart = diffad.batchChart(find(".chart"), { limits: () => limitsOf(view.category), move: moveLimit });
    let run = null; // what is known of the batch: { id, rows, by, usual, … }, see news in batch.py
    let view = null; // how the person looks at it

    // A run from the address is shown with its limits in the address; a new run uses the rates of Inspect.
    function begin(id) {
      const address = new URLSearchParams(location.search);
      const { rate, lookRate } = diffad.choices();
      const saved = address.get("batch") === id ? address : new URLSearchParams({ "batch-rate": rate, "batch-look-rate": lookRate });
      const chosen = (kind) => {
        const share = Number(saved.get(NAMES[kind].rate));
        const own = [...new URLSearchParams(saved.get(NAMES[kind].own) ?? "")].map(([name, limit]) => [name, Number(limit)]);
        return { rate: isPossible(share) ? share : diffad.shares[kind].usual, own: Object.fromEntries(own.filter(([, limit]) => limit >= 0)) };
      };
      run = { id, rows: [], by: {}, usual: {}, measured: {}, total: 0, done: 0, state: "running", finished: false };
      // open: the row shown in Inspect; wanted: one to open as soon as it arrives. Each limit has a rate, and by category the
      // limits that the person set instead (`own`).
      view = {
        sort: "index", down: false, filter: "all", category: null, selected: null, open: null, wanted: parseInt(saved.get("batch-row")),
        threshold: chosen("threshold"), look: chosen("look"),
      };
      table.toTop();
    }

    // Updates from the server

    async function follow(id) {
      begin(id);
      const followed = run;
      let painted = null; // the state last shown
      updateAddress();
      paint();
      while (run === followed) {
        const news = await server.news({ run: id, have: run.rows.length });
        if (run !== followed) return;
        if (news === undefined) { // what Gradio returns if the answer was lost
          describe("The server does not answer; trying again.");
          await pause(2000);
          continue;
        }
        if (news === null) {
          run = null;
          updateAddress();
          showMessage("This batch is gone", "The server no longer has it, perhaps because it was restarted. Upload the pictures again.");
          return;
        }
        for (const row of news.rows) {
          row.recount = row.regions;
          row.countedAt = row.error ? 0 : judged(row.score, row.threshold, row.look_threshold).mapLimit;
        }
        run.rows.push(...news.rows);
        Object.assign(run, news, { rows: run.rows });
        if (news.rows.length || news.finished || run.state !== painted) paint();
        else progress();
        painted = run.state;
        if (run.rows[view.wanted]) open(view.wanted);
        if (news.finished && run.rows.length === news.done) return isChanged() && limitsChanged(); // counts regions again
        await pause(news.rows.length >= 100 ? 0 : 600);
      }
    }

    // The run, its limits, and while Inspect is looked at the open row.
    const updateAddress = () => diffad.address({
      batch: run?.id, "batch-row": run && !root.offsetParent ? view.open : null,
      ...Object.fromEntries(KINDS.flatMap((kind) => [
        [NAMES[kind].rate, run && view[kind].rate !== diffad.shares[kind].usual ? view[kind].rate : null],
        [NAMES[kind].own, (run && new URLSearchParams(view[kind].own).toString()) || null],
      ])),
    });

    // Limits and verdicts. A tiled picture's limits are higher than its category's (`beyond`).

    function limitsOf(category) {
      const limitOf = (kind) => view[kind].own[category] ??
        (view[kind].rate === diffad.shares[kind].usual ? run.usual[category][kind] : thresholdFor(run.by[category], view[kind].rate));
      const threshold = limitOf("threshold");
      return { threshold, look: Math.min(limitOf("look"), threshold) };
    }

    // By category the limits that differ from the usual ones: [threshold, look limit].
    const changedLimits = () => Object.fromEntries(Object.keys(run.by).map((name) => [name, limitsOf(name)])
      .filter(([name, limits]) => KINDS.some((kind) => limits[kind] !== run.usual[name][kind]))
      .map(([name, { threshold, look }]) => [name, [threshold, look]]));
    const isChanged = () => Object.keys(changedLimits()).length > 0;

    function judge() {
      const limits = Object.fromEntries(Object.keys(run.by).map((name) => [name, limitsOf(name)]));
      for (const row of run.rows) {
        if (row.error) row.verdict = "failed";
        else {
          row.limit = limits[row.category].threshold + row.beyond.threshold;
          row.look = Math.min(limits[row.category].look + row.beyond.look, row.limit);
          Object.assign(row, judged(row.score, row.limit, row.look));
        }
        // A part that is worth a look counts neither as missed nor as a false alarm.
        row.wrong = isLabelled(row) && row.verdict === (row.bad ? "good" : "anomalous");
      }
    }

    function moveLimit(kind, value) {
      if (!Number.isFinite(value)) return;
      view[kind].own[view.category] = Math.max(0, Math.round(1000 * value) / 1000);
      limitsChanged();
    }

    function moveRate(kind, rate) {
      if (!isPossible(rate)) return;
      view[kind] = { rate, own: {} };
      limitsChanged();
    }

    // The server recounts the regions when the limits have not changed for a moment; until then the old counts are grey.
    let recounting = 0; // number of the newest count; older ones are void
    let resting = null;
    let due = 0;
    function limitsChanged() {
      judge(); // at once; drawing waits for the next frame
      recounting++;
      due ||= requestAnimationFrame(() => { due = 0; if (run) paint(); });
      clearTimeout(resting);
      resting = setTimeout(recount, 350);
    }
    async function recount() {
      const [counted, turn] = [run, ++recounting];
      updateAddress();
      const counts = isChanged() ? await server.regions({ run: run.id, limits: changedLimits() }) : null;
      if (run !== counted || turn !== recounting || (isChanged() && !counts)) return;
      for (const row of run.rows) {
        row.recount = counts?.[row.index] ?? row.regions;
        row.countedAt = row.mapLimit;
      }
      paint();
    }

    // Everything shown follows from run and view

    function paint() {
      root.firstElementChild.dataset.state = run ? run.state : "empty";
      for (const section of [".batch-threshold", ".batch-rows"]) find(section).hidden = !run?.rows.length;
      if (!run) return;
      const names = Object.keys(run.by);
      if (!names.includes(view.category)) view.category = names[0] ?? null;
      judge();
      summary();
      progress();
      find(".batch-threshold").hidden = !names.length;
      measured(); // before the chart, whose width depends on it
      if (names.length) limitsSection(names);
      table.draw(run, view);
      strip();
    }

    function showMessage(title, facts = "") {
      paint();
      find(".batch-summary h2").textContent = title;
      find(".facts").textContent = facts;
      describe("");
      find(".progress").hidden = find(".cancel").hidden = find(".batch-note").hidden = true;
    }
    const describe = (text) => { find(".doing").textContent = text; };

    function summary() {
      const count = (test) => run.rows.filter(test).length;
      const ofVerdict = (verdict) => count((row) => row.verdict === verdict);
      const failed = ofVerdict("failed");
      const inspected = run.rows.length - failed;
      find(".batch-summary h2").textContent = inspected ? `${ofVerdict("anomalous")} of ${inspected} anomalous`
        : run.finished && failed === run.done ? "No picture was read" : "Reading the first picture";
      const facts = inspected ? [`${ofVerdict("look")} to look at`, `${ofVerdict("good")} good`] : [];
      if (failed) facts.push(`${failed} not read`);
      const defects = run.rows.filter((row) => isLabelled(row) && row.bad);
      const goods = run.rows.filter((row) => isLabelled(row) && !row.bad);
      if (defects.length) facts.push(`${defects.filter((row) => row.verdict === "anomalous").length} of ${plural(defects.length, "defect")} found`);
      if (goods.length) facts.push(`${goods.filter((row) => row.wrong).length} of ${goods.length} good rejected`);
      const strange = count((row) => row.fits === false);
      if (strange) facts.push(`${strange} unlike a good part`);
      const noted = count((row) => row.notes?.length);
      if (noted) facts.push(`${noted} with a note`);
      find(".facts").textContent = facts.join(" · ");
      const note = [run.note, run.not_kept && `${run.not_kept}.`].filter(Boolean).join(" ");
      find(".batch-note").hidden = !note;
      find(".batch-note").textContent = note;
    }

    function progress() {
      const { done, total, seconds, finished, state } = run;
      find(".batch-summary h2").ariaBusy = !finished; // read aloud only once it is final
      const bar = find(".progress");
      bar.hidden = finished;
      bar.setAttribute("aria-valuemax", total);
      bar.setAttribute("aria-valuenow", done);
      bar.firstElementChild.style.width = `${(100 * done) / Math.max(1, total)}%`;
      const cancel = find(".cancel");
      cancel.hidden = finished || state === "measuring";
      cancel.disabled = state === "stopping";
      const each = done ? ` · ${duration(seconds / done)} a picture` : "";
      const left = done > 1 ? ` · about ${span(((total - done) * seconds) / done)} left` : "";
      describe({
        running: `${done} of ${total}${left}${each} · model ${run.model}`,
        stopping: `Stopping after this picture · ${done} of ${total}`,
        measuring: "Comparing with the labels",
        done: `${plural(total, "picture")} in ${span(seconds)}${each} · model ${run.model}`,
        stopped: `Cancelled after ${done} of ${total} · model ${run.model}`,
        failed: `Failed after ${done} of ${total}: ${run.reason}.`,
      }[state]);
    }

    function measured() {
      const names = Object.keys(run.measured);
      find(".batch").classList.toggle("has-labels", names.length > 0);
      find(".batch-measured").hidden = !names.length;
      if (!names.length) return;
      const name = names.includes(view.category) ? view.category : names[0];
      const box = find(".numbers");
      refresh(box, `${run.id} ${name}`, () => { box.innerHTML = diffad.measured(name, run.measured[name]); });
    }

    // Scores and limits of one category

    function limitsSection(names) {
      const ofCategory = (name) => run.rows.filter((row) => row.category === name);
      const entries = names.map((name) => [name, name, ofCategory(name).length]);
      chips(find(".categories"), entries, view.category, (name) => { view.category = name; paint(); });
      for (const kind of KINDS) limitInputs(kind, names);
      find(".usual").hidden = !isChanged();
      chart.draw(ofCategory(view.category), run.by[view.category].good, run.usual[view.category]);
    }

    function limitInputs(kind, names) {
      const [box, limit] = [find(`.limit-of[data-limit=${kind}]`), limitsOf(view.category)[kind]];
      const [score, share] = [box.querySelector(".score"), box.querySelector(".rate")];
      const rate = rateFor(run.by[view.category], limit);
      const put = (input, text) => { if (document.activeElement !== input) input.value = text; };
      put(score, limit.toFixed(2));
      put(share, String(Math.round(1 / rate)));
      share.parentElement.hidden = !(rate >= RAREST && rate < 0.5) && document.activeElement !== share;
      const alike = names.every((name) => Math.abs(Math.log(rateFor(run.by[name], limitsOf(name)[kind]) / rate)) < 0.01);
      const does = kind === "look" ? "is exceeded by" : "rejects";
      box.querySelector(".beyond").textContent = rate >= 0.5 ? `${does} ${Math.round(100 * rate)} % of the good parts`
        : rate < RAREST ? `${does} fewer than 1 good part in 100 000`
        : names.length < 2 ? "" : alike ? "in every category" : `of ${view.category}; the others keep theirs`;
    }

    for (const box of root.querySelectorAll(".limit-of")) {
      const kind = box.dataset.limit;
      box.querySelector(".score").addEventListener("input", (event) => moveLimit(kind, parseFloat(event.target.value)));
      box.querySelector(".rate").addEventListener("input", (event) => moveRate(kind, 1 / parseFloat(event.target.value)));
      box.addEventListener("change", () => { document.activeElement.blur?.(); paint(); });
    }
    find(".usual").addEventListener("click", () => KINDS.forEach((kind) => moveRate(kind, diffad.shares[kind].usual)));
    new ResizeObserver(() => { if (run?.rows.length && root.offsetParent) paint(); }).observe(find(".chart"));

    // From a row into Inspect, and from there to the next row

    function open(index) {
      const row = run.rows[index];
      if (row.error) return;
      Object.assign(view, { open: index, selected: index, wanted: null });
      // Inspect offers only some rates; a limit with any other rate is passed to it as a score.
      const byRate = (kind) => !(row.category in view[kind].own) && diffad.shares[kind].offered.includes(view[kind].rate);
      diffad.judgeBy({ ...row, model: run.model }, {
        ...(byRate("threshold") ? { rate: view.threshold.rate } : { threshold: row.limit }),
        ...(byRate("look") ? { lookRate: view.look.rate } : { look: row.look }),
      });
      showTab("Inspect");
      diffad.mark(null);
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
      showTab("Batch");
      requestAnimationFrame(() => table.focus(view.open));
    });

    const readable = () => table.listed().filter((row) => !row.error);
    function strip() {
      const page = document.querySelector("#page");
      if (page && bar.nextElementSibling !== page) page.before(bar);
      bar.hidden = !run || view.open === null;
      if (bar.hidden) return;
      const row = run.rows[view.open];
      const [place, count] = [readable().indexOf(row), readable().length];
      const limits = row.verdict === "look" ? `between ${number(row.look)} and ${number(row.limit)}`
        : `against ${number(row.verdict === "good" ? row.look : row.limit)}`;
      const where = bar.querySelector(".where");
      where.dataset.verdict = row.verdict;
      where.replaceChildren(
        element("b", {}, row.name.split("/").pop()),
        element("span", { className: "quiet" }, ` ${place + 1} of ${count} in the batch · `),
        element("span", { className: "judged" }, `batch verdict: ${diffad.verdicts[row.verdict][0].toLowerCase()}, score ${number(row.score)} ${limits}`),
      );
      bar.querySelector(".before").disabled = place <= 0;
      bar.querySelector(".after").disabled = place >= count - 1;
    }
    function walk(by) {
      const next = readable()[readable().indexOf(run.rows[view.open]) + by];
      if (next) open(next.index);
    }
    // While a row is open, the arrow keys of Inspect lead to its neighbours. Another picture ends that.
    document.addEventListener("diffad:walk", (event) => {
      if (!run || view.open === null) return;
      event.preventDefault();
      walk(event.detail.by);
    });
    const leave = () => { if (run && view.open !== null) { view.open = null; strip(); } };
    document.addEventListener("click", (event) => { if (event.isTrusted && event.target.closest?.("#samples button")) leave(); }, true);
    for (const name of ["change", "drop"])
      document.addEventListener(name, (event) => { if (event.target.closest?.("#picture")) leave(); }, true);
    document.addEventListener("click", (event) => { if (event.target.closest?.("[role=tab]") && run) setTimeout(updateAddress, 200); });

    // Buttons, and what Gradio sends

    find(".cancel").addEventListener("click", async () => {
      const cancelled = run;
      cancelled.state = "stopping";
      progress();
      if ((await server.cancel({ run: cancelled.id })) !== undefined || run !== cancelled) return;
      cancelled.state = "running";
      progress();
      describe("The server did not answer: please cancel again.");
    });
    find(".take").addEventListener("click", (event) => {
      const kind = event.target.closest("button")?.dataset.take;
      if (kind) trigger("download", { run: run.id, kind, limits: changedLimits() });
    });
    watch("value", () => {
      const { value } = props;
      if (value?.refused) {
        find("[role=status]").textContent = value.refused;
        if (run) describe(value.refused);
        else showMessage("The batch could not start", value.refused);
      } else if (value?.run && value.run !== run?.id) {
        if (run && !run.finished) server.cancel({ run: run.id }); // nobody looks at it any more
        follow(value.run);
      }
    });

    // For tests: the rows as they are listed and judged.
    diffad.batchState = () => ({ run, view, listed: table.listed() });

    const linked = linkedRun();
    if (linked) diffad.ready.then(() => follow(linked)); // Inspect's settings come from the address first
  }

  // Gradio creates a tab's components when it is first shown, so an address with a run opens the tab.
  const linkedRun = () => new URLSearchParams(location.search).get("batch");
  async function arrive() {
    while (!document.querySelector("#batch")) {
      showTab("Batch");
      await pause(100);
    }
  }
  if (linkedRun()) arrive();

  diffad.batch = batch;
})();
