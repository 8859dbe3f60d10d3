// What a person says of the selected row of a batch, and what is said of its rows in Inspect and in the history.
(() => {
  const diffad = (window.diffad ??= {});

  // now(): { run, view, listed } of the batch; limits(): by which its rows are judged now; redraw(): shows changed rows.
  function batchCorrections(root, { now, limits, describe, redraw, server }) {
    const buttons = diffad.correctionButtons(root, say);
    const question = root.querySelector(".correction > .quiet");

    const selected = () => {
      const { run, view, listed } = now();
      const row = run?.kept && view.selected !== null ? run.rows[view.selected] : null;
      return row && !row.error && listed.includes(row) ? row : null;
    };

    function offer() {
      const row = selected();
      buttons.show(row ? { verdict: row.verdict, correction: row.correction ?? "", may: now().run.may } : null);
      if (row) question.textContent = `${row.name.split("/").pop()}: is it right?`;
    }

    async function say(correction) {
      const [{ run }, row] = [now(), selected()];
      const answer = await server.say({ run: run.id, index: row.index, correction, limits: limits() });
      if (now().run !== run) return;
      if (answer?.id === undefined) return describe(answer?.refused ?? "The server did not answer: please press again.");
      [row.id, row.correction] = [answer.id, answer.correction];
      diffad.announce({ id: row.id, correction: row.correction, from: "batch" });
      redraw();
    }

    document.addEventListener("diffad:corrected", ({ detail: { id, correction, from, reopened } }) => {
      const { run, view } = now();
      if (!run || from === "batch") return;
      const opened = from === "inspect" && reopened && view.open !== null;
      const row = opened ? run.rows[view.open] : run.rows.find((each) => each.id === id);
      if (!row) return;
      [row.id, row.correction] = [id, correction];
      redraw();
    });
    return { offer };
  }

  Object.assign(diffad, { batchCorrections });
})();
