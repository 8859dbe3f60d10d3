// The verdict, and the good parts' scores with the threshold as a line that can be dragged.
(() => {
  const diffad = (window.diffad ??= {});
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const [WIDTH, BASE, TALL, BINS] = [460, 66, 44, 48];
  const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

  // What a threshold means, in words.
  function rateInWords(rate) {
    if (rate <= 0.0005) return "fewer than 1 good part in 2000 would be rejected";
    if (rate >= 0.995) return "every good part would be rejected";
    if (rate > 0.4) return `${Math.round(100 * rate)} % of the good parts would be rejected`;
    return `about 1 good part in ${Math.round(1 / rate)} would be rejected`;
  }

  // How unusual a good part is whose score so many others exceed.
  function unusualInWords(rate) {
    if (rate > 0.5) return "as most good parts";
    if (rate <= 0.0005) return "hardly a good part scores this high";
    return `1 good part in ${Math.round(1 / rate)} scores this high`;
  }

  // Why a part may lie outside what the verdict is about.
  function strangeness({ recognised, category, several }) {
    if (!recognised) return `Unlike a good ${category}: is the category right?`;
    return "Unlike any good part of this model: another kind of part, or badly damaged. " +
      (several ? "Another model may know it." : "“diffad train” teaches it yours.");
  }

  // The scale in scores: wide enough for the good parts, for this part if it is near, and at rest under the threshold's drag.
  function scaleOf({ good, score }, usual) {
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
        <text class="quiet" x="2" y="-3"><tspan class="held"></tspan><title>The good parts that the threshold was calibrated on. How far out the unusual ones lie does not move it; “diffad train” names them.</title></text>
        <circle class="part" cy="${BASE}" r="5.5"/><text class="part" y="90"></text>
        <g class="limit-grip" tabindex="0" role="slider" aria-label="Threshold">
          <rect x="-9" y="2" width="18" height="${BASE + 8}" fill="transparent"/><line class="limit" y1="12" y2="${BASE + 4}"/>
          <path class="knob" d="M-5 2h10v6l-5 5l-5 -5z"/><text class="quiet" x="9" y="19">threshold</text></g>
      </svg>`;
    const find = (name) => slot.querySelector(name);
    const [svg, grip] = [find("svg"), find(".limit-grip")];
    const sentence = element.querySelector(".empty");
    const spoken = element.querySelector("[role=status]"); // once a part, not with every move of a slider
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
      const { number } = diffad;
      const bad = result.anomalous;
      slot.className = `verdict-slot verdict ${bad ? "bad" : "good"}`;
      slot.dataset.score = result.score;
      slot.dataset.threshold = result.threshold;
      find(".mark i").textContent = bad ? "✕" : "✓";
      find(".word").textContent = bad ? "Anomalous" : "Good";
      const notes = [...(part.fits ? [] : [strangeness(part)]), ...part.notes];
      if (fresh) spoken.textContent = [`${bad ? "Anomalous" : "Good"}, score ${number(result.score)}, threshold ${number(result.threshold)}`, ...notes].join(". ");
      const count = result.regions.length;
      find(".reading").innerHTML = `score <b>${number(result.score)}</b> · threshold <b>${number(result.threshold)}</b>` +
        (bad ? ` · ${count} region${count === 1 ? "" : "s"}`
          : ` · ${unusualInWords(diffad.scores.rateFor(result.good, result.score, part.chances))}`);
      const words = rateInWords(result.rate);
      find(".meaning").textContent = `at this threshold ${words}`;
      const took = part.seconds < 1 ? `${Math.round(1000 * part.seconds)} ms` : `${part.seconds.toFixed(1)} s`;
      find(".origin").innerHTML = `${escape(part.category)} (${part.recognised ? "recognised" : "chosen"}) · ${took} on ${part.device}` +
        (part.seen ? ` · ${part.seen}` : "");
      find(".notes").innerHTML = notes.map((note) => `<p class="note">${escape(note)}</p>`).join("");
      const usual = diffad.scores.thresholdFor(result.good, 0.01, part.chances);
      scale = scaleOf(result, usual);
      find(".bars").innerHTML = bars(result.good, scale);
      const odd = diffad.scores.unusual(result.good).length;
      find(".held").textContent = `${result.good.length} good parts${odd ? `, ${odd} unusual` : ""}`;
      const dot = scale.at(result.score);
      find("circle.part").setAttribute("cx", dot);
      const anchor = dot > WIDTH - 60 ? "end" : dot < 60 ? "start" : "middle";
      const caption = find("text.part");
      caption.setAttribute("text-anchor", anchor);
      caption.setAttribute("x", { end: WIDTH - 2, start: 2, middle: dot }[anchor]);
      caption.textContent = `this part ${number(result.score)}${result.score > scale.top ? " →" : ""}`;
      grip.setAttribute("transform", `translate(${scale.at(result.threshold).toFixed(1)} 0)`);
      grip.setAttribute("aria-valuenow", result.threshold.toFixed(2));
      grip.setAttribute("aria-valuemin", scale.low.toFixed(2));
      grip.setAttribute("aria-valuemax", scale.top.toFixed(2));
      grip.setAttribute("aria-valuetext", `${number(result.threshold)}, ${words}`);
      const name = grip.querySelector("text");
      const left = scale.at(result.threshold) > WIDTH - 70;
      name.setAttribute("x", left ? -9 : 9);
      name.setAttribute("text-anchor", left ? "end" : "start");
    });

    const scoreAt = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * WIDTH;
      return clamp(scale.low + ((x - 8) / (WIDTH - 16)) * (scale.top - scale.low), scale.low, scale.top);
    };
    grip.addEventListener("pointerdown", (event) => {
      grip.setPointerCapture(event.pointerId);
      grip.classList.add("held");
    });
    grip.addEventListener("pointermove", (event) => grip.classList.contains("held") && diffad.decide({ threshold: scoreAt(event) }));
    for (const end of ["pointerup", "pointercancel"]) grip.addEventListener(end, () => grip.classList.remove("held"));
    grip.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
      if (!by) return;
      event.preventDefault();
      diffad.decide({ threshold: clamp(now.threshold + (by * scale.top) / 200, scale.low, scale.top) });
    });
  }

  Object.assign(diffad, { verdict, escape });
})();
