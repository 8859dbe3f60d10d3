// The Teach tab: previews that leave pictures out.
(() => {
  const diffad = (window.diffad ??= {});

  function offered(element, props, watch, trigger) {
    element.addEventListener("click", (event) => {
      const tile = event.target.closest("[data-offered]");
      if (tile && !tile.disabled) trigger("select", { offered: Number(tile.dataset.offered) });
    });
  }

  Object.assign(diffad, { offered });
})();
