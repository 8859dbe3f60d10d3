// The picture under its anomaly map, with a divider between them: zoomed and moved by wheel, pinch and drag, reset by a
// double click. And the table of regions. `diffad.paint` colours every map of the page on one scale.
(() => {
  const diffad = (window.diffad ??= {});
  const { clamp, number, plural } = diffad;
  const REGIONS_SHOWN = 8;
  const DEEPEST = 24; // times the whole picture

  // Colours: the server's own tables, 256 RGB entries each.
  const tables = {};
  const table = (name) => tables[name];
  function learnColours(colormaps) {
    for (const [name, base64] of Object.entries(colormaps)) {
      const text = atob(base64);
      tables[name] = Uint8Array.from(text, (c) => c.charCodeAt(0));
    }
  }

  // Paints a map on a canvas of its own size; the colours span 0 … top. fade: the opacity of a value, opaque if left out.
  function paint(canvas, values, width, height, top, colormap, fade = null) {
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    const colours = table(colormap);
    const data = picture.data;
    for (let i = 0, o = 0; i < values.length; i++, o += 4) {
      const entry = 3 * Math.round(255 * clamp(values[i] / top, 0, 1));
      data[o] = colours[entry];
      data[o + 1] = colours[entry + 1];
      data[o + 2] = colours[entry + 2];
      data[o + 3] = fade ? 255 * fade(values[i]) : 255;
    }
    context.putImageData(picture, 0, 0);
  }

  // As overlay in drawing.py: from transparent at half the threshold (half as far again below a negative one) to full
  // opacity at the threshold, so that good places stay the photograph.
  function fading(threshold, opacity) {
    const start = threshold - Math.abs(threshold) / 2;
    return (value) => {
      const rise = clamp((value - start) / Math.max(threshold - start, 1e-6), 0, 1);
      return opacity * rise * rise * (3 - 2 * rise);
    };
  }

  function viewer(element, props, watch, trigger) {
    learnColours(props.colormaps);
    const find = (name) => element.querySelector(name);
    const [stage, canvas, handle, readout, preparation] = [".stage", "canvas", ".divider", ".readout", ".seen-as"].map(find);
    const context = canvas.getContext("2d");
    const heat = document.createElement("canvas");
    let now = null; // what is drawn: { part, result, choices }
    let picture = null;
    let outline = null;
    let cut = 0.34;
    let dividerMoved = false; // by the person; then it stays where it is
    let view = { scale: 1, x: 0.5, y: 0.5 }; // zoom, and the picture's point in the stage's middle
    let pointed = null; // the region whose row the pointer is on

    // Where the picture is on the stage at the present zoom, px.
    function place() {
      const [w, h] = [stage.clientWidth, stage.clientHeight];
      const fit = Math.min(w / now.part.size[0], h / now.part.size[1]);
      const [pw, ph] = [now.part.size[0] * fit * view.scale, now.part.size[1] * fit * view.scale];
      const along = (middle, size, room) => (size <= room ? (room - size) / 2 : clamp(room / 2 - middle * size, room - size, 0));
      return { left: along(view.x, pw, w), top: along(view.y, ph, h), width: pw, height: ph };
    }

    function redraw() {
      if (!now?.part.maps) return;
      const ratio = window.devicePixelRatio || 1;
      const [w, h] = [stage.clientWidth, stage.clientHeight];
      const [cw, ch] = [Math.round(w * ratio), Math.round(h * ratio)];
      if (canvas.width !== cw || canvas.height !== ch) [canvas.width, canvas.height] = [cw, ch];
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, w, h);
      const at = place();
      context.imageSmoothingQuality = "high";
      // Zoomed in far, the picture's own pixels are shown without smoothing.
      context.imageSmoothingEnabled = !picture || at.width < 6 * picture.width;
      if (picture) context.drawImage(picture, at.left, at.top, at.width, at.height);
      // The divider moves across the picture, not across the empty sides of the stage.
      const [from, to] = [Math.max(0, at.left), Math.min(w, at.left + at.width)];
      const x = from + cut * (to - from);
      handle.style.left = `${x}px`;
      handle.setAttribute("aria-valuenow", Math.round(100 * cut));
      context.save();
      context.beginPath();
      context.rect(x, 0, w - x, h);
      context.clip();
      context.imageSmoothingEnabled = true;
      context.drawImage(heat, at.left, at.top, at.width, at.height);
      const { part, result } = now;
      if (result.verdict !== "good") {
        outline ??= diffad.scores.contour(result.fused, part.width, part.height, result.mapLimit);
        const onStage = new Path2D();
        onStage.addPath(outline, new DOMMatrix([at.width / part.width, 0, 0, at.height / part.height, at.left, at.top]));
        context.lineCap = "round";
        for (const [width, colour] of [[3.2, "rgba(0,0,0,0.45)"], [1.3, "#fff"]]) {
          context.lineWidth = width;
          context.strokeStyle = colour;
          context.stroke(onStage);
        }
        label(at, part, result.regions);
      }
      context.restore();
      spot(at);
    }

    function label(at, part, regions) {
      context.font = "650 10px system-ui, sans-serif";
      context.textAlign = "center";
      context.textBaseline = "middle";
      regions.slice(0, REGIONS_SHOWN).forEach(({ box }, i) => {
        const [x, y, w, h] = [at.left + (box[0] / part.size[0]) * at.width, at.top + (box[1] / part.size[1]) * at.height,
          (box[2] / part.size[0]) * at.width, (box[3] / part.size[1]) * at.height];
        if (pointed === i) {
          context.lineWidth = 1.5;
          context.strokeStyle = "#fff";
          context.strokeRect(x, y, w, h);
        }
        context.beginPath();
        context.arc(clamp(x, 9, stage.clientWidth - 9), clamp(y, 9, stage.clientHeight - 9), 8, 0, 7);
        context.fillStyle = "#fff";
        context.fill();
        context.fillStyle = "#10182b";
        context.fillText(i + 1, clamp(x, 9, stage.clientWidth - 9), clamp(y, 9, stage.clientHeight - 9) + 0.5);
      });
    }

    // The point that the evidence is about.
    function spot(at) {
      const point = now.choices.point;
      if (!point) return;
      context.beginPath();
      context.arc(at.left + point[0] * at.width, at.top + point[1] * at.height, 4.5, 0, 7);
      for (const [width, colour] of [[3, "rgba(0,0,0,0.5)"], [1.5, "#fff"]]) {
        context.lineWidth = width;
        context.strokeStyle = colour;
        context.stroke();
      }
    }

    // The pointer's place as fractions of the picture; null beside it.
    function pointAt(event) {
      const [box, at] = [stage.getBoundingClientRect(), place()];
      const x = (event.clientX - box.left - at.left) / at.width;
      const y = (event.clientY - box.top - at.top) / at.height;
      return x >= 0 && x < 1 && y >= 0 && y < 1 ? [x, y] : null;
    }

    function setCut(value) {
      [cut, dividerMoved] = [clamp(value, 0, 1), true];
      redraw();
    }

    function cutAt(event) {
      const [box, at] = [stage.getBoundingClientRect(), place()];
      const [from, to] = [Math.max(0, at.left), Math.min(box.width, at.left + at.width)];
      setCut((event.clientX - box.left - from) / (to - from));
    }

    // Zooms by a factor around the point under (clientX, clientY).
    function zoom(factor, clientX, clientY) {
      const scale = clamp(view.scale * factor, 1, DEEPEST);
      const [box, before] = [stage.getBoundingClientRect(), place()];
      const [sx, sy] = [clientX - box.left, clientY - box.top];
      const [px, py] = [(sx - before.left) / before.width, (sy - before.top) / before.height];
      view.scale = scale;
      const { width, height } = place();
      view = { scale, x: px + (box.width / 2 - sx) / width, y: py + (box.height / 2 - sy) / height };
      settle();
    }

    // Takes over the limits that place() sets, so that a drag back from the border shows at once.
    function settle() {
      const at = place();
      if (at.width > stage.clientWidth) view.x = (stage.clientWidth / 2 - at.left) / at.width;
      if (at.height > stage.clientHeight) view.y = (stage.clientHeight / 2 - at.top) / at.height;
      stage.classList.toggle("zoomed", view.scale > 1.001);
      redraw();
    }

    function zoomTo(index) {
      if (!now?.part.maps) return;
      const region = index === null ? null : now.result.regions[index];
      if (index !== null && !region) return;
      if (!region) view = { scale: 1, x: 0.5, y: 0.5 };
      else {
        const [w, h] = now.part.size;
        const [x, y, bw, bh] = region.box;
        const fit = Math.min(stage.clientWidth / w, stage.clientHeight / h);
        const scale = Math.min(stage.clientWidth / (bw * fit), stage.clientHeight / (bh * fit)) / 2.2;
        view = { scale: clamp(scale, 1.5, DEEPEST), x: (x + bw / 2) / w, y: (y + bh / 2) / h };
        // Moves the divider out of the way.
        const at = place();
        if (at.left + ((x / w) * at.width) < cut * stage.clientWidth) cut = 0.04;
        diffad.decide({ point: [(x + bw / 2) / w, (y + bh / 2) / h] });
      }
      settle();
    }

    const pointers = new Map();
    let [dragged, dividing] = [false, false];
    let entered = false; // pressed since the pointer entered: the wheel zooms the picture
    stage.addEventListener("pointerdown", (event) => {
      if (!now?.part.maps || event.button) return;
      dividing = !!event.target.closest(".divider") || (view.scale <= 1.001 && pointers.size === 0 && event.pointerType !== "touch");
      pointers.set(event.pointerId, event);
      [dragged, entered] = [false, true];
      stage.setPointerCapture(event.pointerId);
      if (event.target.closest(".divider")) handle.focus({ preventScroll: true });
    });
    stage.addEventListener("pointermove", (event) => {
      if (!now?.part.maps) return;
      drag(event);
      hover(event);
    });
    function drag(event) {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
      if (!dragged && Math.hypot(dx, dy) < 3) return;
      dragged = true;
      if (pointers.size === 2) {
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const span = (e) => Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY);
        zoom(span(event) / Math.max(1, span(before)), (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
      } else if (dividing) cutAt(event);
      else if (view.scale > 1) {
        const at = place();
        view = { ...view, x: view.x - dx / at.width, y: view.y - dy / at.height };
        settle();
      }
      pointers.set(event.pointerId, event);
    }
    const release = (event) => {
      if (!pointers.delete(event.pointerId) || dragged || event.type === "pointercancel") return;
      const point = pointAt(event);
      if (point && !event.target.closest(".divider")) diffad.decide({ point });
    };
    stage.addEventListener("pointerup", release);
    stage.addEventListener("pointercancel", release);
    stage.addEventListener("pointerleave", () => { entered = false; readout.hidden = true; diffad.look?.(null); });
    stage.addEventListener("dblclick", () => zoomTo(null));
    stage.addEventListener("wheel", (event) => {
      if (!now?.part.maps || (view.scale <= 1 && (event.deltaY > 0 || !(entered || event.ctrlKey)))) return; // the page scrolls on
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), event.clientX, event.clientY);
    }, { passive: false });
    handle.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, Home: -1, End: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      setCut(cut + by);
    });

    // The value under the pointer.
    function hover(event) {
      const point = event.target.closest(".divider") ? null : pointAt(event);
      readout.hidden = !point;
      if (!point) return;
      const { part, result } = now;
      const value = result.fused[Math.floor(point[1] * part.height) * part.width + Math.floor(point[0] * part.width)];
      readout.textContent = `${Math.floor(point[0] * part.size[0])}, ${Math.floor(point[1] * part.size[1])}: ${number(value)} σ`;
      diffad.look?.(point);
    }

    diffad.onResult((next) => {
      now = next;
      const { part, result, choices, fresh } = now;
      stage.classList.toggle("blank", !part?.maps);
      if (!part?.maps) return;
      if (fresh) {
        picture = null;
        view = { scale: 1, x: 0.5, y: 0.5 };
        stage.classList.remove("zoomed");
        stage.style.setProperty("--aspect", part.size[0] / part.size[1]);
        if (diffad.newest(part)) diffad.mark(part.link.sample);
        const first = Math.min(1, ...result.regions.slice(0, REGIONS_SHOWN).map((r) => r.box[0] / part.size[0]));
        if (!dividerMoved) cut = clamp(first - 0.06, 0.04, 0.34);
        const image = new Image();
        image.onload = () => {
          picture = image;
          redraw();
        };
        image.src = part.picture;
        preparation.textContent = part.prepared;
        preparation.hidden = !part.prepared;
      }
      outline = null;
      paint(heat, result.fused, part.width, part.height, part.top, choices.colormap, fading(result.mapLimit, choices.opacity));
      redraw();
    });
    new ResizeObserver(redraw).observe(stage);
    diffad.zoomTo = zoomTo;
    diffad.point = (index) => {
      pointed = index;
      redraw();
    };
    diffad.receiver(props, watch, trigger);
  }

  // The table of regions: box, area, mean and peak; a click on a row zooms to its region.
  function regions(element) {
    const body = element.querySelector(".regions-slot");
    let shown = "";
    diffad.onResult(({ result }) => {
      const html = result ? listed(result) : "";
      if (html !== shown) body.innerHTML = shown = html; // unchanged rows keep the focus
    });
    function listed({ regions: found, verdict }) {
      if (!found.length) return `<p class="quiet empty-regions">No region exceeds the ${verdict === "anomalous" ? "threshold" : "look limit"}.</p>`;
      const rows = found.slice(0, REGIONS_SHOWN).map((r, i) =>
        `<tr data-region="${i}"><th scope="row"><button title="Zoom to region ${i + 1}" aria-label="Zoom to region ${i + 1}">${i + 1}</button></th>` +
        `<td>${r.box[2]} × ${r.box[3]}</td><td>${r.box[0]}, ${r.box[1]}</td><td>${r.area}</td>` +
        `<td>${number(r.mean)}</td><td><b>${number(r.peak)}</b></td></tr>`);
      const more = found.length - REGIONS_SHOWN;
      const rest = more > 0 ? `<p class="quiet">and ${plural(more, "smaller region")}</p>` : "";
      return `<table class="regions"><thead><tr><td></td><th scope="col">size px</th><th scope="col">at</th><th scope="col">area px²</th>` +
        `<th scope="col">mean σ</th><th scope="col">peak σ</th></tr></thead><tbody>${rows.join("")}</tbody></table>${rest}`;
    }
    const rowOf = (event) => event.target.closest?.("tr[data-region]");
    element.addEventListener("click", (event) => rowOf(event) && diffad.zoomTo(Number(rowOf(event).dataset.region)));
    element.addEventListener("pointerover", (event) => diffad.point(rowOf(event) ? Number(rowOf(event).dataset.region) : null));
    element.addEventListener("pointerleave", () => diffad.point(null));
  }

  Object.assign(diffad, { paint, fading, viewer, regions });
})();
