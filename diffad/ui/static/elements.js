// Small pieces of HTML.
(() => {
  const diffad = (window.diffad ??= {});

  const element = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };

  // Fills a box unless it was filled for the same key. A child with the same data-key keeps the focus.
  function refresh(box, key, fill) {
    if (box.dataset.made === key) return;
    const focused = box.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    fill();
    box.dataset.made = key;
    if (focused) box.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  // A row of buttons of which one is pressed. entries: [key, text, count or nothing].
  function chips(box, entries, pressed, choose) {
    refresh(box, JSON.stringify([entries, pressed]), () => box.replaceChildren(...entries.map(([key, text, count]) => {
      const chip = element("button", { type: "button", className: "chip" }, text);
      if (count !== undefined) chip.append(element("span", {}, String(count)));
      chip.setAttribute("aria-pressed", key === pressed);
      chip.addEventListener("click", () => choose(key));
      chip.dataset.key = key;
      return chip;
    })));
  }

  Object.assign(diffad, { element, refresh, chips });
})();
