"""The web page and the endpoints for programs. The only room of the house that uses Gradio.

page puts the page together: inspect_tab and batch_tab say what its two tabs do, layout what is on the first.
session: what one open page has asked for · link: the page's address · batch: a batch on the server
cards: what is sent to the browser, and the HTML that it fills · downloads: files that people take away
endpoints: the same work for programs · server: how page and endpoints are served
gate, calls, logins: who is let in, and with what · turns: who may use the network now
files: how long uploads and results stay

In the browser, in static/: scores.js computes, page.js holds the choices, page_input.js takes keys and
uploads; viewer.js, verdict.js, evidence.js and player.js draw Inspect; batch.js, batch_chart.js,
batch_table.js and measured.js draw Batch; words.js and elements.js are shared.
"""

from diffad.ui.page import build_app
from diffad.ui.server import serve

__all__ = ["build_app", "serve"]
