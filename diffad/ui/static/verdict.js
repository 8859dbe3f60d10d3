// The verdict, and the good parts' scores with the two limits as lines that can be dragged.
(() => {
  const diffad = (window.diffad ??= {});
  const { capitalised, clamp, duration, escape, number, plural, shareInWords } = diffad;
  const [WIDTH, BASE, TALL, BINS] = [460, 66, 44, 48];
  const NAME = 90; // room for a limit's name and its distance from the line

  // side: where knob and name of a limit's line are, left and right of the lines, so that both can be grasped where the
  // lines coincide. effect: what happens to parts above the limit.
  const LIMITS = {
    look: { title: "look limit", side: -1, effect: "looked at or rejected" },
    threshold: { title: "threshold", side: 1, effect: "rejected" },
  };

  // How unusual a score is that this share of good parts exceeds.
  function unusualInWords(rate) {
    if (rate > 0.5) return "as most good parts";
    if (rate <= 0.0005) return "hardly a good part scores this high";
    return `1 good part in ${Math.round(1 / rate)} scores this high`;
  }

  // A warning if the part does not fit the category.
  function strangeness({ recognised, category, several }) {
    if (!recognised) return `Unlike a good ${category}: is the category right?`;
    return "Unlike any good part of this model: another kind of part, or badly damaged. " +
      (several ? "Another model may know it." : "“diffad train” makes a model for yours.");
  }

  // The range of scores shown: wide enough for the good parts and, if it is near, for this part. It does not depend on the
  // threshold, so it stays the same while that is dragged.
  function scaleOf({ by: { good }, score }, usual) {
    const highest = Math.max(...good, 1e-6);
    const top = Math.max(clamp(1.1 * score, 2.2 * highest, 12 * highest), 1.4 * usual);
    const low = Math.min(0, ...good, score);
    return { top, low, at: (value) => 8 + (WIDTH - 16) * ((clamp(value, low, top) - low) / (top - low)) };
  }

  function bars(good, { low, top, at }) {
    const counts = new Array(BINS).fill(0);
    for (const score of good) counts[clamp(Math.floor((BINS * (score - low)) / (top - low)), 0, BINS - 1)] += 1;
    const unit = TALL / Math.max(...counts);
    const wide = (WIDTH - 16) / BINS;
    return counts.map((count, i) => count && `<rect x="${(at(low) + i * wide + 0.5).toFixed(1)}" y="${(BASE - count * unit).toFixed(1)}" ` +
      `width="${(wide - 1).toFixed(1)}" height="${(count * unit).toFixed(1)}"/>`).filter(Boolean).join("");
  }

  function verdict(element) {
    const slot = element.querySelector(".verdict-slot");
    slot.innerHTML = `
      <div class="judgement"><h2><span class="mark" aria-hidden="true"><i></i></span><span class="word"></span></h2>
        <p class="reading"></p><p class="meaning"></p><p class="quiet origin"></p><div class="notes"></div></div>
      <svg class="histogram" viewBox="0 -20 ${WIDTH} 114" role="group" aria-label="Scores of good parts">
        <g class="bars"></g><line class="axis" x1="0" x2="${WIDTH}" y1="${BASE}" y2="${BASE}"/>
        <text class="quiet" x="2" y="-7"><tspan class="held"></tspan><title>The good parts from which the threshold was calculated. How far out the unusual ones lie does not affect it; “diffad train” lists them.</title></text>
        <circle class="part" cy="${BASE}" r="5.5"/><text class="part" y="90"></text>
        ${Object.entries(LIMITS).map(([kind, { title, side }]) => `
          <g class="limit-grip ${kind}" data-limit="${kind}" tabindex="0" role="slider" aria-label="${capitalised(title)}">
            <rect y="2" height="${BASE + 8}" fill="transparent"/><line class="limit" y1="2" y2="${BASE + 4}"/>
            <path class="knob" d="M0 2h${9 * side}v6l${-9 * side} 5z"/><text class="quiet">${title}</text></g>`).join("")}
      </svg>`;
    const find = (name) => slot.querySelector(name);
    const svg = find("svg");
    const sentence = element.querySelector(".empty");
    const spoken = element.querySelector("[role=status]"); // for screen readers: once a part, not at every move of a slider
    let now = null;
    let scale = null;

    diffad.onResult(({ part, result, choices, fresh }) => {
      slot.hidden = !result;
      sentence.hidden = !!result;
      if (!result) {
        sentence.firstElementChild.textContent = part?.sentence || sentence.dataset.waiting;
        if (fresh) spoken.textContent = part?.sentence || "";
        return;
      }
      now = result;
      const [word, mark] = diffad.verdicts[result.verdict];
      slot.className = `verdict-slot verdict ${result.verdict}`;
      slot.dataset.score = result.score;
      slot.dataset.threshold = result.threshold;
      find(".mark i").textContent = mark;
      find(".word").textContent = word;
      const notes = [...(part.fits ? [] : [strangeness(part)]), ...part.notes];
      if (fresh) spoken.textContent = [`${word}, score ${number(result.score)}, look limit ${number(result.look)}, threshold ${number(result.threshold)}`, ...notes].join(". ");
      const limit = (kind) => `${LIMITS[kind].title} <b>${number(result[kind])}</b>`;
      find(".reading").innerHTML = [
        `score <b>${number(result.score)}</b>`,
        { good: limit("look"), look: `${limit("look")} · ${limit("threshold")}`, anomalous: limit("threshold") }[result.verdict],
        result.verdict === "good" ? null : plural(result.regions.length, "region"),
        result.verdict !== "good" ? null : unusualInWords(diffad.scores.rateFor(result.by, result.score, part.chances)),
      ].filter(Boolean).join(" · ");
      const [low, high] = result.bounds.map((rate) => shareInWords(rate, "").replace("about ", ""));
      find(".meaning").textContent = `at these limits ${shareInWords(result.rate)} (${high} to ${low}) would be ${LIMITS.threshold.effect}` +
        (result.look < result.threshold ? `, ${shareInWords(result.lookRate, "")} ${LIMITS.look.effect}` : "");
      find(".origin").innerHTML = `${escape(part.category)} (${part.recognised ? "recognised" : "chosen"}) · ${duration(part.seconds)} on ${part.device}` +
        (part.prepared ? ` · ${part.prepared}` : "");
      find(".notes").innerHTML = notes.map((note) => `<p class="note">${escape(note)}</p>`).join("");
      const usual = diffad.scores.thresholdFor(result.by, diffad.shares.threshold.usual, part.chances);
      scale = scaleOf(result, usual);
      find(".bars").innerHTML = bars(result.by.good, scale);
      const odd = diffad.scores.unusual(result.by.good).length;
      find(".held").textContent = `${result.by.good.length} good parts${odd ? `, ${odd} unusual` : ""}`;
      const dot = scale.at(result.score);
      find("circle.part").setAttribute("cx", dot);
      const anchor = dot > WIDTH - 60 ? "end" : dot < 60 ? "start" : "middle";
      const caption = find("text.part");
      caption.setAttribute("text-anchor", anchor);
      caption.setAttribute("x", { end: WIDTH - 2, start: 2, middle: dot }[anchor]);
      caption.textContent = `this part ${number(result.score)}${result.score > scale.top ? " →" : ""}`;
      place("look", result.lookRate);
      place("threshold", result.rate);
    });

    function place(kind, rate) {
      const [x, { side, effect }] = [scale.at(now[kind]), LIMITS[kind]];
      const between = (scale.at(now.threshold) - scale.at(now.look)) / 2; // to the middle between the lines
      const grip = find(`.limit-grip.${kind}`);
      grip.setAttribute("transform", `translate(${x.toFixed(1)} 0)`);
      const [outside, inside] = [14, clamp(between, 0, 9)];
      grip.querySelector("rect").setAttribute("x", side < 0 ? -outside : -inside);
      grip.querySelector("rect").setAttribute("width", outside + inside);
      for (const [name, value] of Object.entries({
        now: now[kind].toFixed(2), min: scale.low.toFixed(2), max: (kind === "look" ? now.threshold : scale.top).toFixed(2),
        text: `${number(now[kind])}, ${shareInWords(rate)} would be ${effect}`,
      })) grip.setAttribute(`aria-value${name}`, value);
      // The name is on the knob's side if there is room; else on the other, further down and past the other limit's line.
      const name = grip.querySelector("text");
      const left = side < 0 ? x > NAME : x > WIDTH - NAME;
      const onKnobSide = left === side < 0;
      const beyond = onKnobSide || 2 * between > NAME ? 12 : 12 + 2 * between;
      name.setAttribute("x", left ? -beyond : beyond);
      name.setAttribute("y", onKnobSide ? 11 : 29);
      name.setAttribute("text-anchor", left ? "end" : "start");
    }

    const scoreAt = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * WIDTH;
      return clamp(scale.low + ((x - 8) / (WIDTH - 16)) * (scale.top - scale.low), scale.low, scale.top);
    };
    // The look limit stops at the threshold; the threshold pushes it down.
    const decide = (kind, value) => diffad.decide({ [kind]: clamp(value, scale.low, kind === "look" ? now.threshold : scale.top) });
    for (const grip of slot.querySelectorAll(".limit-grip")) {
      const kind = grip.dataset.limit;
      grip.addEventListener("pointerdown", (event) => {
        grip.setPointerCapture(event.pointerId);
        grip.classList.add("held");
      });
      grip.addEventListener("pointermove", (event) => grip.classList.contains("held") && decide(kind, scoreAt(event)));
      for (const end of ["pointerup", "pointercancel"]) grip.addEventListener(end, () => grip.classList.remove("held"));
      grip.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
        if (!by) return;
        event.preventDefault();
        decide(kind, now[kind] + (by * scale.top) / 200);
      });
    }
  }

  diffad.verdict = verdict;
})();
