// The part on the page, the choices made about it, and what follows from both. The server sends an inspection once
// (cards.part); α, threshold, colours and which t take part act here. viewer.js, verdict.js, evidence.js and player.js
// draw; they register with `diffad.onResult`.
(() => {
  const diffad = (window.diffad ??= {});
  const { mean, pixelWeight, fuse, fromCodes, scorer, imageScore, thresholdFor, rateFor, rateBounds, judged, outlinedFrom, regions, gridMap, shrunk } = diffad.scores;
  const CELL = 192; // longest side of a map in the evidence sheet
  const INSPECTING = "Inspecting…";

  // threshold and look: limits of the person's own; null: by the shares of good parts, rate and lookRate
  const choices = { alpha: 0.5, rate: 0.01, threshold: null, lookRate: null, look: null, opacity: 0.7, colormap: "inferno", chosen: null, point: null };
  const listeners = [];
  let tell = () => {}; // tells Gradio that its limits and rates should follow
  let part = null;
  let result = null; // read by current() only
  let last = null; // model, category and timesteps of the last part that could be judged
  const own = {}; // limits of the person's own, each kept for its model and category
  const kind = ({ model, category }) => `${model}/${category}`;
  let stale = true; // whether something was chosen since it was judged
  let due = false;
  let turn = 0; // of the newest request for an inspection; the server answers the newest

  function decode(base64, Type) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    return new Type(bytes.buffer);
  }

  // The maps [2 · n_t, height, width], and one of the plain features where there is such, sent as 16-bit steps above each
  // map's lowest value; and the good parts' maps over cells.
  function unpack(value) {
    const { width, height, lowest, step, data } = value.maps;
    const steps = decode(data, Uint16Array);
    const size = width * height;
    const maps = lowest.map((low, k) => Float32Array.from(steps.subarray(k * size, (k + 1) * size), (s) => low + step[k] * s));
    const n = value.timesteps.length;
    const [pictures, , m] = value.good.shape;
    const cells = value.rule.cells ** 2;
    const good = fromCodes(decode(value.good.data, Uint8Array), value.rule);
    const row = (branch, picture, k) => {
      const at = ((picture * 2 + branch) * m + value.good.nearest[k]) * cells;
      return good.subarray(at, at + cells);
    };
    const plain = value.good.plain && fromCodes(decode(value.good.plain, Uint8Array), value.rule);
    const goodPlain = (picture) => plain && plain.subarray(picture * cells, (picture + 1) * cells);
    const small = maps.map((map) => gridMap(map, width, height, CELL));
    const branches = (rows) => ({ pixel: rows.slice(0, n), feature: rows.slice(n, 2 * n), plain: rows[2 * n] ?? null });
    return { ...value, width, height, n, ...branches(maps), pictures, row, goodPlain,
      small: { ...branches(small.map((s) => s.values)), width: small[0].width, height: small[0].height } };
  }

  // The means over the chosen t change only with them.
  let means = {};
  function meansOf(chosen) {
    const key = chosen.join();
    if (means.part !== part || means.key !== key) {
      const pick = (rows) => mean(chosen.map((k) => rows[k]));
      const goodPicks = (branch) => Array.from({ length: part.pictures }, (_, i) => mean(chosen.map((k) => part.row(branch, i, k))));
      means = { part, key, pixel: pick(part.pixel), feature: pick(part.feature), good: [goodPicks(0), goodPicks(1)] };
    }
    return means;
  }

  const weight = () => pixelWeight(choices.alpha, part.rule.pixel_trust);
  const fused = (pixel, feature, plain) => fuse(pixel, feature, weight(), plain, part.rule.plain_weight);

  // The look limit is at most the threshold.
  function limits(by = scoredBy()) {
    const threshold = choices.threshold ?? thresholdFor(by, choices.rate, part.chances);
    const look = choices.look ?? thresholdFor(by, choices.lookRate, part.chances);
    return { threshold, look: Math.min(look, threshold) };
  }

  // How the part is scored at this α and these t; a moved limit changes nothing about it.
  let scoring = {};
  function scoredBy() {
    const key = `${choices.alpha} ${choices.chosen.join()}`;
    if (scoring.part !== part || scoring.key !== key) {
      const { good } = meansOf(choices.chosen);
      const ranked = good[0].map((pixel, i) => fused(pixel, good[1][i], part.goodPlain(i)).sort().reverse());
      scoring = { part, key, by: scorer(ranked, part.rule, part.changed) };
    }
    return scoring.by;
  }

  function judge() {
    const { pixel, feature } = meansOf(choices.chosen);
    const map = fused(pixel, feature, part.plain);
    const by = scoredBy();
    const score = imageScore(map, part.width, part.windows, part.scored_size, by);
    const { threshold, look } = limits(by);
    const { verdict, mapLimit } = judged(score, threshold, look);
    const from = outlinedFrom(map, mapLimit, verdict);
    return {
      pixel, feature, plain: part.plain, fused: map, score, verdict, by, weight: weight(), threshold, look, mapLimit: from,
      rate: rateFor(by, threshold, part.chances), bounds: rateBounds(by, threshold, part.chances), lookRate: rateFor(by, look, part.chances),
      regions: verdict === "good" ? [] : regionsAbove(map, from, part),
    };
  }

  // As inspection.regions_above: in px of the picture, none below the part's `smallest`.
  function regionsAbove(fused, limit, { size, width, height, smallest }) {
    if (width * height > size[0] * size[1]) { // a picture smaller than the model's
      fused = shrunk(fused, width, height, ...size);
      [width, height] = size;
    }
    const [across, down] = [size[0] / width, size[1] / height];
    return regions(fused, width, height, limit, smallest / (across * down)).map((r) => ({
      box: [r.x * across, r.y * down, r.width * across, r.height * down].map(Math.round),
      area: Math.round(r.area * across * down), peak: r.peak, mean: r.mean,
    }));
  }

  // The judgement of the part under the choices, as they are at this moment.
  function current() {
    if (stale) result = part?.maps ? judge() : null;
    stale = false;
    return result;
  }

  // Draws once per screen refresh, however often a slider moves in between.
  function draw(fresh = false) {
    stale = true;
    draw.fresh ||= fresh;
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      const now = { part, result: current(), choices };
      for (const listener of listeners) listener({ ...now, fresh: draw.fresh });
      draw.fresh = false;
      remember();
      document.dispatchEvent(new CustomEvent("diffad:drawn"));
    });
  }

  // From a control: takes the choice and returns what the controls of the limits should say.
  function choose(change) {
    Object.assign(choices, change);
    if (last && ("threshold" in change || "look" in change)) own[kind(last)] = ownLimits();
    if (part?.maps) draw();
    else remember();
    return controls();
  }
  const ownLimits = ({ threshold = null, look = null } = choices) => ({ threshold, look });

  // The same from the page's own parts; Gradio's controls follow.
  function decide(change) {
    choose(change);
    tell();
  }

  // Parts of this kind from now on: what comes out of the batch is judged here as it was there.
  function judgeBy(row, { rate = choices.rate, lookRate = choices.lookRate, ...limits }) {
    own[kind(row)] = ownLimits(limits);
    Object.assign(choices, { rate, lookRate });
    if (last && kind(last) === kind(row)) Object.assign(choices, own[kind(row)]);
    decide({});
  }

  const rounded = (value) => Math.round(value * 100) / 100;

  // Threshold, its rate, look limit and its rate; a rate of 0 says that the limit is the person's own.
  function controls() {
    const now = part?.maps ? limits() : choices;
    const stand = (kind, rate) => [now[kind] === null ? null : rounded(now[kind]), choices[kind] === null ? choices[rate] : 0];
    return [...stand("threshold", "rate"), ...stand("look", "lookRate")];
  }

  function toggle(k) {
    const chosen = choices.chosen.includes(k) ? choices.chosen.filter((other) => other !== k) : [...choices.chosen, k].sort((a, b) => a - b);
    if (chosen.length) decide({ chosen });
  }

  // A new part, or a sentence in its place.
  function receive(value) {
    part = value?.maps ? unpack(value) : value || {};
    if (part.sentence && part.sentence !== INSPECTING) mark(null);
    if (part.maps) {
      const same = last && last.model === part.model && last.category === part.category;
      // What was chosen before the first part is about that one.
      if (last || kind(part) in own) Object.assign(choices, own[kind(part)] ?? ownLimits({}));
      own[kind(part)] = ownLimits();
      if (!same || last.timesteps.join() !== part.timesteps.join()) choices.chosen = part.timesteps.map((_, k) => k);
      last = { model: part.model, category: part.category, timesteps: part.timesteps };
      if (linked.off) {
        const kept = part.timesteps.map((_, k) => k).filter((k) => !linked.off.includes(part.timesteps[k]));
        if (kept.length) choices.chosen = kept;
        linked.off = null;
      }
      choices.point = strongest(fused(meansOf(choices.chosen).pixel, means.feature, part.plain), part);
      tell();
      for (const image of document.querySelectorAll("#picture img")) if (image.complete && !image.naturalWidth) substitute(image);
    }
    draw(true);
  }

  // Fractions of the picture's width and height where a map is highest.
  function strongest(map, { width, height }) {
    let at = 0;
    for (let i = 1; i < map.length; i++) if (map[i] > map[at]) at = i;
    return [((at % width) + 0.5) / width, (Math.floor(at / width) + 0.5) / height];
  }

  // The address: what differs from the usual choices, so that a link opens the page as it is now.

  const USUAL = { alpha: 0.5, rate: 0.01, "look-rate": null, opacity: 0.7, colormap: "inferno", draws: 1, tile: "auto", category: "auto" };
  const linked = Object.fromEntries(new URLSearchParams(location.search));
  linked.off = linked.off ? linked.off.split(",").map(Number) : null;
  let later = null;

  function remember() {
    clearTimeout(later);
    later = setTimeout(() => {
      if (!part?.maps && (!part?.sentence || part.sentence === INSPECTING)) return;
      const off = part.timesteps?.filter((_, k) => !choices.chosen.includes(k));
      const state = part.maps ? {
        ...part.link, alpha: choices.alpha, opacity: choices.opacity, colormap: choices.colormap, off: off.join(",") || null,
        rate: choices.threshold === null ? choices.rate : null, threshold: choices.threshold === null ? null : rounded(choices.threshold),
        "look-rate": choices.look === null ? choices.lookRate : null, look: choices.look === null ? null : rounded(choices.look),
      } : { sample: null };
      address(state);
    }, 300);
  }

  // Writes these into the address, and takes out what is as usual.
  function address(state) {
    const link = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(state)) {
      if (value === null || value === undefined || String(value) === String(USUAL[name])) link.delete(name);
      else link.set(name, value);
    }
    const text = link.toString();
    history.replaceState(history.state, "", text ? `?${text}` : location.pathname);
  }

  // What a batch takes over from here, in words.
  function setting(model, category, alpha, low, high, count) {
    const facts = [`model ${model}`, `category ${category === USUAL.category ? "recognised" : category}`, `α ${alpha}`,
      count > 1 ? `t ${low} to ${high}, ${count} levels` : `t ${low}`, `1 good part in ${Math.round(1 / choices.rate)} rejected`,
      `1 in ${Math.round(1 / choices.lookRate)} looked at`];
    return `<p class="quiet">Judged as Inspect is set: ${diffad.escape(facts.join(" · "))}.</p>`;
  }

  // On load: what the link asks for, for the server to check; null for a bare address.
  const link = () => (location.search.length > 1 ? Object.fromEntries(new URLSearchParams(location.search)) : null);

  // When the server has set the controls by the link.
  let arrived;
  const standing = new Promise((resolve) => { arrived = resolve; });
  function arrive(alpha, rate, opacity, colormap, threshold, lookRate, look) {
    Object.assign(choices, {
      alpha, opacity, colormap, rate: rate || USUAL.rate, threshold: rate === 0 ? threshold : null,
      lookRate: lookRate || USUAL["look-rate"], look: lookRate === 0 ? look : null,
    });
    const wanted = linked.sample && document.querySelector(`button[data-sample="${CSS.escape(linked.sample)}"]`);
    if (wanted) wanted.click();
    arrived();
  }

  // Samples and keys.

  function samples(element, props, watch, trigger) {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-sample]");
      if (!button) return;
      mark(button.dataset.sample);
      trigger("select", { sample: button.dataset.sample });
    });
  }

  const mark = (name) =>
    document.querySelectorAll("button[data-sample]").forEach((b) => {
      b.classList.toggle("on", b.dataset.sample === name);
      b.setAttribute("aria-pressed", b.dataset.sample === name);
    });

  // Through the batch if one is being walked (batch.js takes the event), else through the samples.
  function walk(by) {
    const event = new CustomEvent("diffad:walk", { detail: { by }, cancelable: true });
    if (!document.dispatchEvent(event)) return;
    const buttons = [...document.querySelectorAll("#samples button[data-sample]")];
    const now = buttons.findIndex((b) => b.classList.contains("on"));
    buttons[now < 0 ? (by > 0 ? 0 : buttons.length - 1) : (now + by + buttons.length) % buttons.length]?.click();
  }

  // Camera and clipboard are a secure page's; elsewhere Gradio's buttons for them end in an error.
  if (!isSecureContext) document.documentElement.classList.add("insecure");

  // Gradio opens the list of a dropdown that Tab only leaves.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Tab" && event.target.matches?.(".secondary-wrap input")) event.stopPropagation();
  }, true);

  const press = (selector) => () => document.querySelector(`${selector}:not(:disabled)`)?.click();
  const KEYS = {
    ArrowRight: () => walk(1), ArrowLeft: () => walk(-1), " ": press(".player:not([data-state=empty]) .play"),
    r: press("#repair"), d: press(".player .difference"), 0: () => diffad.zoomTo(null),
    "?": () => document.querySelector("#shortcuts").showModal(),
  };

  // Shortcuts hold on the Inspect tab, but for the keys of whatever has the focus; their list opens everywhere.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    if (!document.querySelector("#page")?.offsetParent && event.key !== "?") return;
    const on = (selector) => event.target.closest?.(selector);
    if (on("input:not([type=range]), textarea, select, [role=listbox], [contenteditable]")) return;
    if (/^(Arrow|Page|Home|End)/.test(event.key) && on("input, [role=slider], [role=tab]")) return;
    if (event.key === " " && on("button, a, input, [role=slider]")) return;
    const act = /^[1-9]$/.test(event.key) ? () => diffad.zoomTo(Number(event.key) - 1) : KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });

  // Gradio hands on whatever is typed and corrects the box afterwards. So it hears of numbers in the slider's range
  // only, and what is left in the box at the end is corrected before Gradio reads it. The range knows the last number.
  const typed = ({ target }) => (target.matches?.("#controls input[type=number]") ? target : null);
  document.addEventListener("input", (event) => {
    const box = typed(event);
    if (box && (box.value === "" || box.validity.rangeUnderflow || box.validity.rangeOverflow)) event.stopPropagation();
  }, true);
  document.addEventListener("blur", (event) => {
    const box = typed(event);
    if (!box) return;
    const last = box.closest(".block").querySelector("input[type=range]").value;
    const value = String(box.value === "" ? Number(last) : Math.min(Math.max(Number(box.value), box.min), box.max));
    if (value === box.value) return;
    box.value = value;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter") typed(event)?.blur();
  });

  // Gradio's sliders report their release to the pointer only; the arrow keys deserve it too.
  document.addEventListener("keyup", (event) => {
    const moves = /^(Arrow|Page|Home|End)/.test(event.key);
    if (moves && event.target.matches?.("#controls input[type=range]"))
      event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#keys-button")) document.querySelector("#shortcuts").showModal();
  });

  // Requests. An upload was asked for when it began, which may be long ago. Gradio tells that a picture was cleared
  // with the old path, so the click on its cross is what says so.
  let begun = 0; // the turn of an upload under way
  let cleared = false;
  for (const name of ["click", "change", "drop", "paste"])
    document.addEventListener(name, ({ target }) => {
      if (!target.closest?.("#picture")) return;
      cleared = name === "click" && !!target.closest(".icon-button-wrapper button");
      begun = name === "click" ? 0 : ++turn;
    }, true);
  const nextTurn = (picture, mine = ++turn) => {
    if (picture && !part?.maps) receive({ sentence: INSPECTING });
    return mine;
  };
  const uploaded = (file) => {
    if (cleared) file = null;
    const mine = nextTurn(file, (file && begun) || undefined);
    [begun, cleared] = [0, false];
    return [mine, file];
  };

  // A format that the browser cannot draw is shown as the server read it.
  function substitute(image) {
    const known = part?.maps && part.turn === turn;
    image.style.visibility = known ? "" : "hidden";
    if (known && image.src !== part.picture) image.src = part.picture;
  }
  document.addEventListener("error", ({ target }) => target.matches?.("#picture img") && substitute(target), true);
  document.addEventListener("load", ({ target }) => target.matches?.("#picture img") && (target.style.visibility = ""), true);

  // A picture that is pasted anywhere on the tab goes the way of a dropped one.
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (!file || !document.querySelector("#page")?.offsetParent) return;
    const files = new DataTransfer();
    files.items.add(file);
    const input = () => document.querySelector("#picture input[type=file]");
    if (!input()) document.querySelector("#picture .source-selection button").click(); // the clipboard's button hid it
    requestAnimationFrame(() => {
      input().files = files.files;
      input().dispatchEvent(new Event("change", { bubbles: true }));
    });
  });

  // A button at work looks it (page.css) and cannot be pressed again.
  const busy = (id, on) => document.getElementById(id)?.setAttribute("aria-busy", on);
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("button[aria-busy=true]")) event.stopImmediatePropagation();
  }, true);

  // Hands a file to the person.
  const save = (file) => Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name }).click();

  // For people: a score in three digits.
  const number = (value) => value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2).replace("-", "−");

  Object.assign(diffad, {
    choose, decide, controls, toggle, link, arrive, samples, mark, number, busy, save,
    nextTurn, uploaded, judgeBy, address, setting,
    standing, // resolves when the controls are as the address says
    // Whether nothing was asked for since this part was.
    newest: (part) => part.turn === turn,
    // What a download or a repair needs to know of the choices made here.
    choices: () => ({
      alpha: choices.alpha, opacity: choices.opacity, colormap: choices.colormap,
      timesteps: part?.maps ? choices.chosen.map((k) => part.timesteps[k]) : [],
      turn: part?.turn, own: choices.threshold !== null, rate: choices.rate, lookRate: choices.lookRate,
      ...(part?.maps ? limits() : { threshold: null, look: null }),
    }),
    // Values at a point (fractions of the picture), by branch and t.
    valuesAt: ([x, y]) => {
      const i = Math.min(part.height - 1, Math.floor(y * part.height)) * part.width + Math.min(part.width - 1, Math.floor(x * part.width));
      return { pixel: part.pixel.map((map) => map[i]), feature: part.feature.map((map) => map[i]), plain: part.plain ? part.plain[i] : null };
    },
    onResult: (listener) => listeners.push(listener),
    // The state, for tests.
    state: () => ({ part, result: current(), choices }),
    // Gradio's HTML component that receives the parts, and what the server says once: each verdict's word and mark, and
    // the usual share of good parts above the look limit.
    receiver: (props, watch, trigger) => {
      diffad.verdicts = props.verdicts;
      diffad.usualLook = choices.lookRate = USUAL["look-rate"] = props.look_rate;
      tell = () => trigger("select");
      watch("value", () => receive(props.value));
      receive(props.value);
    },
  });
})();
