// The evidence: a map of each branch and noise level, their means, both branches weighed by α, the values at a point, and
// each map enlarged beside the picture.
(() => {
  const diffad = (window.diffad ??= {});
  const { clamp, number } = diffad;
  const RAISED = 0.6; // of the threshold; above it a place is not called calm
  const ROWS = [
    { kind: "pixel", title: "Pixels", text: () => "how it looks" },
    { kind: "feature", title: "Features", text: () => "what it means" },
    { kind: "plain", title: "Plain", text: () => "without the network" },
    { kind: "both", title: "Together", text: (alpha, weight, plain) => `α = ${alpha.toFixed(2)}: ${weightsInWords(weight, plain)}` },
  ];
  // Only categories that the network was not trained on are judged by the plain features as well.
  const rowsOf = (part) => ROWS.filter(({ kind }) => kind !== "plain" || part.plain);

  // As weights_in_words in fusion.py. plain: the plain features' share.
  function weightsInWords(weight, plain) {
    const [pixel, feature, rest] = [weight * (1 - plain), (1 - weight) * (1 - plain), plain].map((share) => Number((100 * share).toFixed(1)));
    return `pixels ${pixel}\u00a0%, features ${feature}\u00a0%${plain ? `, plain features ${rest}\u00a0%` : ""}`;
  }

  // One cell's values, at full resolution or at the sheet's; column n is the mean over the chosen timesteps.
  function mapOf({ part, result, choices }, kind, column, small = false) {
    const from = small ? part.small : part;
    const pick = (branch) => {
      if (column < part.n) return from[branch][column];
      if (!small || from.width === part.width) return result[branch];
      return diffad.scores.mean(choices.chosen.map((k) => from[branch][k]));
    };
    if (kind === "plain") return from.plain;
    return kind === "both" ? diffad.scores.fuse(pick("pixel"), pick("feature"), result.weight, from.plain) : pick(kind);
  }

  const nameOf = (part, row, column) => {
    if (row.kind === "plain") return "Plain features";
    if (column === part.n) return row.kind === "both" ? "Anomaly map" : `${row.title}, mean`;
    return `${row.title} at t = ${part.timesteps[column]}`;
  };

  function evidence(element) {
    const slot = element.querySelector(".sheet-slot");
    const waiting = slot.innerHTML;
    let now = null;
    let drawn = {}; // what the pixel and feature rows were drawn with

    function build() {
      const { part } = now;
      const heads = part.timesteps.map((t, k) =>
        `<button class="t-head" data-k="${k}" data-t="${t}" title="Take t = ${t} in, or leave it out">${part.n < 7 ? "t = " : ""}${t}</button>`);
      const row = ({ kind, title }, i) => `<div class="row-head"><b>${title}</b><span></span></div>` +
        Array.from({ length: part.n + 1 }, (_, k) => {
          if (kind === "plain" && k < part.n) return "<span></span>"; // it does not depend on the noise level
          const place = k === part.n ? (kind === "both" ? "fused" : "mean") : "";
          return `<button class="cell ${kind} ${place}" data-row="${i}" data-k="${k}" aria-label="${nameOf(part, rowsOf(part)[i], k)}, enlarge"><canvas></canvas></button>`;
        }).join("");
      slot.innerHTML = `<div class="sheet" style="--columns:${part.n + 1};--aspect:${part.size[0] / part.size[1]}"><span></span>${heads.join("")}<span class="t-head mean">mean</span>` +
        `${rowsOf(part).map(row).join("")}<span class="corner">anomaly map</span></div>`;
    }

    diffad.onResult((next) => {
      const before = now;
      now = next;
      const { part, result, choices, fresh } = now;
      if (!result) {
        slot.innerHTML = waiting;
        return;
      }
      if (fresh || !before?.result) build();
      slot.querySelectorAll("button.t-head").forEach((head) => head.setAttribute("aria-pressed", choices.chosen.includes(Number(head.dataset.k))));
      slot.querySelectorAll(".row-head span").forEach((text, i) =>
        (text.innerHTML = rowsOf(part)[i].text(choices.alpha, result.weight, part.plain ? diffad.scores.plainWeight() : 0)));
      const look = { part, colormap: choices.colormap, chosen: choices.chosen.join() };
      slot.querySelectorAll(".cell").forEach((cell) => {
        const [row, k] = [rowsOf(part)[cell.dataset.row], Number(cell.dataset.k)];
        cell.classList.toggle("out", k < part.n && !choices.chosen.includes(k));
        const same = drawn.part === part && drawn.colormap === look.colormap && !fresh;
        if (same && row.kind !== "both" && (k < part.n || drawn.chosen === look.chosen)) return;
        const { width, height } = part.small;
        diffad.paint(cell.firstElementChild, mapOf(now, row.kind, k, true), width, height, part.top, choices.colormap);
      });
      drawn = look;
      mark(choices.point);
    });

    // Marks the point in every cell.
    function mark(point) {
      const style = element.closest("#evidence-card").style;
      style.setProperty("--x", point[0]);
      style.setProperty("--y", point[1]);
    }

    slot.addEventListener("click", (event) => {
      const head = event.target.closest("button.t-head");
      if (head) return diffad.toggle(Number(head.dataset.k));
      const cell = event.target.closest(".cell");
      if (!cell) return;
      if (event.detail) diffad.decide({ point: under(event, cell) }); // not from the keyboard
      enlarge(now, Number(cell.dataset.row), Number(cell.dataset.k));
    });
    slot.addEventListener("pointermove", (event) => {
      const cell = event.target.closest(".cell");
      diffad.look(cell ? under(event, cell) : null);
    });
    slot.addEventListener("pointerleave", () => diffad.look(null));
    diffad.onResult((next) => dialog().open && show(next));
  }

  // The pointer's place as fractions of an element's width and height.
  function under(event, element) {
    const box = element.getBoundingClientRect();
    return [clamp((event.clientX - box.left) / box.width, 0, 0.9999), clamp((event.clientY - box.top) / box.height, 0, 0.9999)];
  }

  // One map enlarged beside the picture; the arrow keys move through the sheet.
  const dialog = () => document.querySelector("#enlarged");
  let at = { row: 0, column: 0, point: null };

  function enlarge(now, row, column) {
    at = { row, column, point: null };
    const box = dialog();
    if (!box.dataset.ready) wire(box);
    box.showModal();
    show(now);
  }

  function wire(box) {
    box.dataset.ready = "yes";
    const state = () => diffad.state();
    box.addEventListener("keydown", (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
      if (!down && !right) return;
      event.preventDefault();
      const [columns, rows] = [state().part.n + 1, rowsOf(state().part).length];
      at = { ...at, row: (at.row + down + rows) % rows, column: (at.column + right + columns) % columns };
      show(state());
    });
    for (const name of ["large-map", "large-picture"]) {
      const plate = box.querySelector(`.${name}`);
      plate.addEventListener("pointermove", (event) => { at.point = under(event, plate); show(state()); });
      plate.addEventListener("pointerleave", () => { at.point = null; show(state()); });
      plate.addEventListener("click", (event) => diffad.decide({ point: under(event, plate) }));
    }
    box.addEventListener("click", (event) => (event.target === box || event.target.closest(".close")) && box.close());
    for (const [name, by] of [["previous", -1], ["next", 1]])
      box.querySelector(`.${name}`).addEventListener("click", () => {
        const [columns, rows] = [state().part.n + 1, rowsOf(state().part).length];
        const index = (at.row * columns + at.column + by + columns * rows) % (columns * rows);
        at = { ...at, row: Math.floor(index / columns), column: index % columns };
        show(state());
      });
  }

  function show(now) {
    const { part, choices } = now;
    const box = dialog();
    if (!now.result) return box.close();
    const row = rowsOf(part)[Math.min(at.row, rowsOf(part).length - 1)];
    const column = Math.min(at.column, part.n);
    const find = (name) => box.querySelector(name);
    const values = mapOf(now, row.kind, column);
    const [x, y] = at.point || choices.point;
    const value = values[Math.floor(y * part.height) * part.width + Math.floor(x * part.width)];
    find("h3").textContent = nameOf(part, row, column);
    find(".value").innerHTML = `at ${Math.floor(x * part.size[0])}, ${Math.floor(y * part.size[1])}: <b>${number(value)} σ</b>`;
    diffad.paint(find("canvas"), values, part.width, part.height, part.top, choices.colormap);
    const picture = find(".large-picture img");
    if (picture.getAttribute("src") !== part.picture) picture.src = part.picture;
    box.style.setProperty("--aspect", part.size[0] / part.size[1]);
    box.style.setProperty("--x", x);
    box.style.setProperty("--y", y);
    find(".large-profile").innerHTML = explained(now, [x, y]);
  }

  // The values at a point, as a sentence and as curves against t: at the pointer, else at the chosen point.
  function probe(element) {
    const slot = element.querySelector(".probe-slot");
    let now = null;
    const say = (point) => {
      slot.innerHTML = now?.result ? explained(now, point) : "";
    };
    diffad.onResult((next) => {
      now = next;
      say(next.choices.point);
    });
    diffad.look = (point) => now?.result && say(point || now.choices.point);
  }

  function explained({ part, result }, point) {
    const values = diffad.valuesAt(point);
    const mean = (rows) => rows.reduce((sum, v) => sum + v, 0) / rows.length;
    const [pixel, feature, limit] = [mean(values.pixel), mean(values.feature), result.threshold];
    const calm = Math.max(pixel, feature) < limit - (1 - RAISED) * Math.abs(limit);
    const reading = {
      truetrue: "Pixels and features both see it.",
      truefalse: "Pixels see it, features hardly do: surface or colour differs.",
      falsetrue: "Features see it, pixels hardly do: something usual in an unusual place.",
      falsefalse: calm ? "Both are calm, as on a good part." : "Raised, but below the threshold.",
    }[`${pixel > limit}${feature > limit}`];
    const [x, y] = [Math.floor(point[0] * part.size[0]), Math.floor(point[1] * part.size[1])];
    return `<div class="probe"><p>At (${x}, ${y}): ${say("features", part.timesteps, values.feature)}, ` +
      `${say("pixels", part.timesteps, values.pixel)}${values.plain === null ? "" : `, plain features ${number(values.plain)} σ`}. ${reading}</p>${profile(part, values, result.threshold)}</div>`;
  }

  // One branch's values in words: the mean where they are alike, else the highest and its t.
  function say(name, timesteps, values) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (values.length === 1) return `${name} ${number(values[0])} σ`;
    if (high - low < Math.max(0.5, 0.25 * Math.abs(high)))
      return `${name} ${number(values.reduce((sum, v) => sum + v, 0) / values.length)} σ at every noise level`;
    return `${name} ${number(high)} σ at t = ${timesteps[values.indexOf(high)]} (lowest ${number(low)})`;
  }

  function profile({ timesteps }, { pixel, feature }, limit) {
    const [width, height] = [240, 76];
    const top = 1.1 * Math.max(...pixel, ...feature, limit, 1e-6);
    const [first, last] = [timesteps[0], timesteps[timesteps.length - 1]];
    const x = (t) => 34 + (width - 102) * (last > first ? (t - first) / (last - first) : 0.5);
    const y = (value) => height - 16 - ((height - 26) * Math.max(value, 0)) / top;
    const curve = (kind, values) => {
      const points = values.map((value, i) => [x(timesteps[i]).toFixed(1), y(value).toFixed(1)]);
      return `<g class="${kind}"><polyline points="${points.map((p) => p.join()).join(" ")}"/>` +
        `${points.map(([px, py]) => `<circle cx="${px}" cy="${py}" r="2.2"/>`).join("")}</g>`;
    };
    let [pixelY, featureY] = [y(pixel[pixel.length - 1]), y(feature[feature.length - 1])];
    if (Math.abs(pixelY - featureY) < 12) { // keeps the two names apart
      const [middle, sign] = [(pixelY + featureY) / 2, pixelY >= featureY ? 1 : -1];
      [pixelY, featureY] = [middle + 6 * sign, middle - 6 * sign];
    }
    const lowest = height - 18; // and above the axis
    if (Math.max(pixelY, featureY) > lowest) {
      const by = Math.max(pixelY, featureY) - lowest;
      [pixelY, featureY] = [pixelY - by, featureY - by];
    }
    const right = width - 60; // room for the longer name
    return `<svg class="profile" viewBox="0 0 ${width} ${height}" role="img" aria-label="Scores at this point against the noise level">
      <line class="limit" x1="26" x2="${right}" y1="${y(limit)}" y2="${y(limit)}"/>
      <line class="axis" x1="26" x2="${right}" y1="${height - 15}" y2="${height - 15}"/>
      ${curve("pixel", pixel)}${curve("feature", feature)}
      <text class="pixel" x="${right + 6}" y="${pixelY + 3}">pixels</text><text class="feature" x="${right + 6}" y="${featureY + 3}">features</text>
      <text class="quiet" x="34" y="${height - 3}" text-anchor="middle">${first}</text>
      ${last > first ? `<text class="quiet" x="${right - 6}" y="${height - 3}" text-anchor="middle">t = ${last}</text>` : ""}
      <text class="quiet" x="0" y="11">${Math.ceil(top)} σ</text></svg>`;
  }

  // Up to six round numbers from 0 to top.
  function round(top) {
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((each) => top / each < 6) ?? top;
    return Array.from({ length: Math.floor(top / step) + 1 }, (_, i) => i * step);
  }

  // The colour scale of all maps on the page, with the limits on it.
  function scale(element) {
    const slot = element.querySelector(".scale-slot");
    diffad.onResult(({ part, result, choices }) => {
      slot.hidden = !result;
      if (!result) return;
      const { top } = part;
      const ramp = Float32Array.from({ length: 256 }, (_, i) => (top * (255 - i)) / 255);
      const canvas = slot.querySelector("canvas");
      canvas.setAttribute("aria-label", `Colour scale from good, 0 σ, to ${top.toFixed(0)} σ`);
      diffad.paint(canvas, ramp, 1, 256, top, choices.colormap);
      for (const [mark, name, limit] of [["i", "threshold", result.threshold], ["i.look", "look limit", result.look]]) {
        slot.querySelector(mark).style.bottom = `${100 * clamp(limit / top, 0, 1)}%`;
        slot.querySelector(mark).title = `${name} ${number(limit)}`;
      }
      const ticks = round(top);
      slot.querySelector("p").innerHTML = ticks.map((tick, i) =>
        `<span style="bottom:${(100 * tick) / top}%">${tick || "good"}${i === ticks.length - 1 ? " σ" : ""}</span>`).join("");
    });
  }

  Object.assign(diffad, { evidence, probe, scale });
})();
