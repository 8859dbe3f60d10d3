// A canvas on which a person paints where a defect is: opaque where it is. Drawing by pointer only; the picture below keeps
// its own size.
(() => {
  const diffad = (window.diffad ??= {});
  const LONGEST = 640; // of the canvas, px
  const COLOUR = "#2152d9";

  // tools: the buttons { draw, brush, width, erase, clear, save }; save(uri): the drawing as PNG, or null if it is empty.
  function brush(canvas, tools, save) {
    const context = canvas.getContext("2d", { willReadFrequently: true });
    let [drawing, erasing, last] = [false, false, null];

    function arm(on) {
      drawing = on;
      tools.draw.setAttribute("aria-pressed", on);
      tools.brush.hidden = !on;
      canvas.classList.toggle("armed", on);
    }
    function setErasing(on) {
      erasing = on;
      tools.erase.setAttribute("aria-pressed", on);
    }

    // Shows the drawing of another picture: width and height of that, and a PNG in grey, or null.
    function show([width, height], uri) {
      const factor = Math.min(1, LONGEST / Math.max(width, height));
      [canvas.width, canvas.height] = [Math.max(1, Math.round(width * factor)), Math.max(1, Math.round(height * factor))];
      arm(false);
      setErasing(false);
      if (!uri) return;
      const image = new Image();
      image.onload = () => {
        context.drawImage(image, 0, 0, canvas.width, canvas.height);
        const picture = context.getImageData(0, 0, canvas.width, canvas.height);
        for (let i = 0; i < picture.data.length; i += 4) {
          const inside = picture.data[i] > 127;
          picture.data.set([0x21, 0x52, 0xd9, inside ? 255 : 0], i);
        }
        context.putImageData(picture, 0, 0);
      };
      image.src = uri;
    }

    const isEmpty = () => !context.getImageData(0, 0, canvas.width, canvas.height).data.some((value, i) => i % 4 === 3 && value > 127);
    const pointAt = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
    };
    function stroke(to) {
      context.globalCompositeOperation = erasing ? "destination-out" : "source-over";
      Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: COLOUR, lineWidth: Number(tools.width.value) * (canvas.width / 400) });
      context.beginPath();
      context.moveTo(...(last ?? to));
      context.lineTo(to[0] + 0.01, to[1]);
      context.stroke();
      context.globalCompositeOperation = "source-over";
      last = to;
    }
    canvas.addEventListener("pointerdown", (event) => {
      if (!drawing || event.button) return;
      canvas.setPointerCapture(event.pointerId);
      last = null;
      stroke(pointAt(event));
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => last && canvas.hasPointerCapture(event.pointerId) && stroke(pointAt(event)));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
    tools.draw.addEventListener("click", () => arm(!drawing));
    tools.erase.addEventListener("click", () => setErasing(!erasing));
    tools.clear.addEventListener("click", () => context.clearRect(0, 0, canvas.width, canvas.height));
    tools.save.addEventListener("click", () => save(isEmpty() ? null : canvas.toDataURL("image/png")));
    return { show };
  }

  Object.assign(diffad, { brush });
})();
