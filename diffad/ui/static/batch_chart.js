// The Batch tab's histogram of scores, with the two limits as lines that can be dragged.
(() => {
  const diffad = (window.diffad ??= {});
  const { capitalised, clamp, number } = diffad;
  const [MARGIN, HEIGHT] = [10, 128];
  const [BASE, TALL] = [HEIGHT - 24, HEIGHT - 46];
  const NAME = 130; // px, room for a limit's name and its distance from the line
  const LOWEST = 0.1; // score at which the logarithmic axis may begin
  const TITLES = { look: "look limit", threshold: "threshold" };
  const TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500];

  // limits(): the category's present limits; move(kind, value): changes one of them.
  function batchChart(box, { limits, move }) {
    let scale = null; // of the last drawing
    let held = null; // the limit whose line was taken last, and keeps the focus

    // rows: of one category, judged; good: the good parts' scores; usual: the usual limits.
    function draw(rows, good, usual) {
      const width = Math.max(260, box.clientWidth);
      const scoreOf = (row) => row.score - row.beyond.threshold; // as if the picture had not been tiled
      scale = scaleOf([...rows.map(scoreOf), ...good], usual, width);
      const bins = Math.max(20, Math.round(width / 13));
      const step = (width - 2 * MARGIN) / bins;
      const binOf = (value) => clamp(Math.floor((scale.at(value) - MARGIN) / step), 0, bins - 1);
      const counted = (values) => values.reduce((counts, value) => (counts[binOf(value)]++, counts), new Array(bins).fill(0));
      const stacks = ["good", "look", "anomalous"].map((verdict) => [verdict, counted(rows.filter((row) => row.verdict === verdict).map(scoreOf))]);
      const below = (bin, kind) => stacks.slice(0, kind).reduce((sum, [, counts]) => sum + counts[bin], 0);
      const calibrated = counted(good);
      const unit = TALL / Math.max(1, ...calibrated.map((_, bin) => below(bin, stacks.length)));
      const calibratedUnit = TALL / Math.max(1, ...calibrated);
      const x = (bin) => (MARGIN + bin * step).toFixed(1);
      const bar = (verdict, bin, from, count) => count
        ? `<rect class="${verdict}" x="${(MARGIN + bin * step + 1).toFixed(1)}" width="${(step - 2).toFixed(1)}" y="${(BASE - (from + count) * unit).toFixed(1)}" height="${(count * unit).toFixed(1)}"/>` : "";
      const outline = calibrated.map((count, bin) => {
        const y = (BASE - count * calibratedUnit).toFixed(1);
        return `${x(bin)},${y} ${x(bin + 1)},${y}`;
      }).join(" ");
      const ticks = TICKS.filter((tick) => tick > scale.low * 1.05 && tick < scale.high * 0.95);
      const focused = document.activeElement?.closest?.(".chart .handle")?.dataset.limit;
      box.innerHTML = `<svg width="${width}" height="${HEIGHT}" viewBox="0 0 ${width} ${HEIGHT}">
        <polygon class="held" points="${MARGIN},${BASE} ${outline} ${width - MARGIN},${BASE}"/>
        ${stacks.map(([verdict, counts], kind) => counts.map((count, bin) => bar(verdict, bin, below(bin, kind), count)).join("")).join("")}
        <line class="axis" x1="0" x2="${width}" y1="${BASE}" y2="${BASE}"/>
        ${ticks.map((tick) => `<text x="${scale.at(tick)}" y="${HEIGHT - 8}" text-anchor="middle">${tick}</text>`).join("")}
        ${Object.keys(TITLES).map((kind) => handle(kind, width)).join("")}</svg>
        <p class="quiet legend"><span class="good">good</span><span class="look">look at it</span><span class="anomalous">anomalous</span>
          <span class="held">good parts the model was calibrated on</span><span>score in σ</span></p>`;
      const taken = held || focused;
      if (taken) box.querySelector(`.handle[data-limit=${taken}]`).focus({ preventScroll: true });
    }

    // Logarithmic, because good parts lie close together and defects reach far.
    function scaleOf(values, usual, width) {
      const low = Math.min(...values.map((value) => Math.max(value, LOWEST)), usual.look) * 0.85;
      const high = Math.max(...values, 2 * usual.threshold) * 1.15;
      const [span, ratio] = [width - 2 * MARGIN, Math.log(high / low)];
      return {
        low, high,
        at: (value) => MARGIN + (span * Math.log(clamp(value, low, high) / low)) / ratio,
        back: (x) => clamp(low * Math.exp((ratio * (x - MARGIN)) / span), low, high),
      };
    }

    // Knob and name of the look limit are to the left of its line, those of the threshold to the right, so that both can be
    // seen and grasped where the lines coincide. A name without enough room is on the other side, further down and past the
    // other line.
    function handle(kind, width) {
      const [now, title, side] = [limits(), TITLES[kind], kind === "look" ? -1 : 1];
      const x = scale.at(now[kind]);
      const left = side < 0 ? x > NAME : x > width - NAME;
      const onKnobSide = left === side < 0;
      const between = scale.at(now.threshold) - scale.at(now.look);
      const beyond = onKnobSide || between > NAME ? 14 : 14 + between;
      return `<g class="handle" data-limit="${kind}" tabindex="0" role="slider" aria-label="${capitalised(title)}"
          aria-valuemin="${scale.low.toFixed(2)}" aria-valuemax="${(kind === "look" ? now.threshold : scale.high).toFixed(2)}"
          aria-valuenow="${now[kind].toFixed(2)}" transform="translate(${x.toFixed(1)} 0)">
        <line class="limit" y1="4" y2="${BASE + 5}"/><path d="M0 4h${10 * side}v7l${-10 * side} 6z"/>
        <text class="name" x="${left ? -beyond : beyond}" y="${onKnobSide ? 14 : 30}" text-anchor="${left ? "end" : "start"}">${title} ${number(now[kind])}</text></g>`;
    }

    // The look limit stops at the threshold; the threshold pushes it down.
    const drag = (kind, value) => move(kind, kind === "look" ? Math.min(value, limits().threshold) : value);

    // The limit that a press takes: the nearer one. Where the lines coincide, the one whose knob is on that side.
    function nearest(x) {
      const { threshold, look } = limits();
      return x < (scale.at(threshold) + scale.at(look)) / 2 ? "look" : "threshold";
    }

    box.addEventListener("pointerdown", (event) => {
      const svg = event.target.closest("svg");
      if (!svg || event.button) return;
      event.preventDefault();
      const { left } = svg.getBoundingClientRect();
      const kind = held = nearest(event.clientX - left);
      const follow = ({ clientX }) => drag(kind, scale.back(clientX - left));
      const release = new AbortController();
      const { signal } = release;
      addEventListener("pointermove", follow, { signal });
      for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => release.abort(), { signal });
      follow(event);
    });
    box.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1.01, ArrowUp: 1.01, ArrowLeft: 1 / 1.01, ArrowDown: 1 / 1.01, PageUp: 1.1, PageDown: 1 / 1.1 }[event.key];
      const kind = event.target.closest(".handle")?.dataset.limit;
      if (!by || !kind) return;
      event.preventDefault();
      held = kind;
      drag(kind, limits()[kind] + Math.abs(limits()[kind]) * (by - 1));
    });
    box.addEventListener("focusout", (event) => { if (event.relatedTarget) held = null; });
    return { draw };
  }

  diffad.batchChart = batchChart;
})();
