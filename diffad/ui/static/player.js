// The repair's player: frames as they arrive, then a film with a slider, before against after, the difference, and curves
// of score and distance.
(() => {
  const diffad = (window.diffad ??= {});
  const { clamp, number } = diffad;
  const DIFFERENCE_TOP = 64; // grey levels at the end of the colours

  function player(element, props, watch) {
    const find = (name) => element.querySelector(name);
    const [root, screen, slider, play, now, first, changed, divider] =
      [".player", ".screen", ".transport input", ".play", "img.now", "img.first", "canvas.changed", ".screen input"].map(find);
    let timer = null;
    let following = true; // shows the newest frame until the person moves the slider
    const value = () => props.value || { frames: [] };
    const position = () => Number(slider.value);
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "▶ Play";
    };

    // A repair is scored at its own α and timesteps. The page's threshold applies to it only if the page uses the same.
    function judged() {
      const { alpha, timesteps, threshold } = value();
      const now = diffad.choices();
      const alike = now.alpha === alpha && now.timesteps.join() === timesteps.join();
      const differs = !alike || Math.abs(now.threshold - threshold) > 0.005;
      return { alike, threshold: alike ? now.threshold : threshold, differs };
    }

    function curves(at) {
      const { scores, losses, total } = value();
      const { threshold } = judged();
      const [w, h] = [260, 112];
      // The first pictures score far higher than any defect and may be outside the plot, which is scaled to the others.
      const top = Math.max(scores[0], scores[scores.length - 1], threshold) * 1.4;
      const lossTop = Math.max(...losses) * 1.08;
      const x = (i) => 4 + (w - 8) * (total ? i / total : 0);
      const y = (share) => h - 16 - (h - 34) * clamp(share, 0, 1);
      const line = (values, peak) => values.map((v, i) => `${x(i).toFixed(1)},${y(v / peak).toFixed(1)}`).join(" ");
      return `<svg class="curve" viewBox="0 0 ${w} ${h}" role="img" aria-label="Anomaly score and Mahalanobis distance per step">
        <text class="score" x="2" y="10">score ${number(scores[at])}</text>
        <text class="loss" x="${w - 2}" y="10" text-anchor="end">distance ${losses[at].toFixed(2)}</text>
        <line class="axis" x1="0" x2="${w}" y1="${h - 16}" y2="${h - 16}"/><line class="now" x1="${x(at)}" x2="${x(at)}" y1="18" y2="${h - 16}"/>
        <line class="limit" x1="0" x2="${w}" y1="${y(threshold / top)}" y2="${y(threshold / top)}"/>
        <polyline class="loss" points="${line(losses, lossTop)}"/><polyline class="score" points="${line(scores, top)}"/>
        <circle class="loss" cx="${x(at)}" cy="${y(losses[at] / lossTop)}" r="3"/><circle class="score" cx="${x(at)}" cy="${y(scores[at] / top)}" r="4"/>
        <text class="quiet" x="0" y="${h - 3}">0</text><text class="quiet" x="${w}" y="${h - 3}" text-anchor="end">step ${total}</text></svg>`;
    }

    // Shows a frame once it is loaded, so that the screen is never empty in between.
    function put(picture, url) {
      if (picture.dataset.wanted === url) return;
      picture.dataset.wanted = url;
      const next = new Image();
      next.onload = () => {
        if (picture.dataset.wanted !== url) return;
        picture.src = url;
        if (root.dataset.view === "difference") requestAnimationFrame(difference);
      };
      next.src = url;
    }

    // How much each pixel has changed.
    function difference() {
      if (!now.naturalWidth || !first.naturalWidth) return;
      const [width, height] = [now.naturalWidth, now.naturalHeight];
      const pixels = (picture) => {
        const canvas = Object.assign(document.createElement("canvas"), { width, height });
        const context = canvas.getContext("2d");
        context.drawImage(picture, 0, 0, width, height);
        return context.getImageData(0, 0, width, height).data;
      };
      const [a, b] = [pixels(first), pixels(now)];
      const apart = Float32Array.from({ length: width * height }, (_, i) =>
        (Math.abs(a[4 * i] - b[4 * i]) + Math.abs(a[4 * i + 1] - b[4 * i + 1]) + Math.abs(a[4 * i + 2] - b[4 * i + 2])) / 3);
      diffad.paint(changed, apart, width, height, DIFFERENCE_TOP, diffad.state().choices.colormap);
    }

    function show(at) {
      const { frames } = value();
      const frame = frames[clamp(at, 0, frames.length - 1)];
      if (!frame) return;
      const { alike, threshold } = judged();
      put(now, frame.file.url);
      put(first, frames[0].file.url);
      const below = frame.score > threshold ? "" : ` · below ${alike ? "the threshold" : number(threshold)}`;
      find(".caption").textContent = `step ${frame.step} · score ${frame.score.toFixed(2)}${below}`;
      find(".plot").innerHTML = curves(frame.step);
      element.querySelectorAll(".strip button").forEach((b) => b.classList.toggle("on", Number(b.dataset.position) === at));
    }

    function strip() {
      const { frames } = value();
      const count = Math.min(5, frames.length);
      const picks = Array.from({ length: count }, (_, i) => Math.round((i * (frames.length - 1)) / Math.max(1, count - 1)));
      const row = find(".strip");
      while (row.children.length > picks.length) row.lastElementChild.remove();
      while (row.children.length < picks.length) row.insertAdjacentHTML("beforeend", '<button><img alt=""><span></span></button>');
      picks.forEach((p, i) => {
        const [button, { step, score, file }] = [row.children[i], frames[p]];
        button.dataset.position = p;
        button.setAttribute("aria-label", `Step ${step}`);
        button.lastElementChild.textContent = `${step} · ${score.toFixed(2)}`;
        put(button.firstElementChild, file.url);
      });
    }

    function say() {
      const { frames, message, alpha, timesteps, threshold } = value();
      const of = frames.length && judged().differs
        ? ` · scored at α = ${alpha.toFixed(2)}, t = ${timesteps.join(", ")}, threshold ${number(threshold)}` : "";
      find(".message").textContent = `${message || ""}${of}`;
    }

    function update() {
      const { frames, state } = value();
      root.dataset.state = state || "empty";
      starting(false);
      if (!frames.length) {
        stop();
        following = true;
        return;
      }
      if (frames.length === 1) following = true;
      slider.max = frames.length - 1;
      strip();
      if (following) slider.value = frames.length - 1;
      show(position());
    }

    function go(at, follow = false) {
      following = follow;
      slider.value = at;
      show(position());
    }

    function look(view) {
      root.dataset.view = view;
      element.querySelectorAll(".views button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.view === view));
      if (view === "difference") difference();
    }

    slider.addEventListener("input", () => {
      stop();
      go(position(), position() === Number(slider.max));
    });
    find(".strip").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      stop();
      go(button.dataset.position);
    });
    play.addEventListener("click", () => {
      if (timer) return stop();
      go(position() >= Number(slider.max) ? 0 : position());
      play.textContent = "❚❚ Pause";
      const pause = clamp(4000 / Math.max(1, Number(slider.max)), 30, 400);
      timer = setInterval(() => {
        if (position() >= Number(slider.max)) return stop();
        go(position() + 1);
      }, pause);
    });
    find(".views").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) look(button.dataset.view === root.dataset.view ? "repaired" : button.dataset.view);
    });
    find(".begin").addEventListener("click", () => document.querySelector("#repair:not(:disabled)")?.click());
    diffad.onResult(({ result, fresh }) => {
      find(".begin").hidden = !result;
      if (fresh) starting(false);
      if (!result || !value().frames.length) return;
      say();
      show(position());
    });
    // From the click until the first frame.
    function starting(on) {
      diffad.busy("repair", on);
      if (on) find(".message").textContent = "Starting…";
      else say();
    }
    diffad.starting = starting;
    divider.addEventListener("input", () => screen.style.setProperty("--cut", `${divider.value}%`));
    watch("value", update);
    update();
  }

  diffad.player = player;
})();
