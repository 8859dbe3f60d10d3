// Input on the Inspect tab other than Gradio's controls: samples, keys, typed numbers, uploads, pastes and downloads.
(() => {
  const diffad = (window.diffad ??= {});

  // Samples and keys

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

  // Goes to the next picture of the batch if one of its pictures is open (batch.js handles the event), else to the next
  // sample.
  function walk(by) {
    const event = new CustomEvent("diffad:walk", { detail: { by }, cancelable: true });
    if (!document.dispatchEvent(event)) return;
    const buttons = [...document.querySelectorAll("#samples button[data-sample]")];
    const now = buttons.findIndex((b) => b.classList.contains("on"));
    buttons[now < 0 ? (by > 0 ? 0 : buttons.length - 1) : (now + by + buttons.length) % buttons.length]?.click();
  }

  // Browsers allow camera and clipboard on secure pages only; elsewhere Gradio's buttons for them end in an error.
  if (!isSecureContext) document.documentElement.classList.add("insecure");

  // Gradio would open a dropdown's list when Tab leaves it.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Tab" && event.target.matches?.(".secondary-wrap input")) event.stopPropagation();
  }, true);

  const press = (selector) => () => document.querySelector(`${selector}:not(:disabled)`)?.click();
  const KEYS = {
    ArrowRight: () => walk(1), ArrowLeft: () => walk(-1), " ": press(".player:not([data-state=empty]) .play"),
    r: press("#repair"), d: press(".player .difference"), 0: () => diffad.zoomTo(null),
    "?": () => document.querySelector("#shortcuts").showModal(),
  };

  // Shortcuts work on the Inspect tab unless the focused element uses the key itself; the help opens everywhere.
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

  // Gradio passes on whatever is typed and corrects the box afterwards. So numbers outside the slider's range are kept
  // from it, and the box is corrected on leaving, to the slider's last number if it is empty.
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

  // Gradio's sliders report a release by the pointer only, so the arrow keys send one as well.
  document.addEventListener("keyup", (event) => {
    const moves = /^(Arrow|Page|Home|End)/.test(event.key);
    if (moves && event.target.matches?.("#controls input[type=range]"))
      event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#keys-button")) document.querySelector("#shortcuts").showModal();
  });

  // Requests are numbered in the order in which the user makes them; the server answers the newest. An upload counts
  // from its beginning. When a picture is removed, Gradio sends the old path, so the click on the cross is noted here.
  let turn = 0;
  let begun = 0; // the turn of an upload under way
  let cleared = false;
  for (const name of ["click", "change", "drop", "paste"])
    document.addEventListener(name, ({ target }) => {
      if (!target.closest?.("#picture")) return;
      cleared = name === "click" && !!target.closest(".icon-button-wrapper button");
      begun = name === "click" ? 0 : ++turn;
    }, true);
  const nextTurn = (picture, mine = ++turn) => {
    if (picture) diffad.inspecting();
    return mine;
  };
  const uploaded = (file) => {
    if (cleared) file = null;
    const mine = nextTurn(file, (file && begun) || undefined);
    [begun, cleared] = [0, false];
    return [mine, file];
  };

  // Pictures in a format that the browser cannot draw are shown as the server read them.
  function substitute(image) {
    const { part } = diffad.state();
    const known = part?.maps && part.turn === turn;
    image.style.visibility = known ? "" : "hidden";
    if (known && image.src !== part.picture) image.src = part.picture;
  }
  document.addEventListener("error", ({ target }) => target.matches?.("#picture img") && substitute(target), true);
  document.addEventListener("load", ({ target }) => target.matches?.("#picture img") && (target.style.visibility = ""), true);

  function substituteBroken() {
    for (const image of document.querySelectorAll("#picture img")) if (image.complete && !image.naturalWidth) substitute(image);
  }

  // A picture pasted anywhere on the tab is handled like a dropped one.
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

  // A busy button looks like one (page.css) and cannot be pressed again.
  const busy = (id, on) => document.getElementById(id)?.setAttribute("aria-busy", on);
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("button[aria-busy=true]")) event.stopImmediatePropagation();
  }, true);

  // Saves a file that the server has made.
  const save = (file) => Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name }).click();

  Object.assign(diffad, {
    samples, mark, busy, save, nextTurn, uploaded, substituteBroken,
    // Whether this part answers the newest request.
    newest: (part) => part.turn === turn,
  });
})();
