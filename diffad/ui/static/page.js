// The part on the page, the settings, and the resulting verdict. The server sends an inspection once (part in cards.py);
// α, limits, colours and the chosen timesteps are applied here. viewer.js, verdict.js,
// evidence.js and player.js draw: they register with `diffad.onResult`. page_input.js handles keys and uploads.
(() => {
  const diffad = (window.diffad ??= {});
  const {
    learnRule, mean, pixelWeight, fuse, fromCodes, scorer, imageScore, thresholdFor, rateFor, rateBounds, judged, outlinedFrom,
    regions, gridMap, shrunk,
  } = diffad.scores;
  const CELL = 192; // longest side of a map in the evidence sheet
  const INSPECTING = "Inspecting…";

  // threshold, look: limits that the person set; null: they follow from rate and lookRate, shares of good parts
  const choices = { alpha: 0.5, rate: null, threshold: null, lookRate: null, look: null, opacity: 0.7, colormap: "inferno", chosen: null, point: null };
  const listeners = [];
  let updateControls = () => {}; // has Gradio's controls show the limits and rates
  let part = null;
  let result = null; // read by current() only
  let last = null; // model, category and timesteps of the last part
  const own = {}; // limits that the person set, by model and category
  const kind = ({ model, category }) => `${model}/${category}`;
  let stale = true; // a choice has changed since the result was computed
  let due = false;

  function decode(base64, Type) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    return new Type(bytes.buffer);
  }

  // Decodes the part's maps and the good parts' maps over cells (see part in cards.py).
  function unpack(value) {
    const { width, height, lowest, step, data } = value.maps;
    const steps = decode(data, Uint16Array);
    const size = width * height;
    const maps = lowest.map((low, k) => Float32Array.from(steps.subarray(k * size, (k + 1) * size), (s) => low + step[k] * s));
    const n = value.timesteps.length;
    const [pictures, , m, side] = value.good.shape;
    const cells = side ** 2;
    const good = fromCodes(decode(value.good.data, Uint8Array));
    const row = (branch, picture, k) => {
      const at = ((picture * 2 + branch) * m + value.good.nearest[k]) * cells;
      return good.subarray(at, at + cells);
    };
    const plain = value.good.plain && fromCodes(decode(value.good.plain, Uint8Array));
    const goodPlain = (picture) => plain && plain.subarray(picture * cells, (picture + 1) * cells);
    const small = maps.map((map) => gridMap(map, width, height, CELL));
    const branches = (rows) => ({ pixel: rows.slice(0, n), feature: rows.slice(n, 2 * n), plain: rows[2 * n] ?? null });
    return { ...value, width, height, n, ...branches(maps), pictures, row, goodPlain,
      small: { ...branches(small.map((s) => s.values)), width: small[0].width, height: small[0].height } };
  }

  // Means over the chosen timesteps, computed again only when these change.
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

  const weight = () => pixelWeight(choices.alpha);
  const fused = (pixel, feature, plain) => fuse(pixel, feature, weight(), plain);

  // The look limit is at most the threshold.
  function limits(by = scoredBy()) {
    const threshold = choices.threshold ?? thresholdFor(by, choices.rate, part.chances);
    const look = choices.look ?? thresholdFor(by, choices.lookRate, part.chances);
    return { threshold, look: Math.min(look, threshold) };
  }

  // How maps are scored at this α and these timesteps, whatever the limits.
  let scoring = {};
  function scoredBy() {
    const key = `${choices.alpha} ${choices.chosen.join()}`;
    if (scoring.part !== part || scoring.key !== key) {
      const { good } = meansOf(choices.chosen);
      const ranked = good[0].map((pixel, i) => fused(pixel, good[1][i], part.goodPlain(i)).sort().reverse());
      scoring = { part, key, by: scorer(ranked, part.changed) };
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

  // As regions_above in inspection.py: in px of the picture, none smaller than the part's `smallest`.
  function regionsAbove(fused, limit, { size, width, height, smallest }) {
    if (width * height > size[0] * size[1]) { // the picture is smaller than the model's
      fused = shrunk(fused, width, height, ...size);
      [width, height] = size;
    }
    const [across, down] = [size[0] / width, size[1] / height];
    return regions(fused, width, height, limit, smallest / (across * down)).map((r) => ({
      box: [r.x * across, r.y * down, r.width * across, r.height * down].map(Math.round),
      area: Math.round(r.area * across * down), peak: r.peak, mean: r.mean,
    }));
  }

  // The result of the part under the present choices.
  function current() {
    if (stale) result = part?.maps ? judge() : null;
    stale = false;
    return result;
  }

  // Draws once per screen refresh, however often a slider moves in between. fresh: the part is a new one.
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

  // Applies a setting from one of Gradio's controls; returns the new values of the limits' controls.
  function choose(change) {
    Object.assign(choices, change);
    if (last && ("threshold" in change || "look" in change)) own[kind(last)] = ownLimits();
    if (part?.maps) draw();
    else remember();
    return controls();
  }
  const ownLimits = ({ threshold = null, look = null } = choices) => ({ threshold, look });

  // Applies a setting from the page's own elements and updates Gradio's controls.
  function decide(change) {
    choose(change);
    updateControls();
  }

  // Judges parts of a batch row's model and category by the batch's limits from now on.
  function judgeBy(row, { rate = choices.rate, lookRate = choices.lookRate, ...limits }) {
    own[kind(row)] = ownLimits(limits);
    Object.assign(choices, { rate, lookRate });
    if (last && kind(last) === kind(row)) Object.assign(choices, own[kind(row)]);
    decide({});
  }

  const rounded = (value) => Math.round(value * 100) / 100;

  // Threshold, its rate, look limit and its rate; a rate of 0 means that the person set the limit.
  function controls() {
    const now = part?.maps ? limits() : choices;
    const pair = (kind, rate) => [now[kind] === null ? null : rounded(now[kind]), choices[kind] === null ? choices[rate] : 0];
    return [...pair("threshold", "rate"), ...pair("look", "lookRate")];
  }

  function toggle(k) {
    const chosen = choices.chosen.includes(k) ? choices.chosen.filter((other) => other !== k) : [...choices.chosen, k].sort((a, b) => a - b);
    if (chosen.length) decide({ chosen });
  }

  // Shows a new part, or a sentence instead of one.
  function receive(value) {
    part = value?.maps ? unpack(value) : value || {};
    if (part.sentence && part.sentence !== INSPECTING) diffad.mark(null);
    if (part.maps) {
      const same = last && last.model === part.model && last.category === part.category;
      // Limits chosen before the first part apply to it.
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
      updateControls();
      diffad.substituteBroken();
    }
    draw(true);
  }

  // The place where a map is highest, as fractions of the picture's width and height.
  function strongest(map, { width, height }) {
    let at = 0;
    for (let i = 1; i < map.length; i++) if (map[i] > map[at]) at = i;
    return [((at % width) + 0.5) / width, (Math.floor(at / width) + 0.5) / height];
  }

  // The address holds the choices that differ from the defaults, so that a link opens the page as it is now.

  const DEFAULTS = { alpha: 0.5, rate: null, "look-rate": null, opacity: 0.7, colormap: "inferno", draws: 1, tile: "auto", category: "auto" };
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

  // Writes values into the address; defaults are left out.
  function address(state) {
    const link = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(state)) {
      if (value === null || value === undefined || String(value) === String(DEFAULTS[name])) link.delete(name);
      else link.set(name, value);
    }
    const text = link.toString();
    history.replaceState(history.state, "", text ? `?${text}` : location.pathname);
  }

  // The settings that a batch takes over from this tab, in words.
  function setting(model, category, alpha, low, high, count, draws, tile, keep) {
    const facts = [`model ${model}`, `category ${category === DEFAULTS.category ? "recognised" : category}`, `α ${alpha}`,
      count > 1 ? `t ${low} to ${high}, ${count} levels` : `t ${low}`, `1 good part in ${Math.round(1 / choices.rate)} rejected`,
      `1 in ${Math.round(1 / choices.lookRate)} looked at`, ...(keep ? [] : ["not kept in the history"])];
    return `<p class="quiet">Uses the settings of Inspect: ${diffad.escape(facts.join(" · "))}.</p>`;
  }

  // On load: the address's parameters, for the server to check; null if there are none.
  const link = () => (location.search.length > 1 ? Object.fromEntries(new URLSearchParams(location.search)) : null);

  // Called once the server has set the controls by the address.
  let arrived;
  const ready = new Promise((resolve) => { arrived = resolve; });
  function arrive(alpha, rate, opacity, colormap, threshold, lookRate, look) {
    Object.assign(choices, {
      alpha, opacity, colormap, rate: rate || DEFAULTS.rate, threshold: rate === 0 ? threshold : null,
      lookRate: lookRate || DEFAULTS["look-rate"], look: lookRate === 0 ? look : null,
    });
    const wanted = linked.sample && document.querySelector(`button[data-sample="${CSS.escape(linked.sample)}"]`);
    if (wanted) wanted.click();
    arrived();
  }

  Object.assign(diffad, {
    choose, decide, controls, toggle, link, arrive, judgeBy, address, setting,
    ready, // resolves when the controls are set as the address says
    // A request has been sent: shows a message if there is no part yet.
    inspecting: () => { if (!part?.maps) receive({ sentence: INSPECTING }); },
    // The settings that downloads and repairs need (check_choices in session.py).
    choices: () => ({
      alpha: choices.alpha, opacity: choices.opacity, colormap: choices.colormap,
      timesteps: part?.maps ? choices.chosen.map((k) => part.timesteps[k]) : [],
      turn: part?.turn, own: choices.threshold !== null, ownLook: choices.look !== null, rate: choices.rate, lookRate: choices.lookRate,
      ...(part?.maps ? limits() : { threshold: null, look: null }),
    }),
    // How the next part will be judged, and whether it is to be kept (judging.py).
    judging: () => ({
      keep: diffad.keeps(), rate: choices.rate, lookRate: choices.lookRate, own, first: last ? null : ownLimits(),
      last: part?.maps ? { kind: kind(last), timesteps: last.timesteps, chosen: choices.chosen.map((k) => last.timesteps[k]) } : null,
    }),
    // Judges the next part as one was judged before; off: its timesteps that did not count.
    judgeAgain: (model, category, { alpha, off, ...limits }) => {
      Object.assign(choices, { alpha });
      linked.off = off;
      judgeBy({ model, category }, limits);
    },
    // The maps' values at a point (fractions of the picture).
    valuesAt: ([x, y]) => {
      const i = Math.min(part.height - 1, Math.floor(y * part.height)) * part.width + Math.min(part.width - 1, Math.floor(x * part.width));
      return { pixel: part.pixel.map((map) => map[i]), feature: part.feature.map((map) => map[i]), plain: part.plain ? part.plain[i] : null };
    },
    onResult: (listener) => listeners.push(listener),
    // The state, for tests.
    state: () => ({ part, result: current(), choices }),
    // The HTML component that receives the parts. Its props hold what is sent once: the scoring rule, each verdict's word
    // and mark, and the shares of good parts above the two limits, usual and offered.
    receiver: (props, watch, trigger) => {
      learnRule(props.rule);
      diffad.verdicts = props.verdicts;
      diffad.shares = props.shares;
      choices.rate = DEFAULTS.rate = props.shares.threshold.usual;
      choices.lookRate = DEFAULTS["look-rate"] = props.shares.look.usual;
      updateControls = () => trigger("select");
      watch("value", () => receive(props.value));
      receive(props.value);
    },
  });
})();
