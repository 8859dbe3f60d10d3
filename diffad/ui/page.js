// The page's four live parts. Each is given Gradio's element, props, watch and trigger (see gr.HTML's js_on_load).
window.diffad = (() => {
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // Thumbnails: a click inspects the sample.
  function samples(element, props, watch, trigger) {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-sample]");
      if (!button) return;
      markSample(button.dataset.sample);
      trigger("select", { sample: button.dataset.sample });
    });
  }

  const markSample = (name) =>
    document.querySelectorAll("button[data-sample]").forEach((b) => b.classList.toggle("on", b.dataset.sample === name));

  // Before and after: the heat lies over the picture, cut at the divider.
  function viewer(element, props, watch) {
    const stage = element.querySelector(".stage");
    const divider = element.querySelector("input");
    const heat = element.querySelector(".heat");
    const marks = element.querySelector(".marks");
    let moved = false; // once the person has placed the divider, it stays
    const cut = () => stage.style.setProperty("--cut", divider.value + "%");
    const show = () => {
      const value = props.value || {};
      stage.classList.toggle("blank", !value.heat);
      if (value.picture) {
        element.querySelector(".plain").src = value.picture;
        stage.style.setProperty("--aspect", value.size[0] / value.size[1]);
        if (!moved) divider.value = value.cut;
        cut();
      }
      if (value.picture || !value.heat) markSample(value.name + ".png");
      if (value.heat) heat.src = value.heat;
      marks.innerHTML = (value.marks || [])
        .map((m, i) => `<span data-region="${i}" style="left:${100 * m.left}%;top:${100 * m.top}%;` +
          `width:${100 * m.width}%;height:${100 * m.height}%"><b>${i + 1}</b></span>`)
        .join("");
    };
    divider.addEventListener("input", () => { moved = true; cut(); });
    // Pointing at a row of the regions' table shows its box.
    document.addEventListener("pointerover", (event) => {
      const row = event.target.closest?.("tr[data-region]");
      marks.querySelectorAll("span").forEach((m) => m.classList.toggle("on", !!row && m.dataset.region === row.dataset.region));
    });
    watch("value", show);
    show();
    cut();
  }

  // Evidence: a click on a map asks for the values at that point; a column's head takes its t in or out.
  function evidence(element, props, watch, trigger) {
    const spot = (x, y) => {
      const style = element.closest("#evidence-card").style;
      style.setProperty("--x", x);
      style.setProperty("--y", y);
    };
    watch("value", () => {
      const sheet = element.querySelector(".sheet[data-x]");
      if (sheet) spot(sheet.dataset.x, sheet.dataset.y);
    });
    element.addEventListener("click", (event) => {
      const head = event.target.closest("button[data-t]");
      if (head) return trigger("select", { t: Number(head.dataset.t) });
      const cell = event.target.closest(".cell");
      if (!cell) return;
      const box = cell.getBoundingClientRect();
      const x = clamp((event.clientX - box.left) / box.width, 0, 0.9999);
      const y = clamp((event.clientY - box.top) / box.height, 0, 0.9999);
      spot(x, y);
      trigger("select", { x, y });
    });
  }

  // Repair: frames as they come, then a film with a slider, a curve and a look back at the original.
  function player(element, props, watch) {
    const find = (name) => element.querySelector(name);
    const [slider, play, before] = [find("input"), find(".play"), find(".before-after")];
    let timer = null;
    let following = true; // the newest frame is shown until the person takes the slider
    const value = () => props.value || { frames: [] };
    const stop = () => { clearInterval(timer); timer = null; play.textContent = "▶ Play"; };

    function curve(at) {
      const { scores, losses, total, threshold } = value();
      const [w, h] = [240, 96];
      const top = Math.max(...scores, threshold) * 1.08;
      const lossTop = Math.max(...losses) * 1.08;
      const x = (i) => 2 + (w - 4) * (total ? i / total : 0);
      const y = (s) => h - 14 - (h - 26) * clamp(s / top, 0, 1);
      const line = (values, peak) => values.map((s, i) => `${x(i).toFixed(1)},${y((s * top) / peak).toFixed(1)}`).join(" ");
      return `<svg class="curve" viewBox="0 0 ${w} ${h}" role="img" aria-label="Anomaly score per step">
        <text class="quiet" x="2" y="9">score</text><text class="quiet loss" x="${w - 2}" y="9" text-anchor="end">Mahalanobis</text>
        <line class="axis" x1="0" x2="${w}" y1="${h - 14}" y2="${h - 14}"/>
        <line class="limit" x1="0" x2="${w}" y1="${y(threshold)}" y2="${y(threshold)}"/>
        <polyline class="loss" points="${line(losses, lossTop)}"/>
        <polyline class="score" points="${line(scores, top)}"/>
        <circle class="part" cx="${x(at)}" cy="${y(scores[at])}" r="4"/>
        <text class="quiet" x="0" y="${h - 2}">0</text><text class="quiet" x="${w}" y="${h - 2}" text-anchor="end">step ${total}</text>
      </svg>`;
    }

    // A frame takes the screen once it is loaded, so that quick ones leave no gap.
    function put(picture, url) {
      picture.dataset.wanted = url;
      const next = new Image();
      next.onload = () => picture.dataset.wanted === url && (picture.src = url);
      next.src = url;
    }

    function show(position) {
      const { frames, threshold } = value();
      const frame = frames[clamp(position, 0, frames.length - 1)];
      if (!frame) return;
      put(find(".now"), frame.file.url);
      find(".first").src = frames[0].file.url;
      const below = frame.score <= threshold ? " · below the threshold" : "";
      find(".caption").textContent = `step ${frame.step} · score ${frame.score.toFixed(2)}${below}`;
      find(".plot").innerHTML = curve(frame.step);
      element.querySelectorAll(".strip button").forEach((b) => b.classList.toggle("on", Number(b.dataset.position) === position));
    }

    function strip() {
      const { frames } = value();
      const count = Math.min(5, frames.length);
      const picks = [...new Set(Array.from({ length: count }, (_, i) => Math.round((i * (frames.length - 1)) / Math.max(1, count - 1))))];
      find(".strip").innerHTML = picks
        .map((p) => `<button data-position="${p}"><img alt="" src="${frames[p].file.url}"><span>${frames[p].step} · ${frames[p].score.toFixed(2)}</span></button>`)
        .join("");
    }

    function update() {
      const { frames, state, message } = value();
      element.firstElementChild.dataset.state = state || "empty";
      find(".message").textContent = message || "";
      if (!frames || !frames.length) { stop(); following = true; return; }
      if (frames.length === 1) following = true;
      slider.max = frames.length - 1;
      strip();
      if (following) slider.value = frames.length - 1;
      show(Number(slider.value));
    }

    slider.addEventListener("input", () => { following = Number(slider.value) === Number(slider.max); stop(); show(Number(slider.value)); });
    find(".strip").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      stop();
      following = false;
      slider.value = button.dataset.position;
      show(Number(slider.value));
    });
    play.addEventListener("click", () => {
      if (timer) return stop();
      following = false;
      if (Number(slider.value) >= Number(slider.max)) slider.value = 0;
      play.textContent = "❚❚ Pause";
      const pause = clamp(4000 / Math.max(1, Number(slider.max)), 30, 400);
      timer = setInterval(() => {
        if (Number(slider.value) >= Number(slider.max)) return stop();
        slider.value = Number(slider.value) + 1;
        show(Number(slider.value));
      }, pause);
    });
    before.addEventListener("click", () => {
      const on = element.firstElementChild.classList.toggle("showing-first");
      before.setAttribute("aria-pressed", on);
    });
    watch("value", update);
    update();
  }

  // Gradio's sliders report their release to the pointer only; the arrow keys deserve it too.
  document.addEventListener("keyup", (event) => {
    const moves = /^(Arrow|Page|Home|End)/.test(event.key);
    if (moves && event.target.matches?.("#controls input[type=range]"))
      event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });

  return { samples, viewer, evidence, player };
})();
