"""The History tab's HTML, which history.js and history_detail.js fill."""

from __future__ import annotations

from diffad.ui.cards import CORRECTION

TAKEN_AWAY = {"csv": "CSV", "json": "JSON", "zip": "Everything, zip"}

_CHOICES = {
    "Category": {"": "all"},
    "Verdict": {"": "all", "anomalous": "anomalous", "look": "look at it", "good": "good"},
    "Correction": {
        "": "any or none", "none": "none", "any": "any", "right": "right", "good": "it is good",
        "defective": "it is defective",
    },
    "Who": {"": "everybody"},
}  # fmt: skip


def _choice(title: str) -> str:
    options = "".join(f'<option value="{key}">{words}</option>' for key, words in _CHOICES[title].items())
    name = title.lower()
    return f'<label class="of-{name}">{title} <select name="{name}">{options}</select></label>'


FILTERS = f"""
  <form class="card history-filters" aria-label="Which inspections are listed">
    <label class="wide">Name <input type="search" name="text" placeholder="part of the file's name"></label>
    {"".join(map(_choice, _CHOICES))}
    <label>From <input type="date" name="since"></label>
    <label>To <input type="date" name="until"></label>
    <label>Score from <input type="number" name="score_from" step="any"></label>
    <label>to <input type="number" name="score_to" step="any"></label>
    <button type="reset" class="plain-button">Show all</button>
  </form>"""

BRUSH = """
      <div class="tools">
        <label class="quiet">map <input type="range" min="0" max="1" step="0.05" value="0.7" class="opacity">
        </label>
        <button type="button" class="plain-button draw" aria-pressed="false">Draw the defect</button>
        <span class="brush" hidden><label class="quiet">brush
          <input type="range" min="4" max="120" value="32" class="width"></label>
          <button type="button" class="plain-button erase" aria-pressed="false">Erase</button>
          <button type="button" class="plain-button clear">Clear</button>
          <button type="button" class="plain-button save">Save</button></span>
      </div>"""

DETAIL = f"""
  <section class="card history-detail" aria-label="The chosen inspection">
    <p class="quiet none">Choose a row to see its picture, map and settings.</p>
    <div class="chosen" hidden>
      <div class="section-head"><h3></h3>
        <button type="button" class="plain-button close" aria-label="Close">✕</button></div>
      <div class="plate-of-history"><img alt="The inspected picture">
        <canvas class="heat" role="img" aria-label="Its anomaly map"></canvas>
        <canvas class="drawn" role="img" aria-label="The defect as a person drew it"></canvas></div>{BRUSH}
      <h2></h2><p class="reading"></p><div class="notes"></div>
      {CORRECTION}
      <dl class="facts-of-history"></dl>
      <ol class="events" aria-label="What people said"></ol>
      <div class="take">
        <button type="button" class="plain-button reopen">Open in Inspect</button>
        <button type="button" class="plain-button undo" hidden>Undo</button>
        <button type="button" class="plain-button delete" hidden>Delete</button>
      </div>
    </div>
  </section>"""

BOARD = f"""
<div class="history">{FILTERS}
  <section class="card history-rows">
    <div class="section-head">
      <h2 aria-live="polite">History</h2>
      <div class="take">
        <button type="button" class="plain-button delete-chosen" hidden>Delete the chosen</button>{
    "".join(
        f'<button type="button" class="plain-button" data-take="{kind}">{label}</button>'
        for kind, label in TAKEN_AWAY.items()
    )
}</div>
    </div>
    <p class="warm trouble" role="status"></p>
    <div class="history-scroller"><table role="grid" tabindex="0" aria-label="Kept inspections"></table></div>
    <div class="pager"><button type="button" class="plain-button newer" aria-label="Previous page">←</button>
      <span class="quiet where"></span>
      <button type="button" class="plain-button older" aria-label="Next page">→</button></div>
    <p class="quiet keys">↑ ↓ choose a row, Space marks it, Enter opens it in Inspect. Y, G, B correct it.</p>
  </section>{DETAIL}
  <section class="card history-drift">
    <div class="section-head"><h3>Drift</h3><div class="chips about" role="group"
      aria-label="Category of drift and report"></div></div>
    <div class="drift-slot"><p class="quiet">Nothing is kept yet.</p></div>
  </section>
  <section class="card history-report">
    <div class="section-head"><h3>Report</h3><span class="quiet period"></span></div>
    <div class="report-slot"><p class="quiet">Nothing is kept yet.</p></div>
  </section>
  <dialog class="confirm" aria-label="Delete inspections"><p></p>
    <div class="take"><button type="button" class="plain-button yes">Delete</button>
    <button type="button" class="plain-button no">Keep</button></div></dialog>
</div>"""
