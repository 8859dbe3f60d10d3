// One inspection of the history: picture under its map, verdict, what people said and drew, settings.
(() => {
  const diffad = (window.diffad ??= {});
  const { element, number, plural } = diffad;
  const STAMP = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const stamp = (seconds) => STAMP.format(new Date(1000 * seconds));

  // The map in σ (history_answers.py).
  function unpacked({ lowest, step, data }) {
    const text = atob(data);
    return Float32Array.from({ length: text.length }, (_, i) => lowest + step * text.charCodeAt(i));
  }

  // ask(question, id, more): asks the server about the inspection shown and shows the answer. act: what the buttons below do.
  function historyDetail(root, { ask, act }) {
    const find = (selector) => root.querySelector(selector);
    const heat = find(".heat");
    let now = null; // what is shown
    const buttons = diffad.correctionButtons(root, (correction) => ask("correct", now.id, { correction }));
    const tools = Object.fromEntries(["draw", "brush", "width", "erase", "clear", "save"].map((name) => [name, find(`.${name}`)]));
    const drawing = diffad.brush(find(".drawn"), tools, (mask) => {
      if (!mask) return act.complain("Draw where the defect is, then press Save.");
      // Somebody who draws a defect says that there is one.
      const confirmed = now.verdict === "anomalous" && now.correction !== "good";
      const correction = ["right", "defective"].includes(now.correction) ? now.correction : confirmed ? "right" : "defective";
      ask("correct", now.id, { correction, mask });
    });

    function paintHeat() {
      const { map, top, threshold, verdict, look_threshold: look } = now;
      heat.hidden = !map;
      if (!map) return;
      const values = unpacked(map);
      const limit = verdict === "look" ? look : threshold;
      const highest = values.reduce((a, b) => Math.max(a, b), -Infinity);
      const from = verdict === "good" || highest > limit ? limit : highest / 2; // as map_limit_for in inspection.py
      diffad.paint(heat, values, map.width, map.height, top, "inferno", diffad.fading(from, Number(find(".opacity").value)));
    }

    function show(detail, may) {
      now = detail;
      find(".none").hidden = !!now;
      find(".chosen").hidden = !now;
      if (!now) return buttons.show(null);
      const name = now.picture.split("/").pop();
      find("h3").textContent = name;
      find("h3").title = now.picture;
      find("img").src = now.uri;
      find(".plate-of-history").style.setProperty("--aspect", now.size[0] / now.size[1]);
      drawing.show(now.size, now.mask);
      paintHeat();
      const [word, mark] = diffad.verdicts[now.verdict];
      find(".chosen").dataset.verdict = now.verdict;
      find("h2").replaceChildren(element("i", { ariaHidden: "true" }, mark), ` ${word}`);
      find(".reading").textContent = [`score ${number(now.score)}`, `look limit ${number(now.look_threshold)}`, `threshold ${number(now.threshold)}`,
        ...(now.regions ? [plural(now.regions, "region")] : [])].join(" · ");
      find(".notes").replaceChildren(...now.notes.map((note) => element("p", { className: "note" }, note)));
      const facts = [["Inspected", stamp(now.time) + (now.who ? ` by ${now.who}` : "")], ...now.facts];
      find(".facts-of-history").replaceChildren(...facts.flatMap(([title, text]) => [element("dt", {}, title), element("dd", {}, text)]));
      find(".events").replaceChildren(...now.events.map(({ time, who, text }) =>
        element("li", {}, element("span", { className: "quiet" }, `${stamp(time)}${who ? ` · ${who}` : ""} `), text)));
      buttons.show({ verdict: now.verdict, correction: now.correction, may: may.correct });
      find(".draw").hidden = !may.correct;
      find(".undo").hidden = !may.correct || !now.events.length;
      find(".delete").hidden = !may.delete;
      for (const button of root.querySelectorAll(".chosen .take button")) button.disabled = false;
      find(".reopen").disabled = !now.served;
      find(".reopen").title = now.served ? "" : `The model ${now.model ?? ""} is not served now.`;
    }

    // Another one is on its way: what is pressed now must not count for this one.
    function wait() {
      buttons.show(null);
      for (const button of root.querySelectorAll(".chosen .take button")) button.disabled = true;
    }

    find(".opacity").addEventListener("input", () => now && paintHeat());
    find(".close").addEventListener("click", () => act.close());
    find(".reopen").addEventListener("click", () => act.reopen(now.id));
    find(".undo").addEventListener("click", () => ask("undo", now.id));
    find(".delete").addEventListener("click", () => act.remove([now.id]));
    return { show, wait, shown: () => now };
  }

  Object.assign(diffad, { historyDetail, stamp });
})();
