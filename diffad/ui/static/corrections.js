// What a person says of a verdict: right, or wrong and what the part is. The same buttons and keys in Inspect, for the
// chosen row of a batch, and in the history. Whoever hears "diffad:corrected" on the document learns of every correction.
(() => {
  const diffad = (window.diffad ??= {});
  const KEPT = "diffad-keep";
  const WORDS = { right: "right", good: "wrong, it is good", defective: "wrong, it is defective" };

  // Connects the buttons inside root. say(correction): a button was pressed; "" takes the correction back.
  // Returns show(state): state is null without anything to correct, else { verdict, correction, may, failed }.
  function correctionButtons(root, say) {
    const bar = root.querySelector(".correction");
    const said = bar.querySelector(".said");
    let now = null;
    for (const button of bar.querySelectorAll("button")) button.addEventListener("click", () => {
      const { correction } = button.dataset;
      say(button.getAttribute("aria-pressed") === "true" ? "" : correction);
    });
    function show(state) {
      now = state;
      bar.hidden = !state || (!state.failed && !state.may && !state.correction);
      if (bar.hidden) return;
      for (const button of bar.querySelectorAll("button")) {
        const { correction } = button.dataset;
        const pressed = state.correction === correction;
        button.hidden = !!state.failed || !state.may;
        button.setAttribute("aria-pressed", pressed);
        // That a part is what the verdict says already is no correction.
        button.disabled = !pressed && { good: "good", anomalous: "defective" }[state.verdict] === correction;
      }
      bar.querySelector(".quiet").hidden = !!state.failed || !state.may;
      said.textContent = state.failed ?? (state.may ? "" : `somebody said: ${WORDS[state.correction]}`);
      said.classList.toggle("warm", !!state.failed);
    }
    return { show, state: () => now };
  }

  const announce = (detail) => document.dispatchEvent(new CustomEvent("diffad:corrected", { detail }));

  // The buttons below the verdict in Inspect.
  function correction(element, props, watch, trigger) {
    let value = null; // of the newest result: { turn, id, correction, may, failed }
    let verdict = null;
    const buttons = correctionButtons(element, (said) => trigger("submit", { correction: said }));
    const draw = () => {
      const { part } = diffad.state();
      buttons.show(value && part?.maps && part.turn === value.turn ? { ...value, verdict } : null);
    };
    diffad.onResult(({ result }) => {
      verdict = result?.verdict;
      draw();
    });
    watch("value", () => {
      const before = value;
      value = props.value?.turn === undefined ? null : props.value;
      draw();
      if (value && before?.turn === value.turn && before.id === value.id && before.correction !== value.correction)
        announce({ id: value.id, correction: value.correction, from: "inspect", reopened: value.reopened });
    });
    document.addEventListener("diffad:corrected", ({ detail }) => {
      if (detail.from === "inspect" || !value || detail.id !== value.id) return;
      value = { ...value, correction: detail.correction };
      draw();
    });
  }

  // The letters of the buttons in sight, unless something else takes them.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || event.repeat) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.target.closest?.("input:not([type=range], [type=checkbox]), textarea, select, [role=listbox], [contenteditable]")) return;
    if (event.key.length !== 1) return;
    const button = [...document.querySelectorAll(`.correction button[data-key="${CSS.escape(event.key.toUpperCase())}"]`)]
      .find((each) => each.offsetParent && !each.disabled);
    if (!button) return;
    event.preventDefault();
    button.click();
  });

  // Whether inspections are kept is remembered in this browser.
  const keeps = () => {
    try { return localStorage.getItem(KEPT) !== "no"; } catch { return true; }
  };
  const keep = (on) => {
    try { localStorage.setItem(KEPT, on ? "yes" : "no"); } catch { /* a browser that stores nothing */ }
  };

  Object.assign(diffad, { correctionButtons, correction, announce, keeps, keep });
})();
