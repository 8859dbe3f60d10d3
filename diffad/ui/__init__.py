"""The web page and the endpoints for programs. The only room of the house that uses Gradio.

page puts the page together: inspect_tab, batch_tab and history_tab say what its tabs do, layout what is on
the first, history_board, history_answers and history_charts what is on the last.
keeping: inspections on their way into the history · corrections, batch_history: what people say of them
judging: how the browser judges · access: what a login may do
session: what one open page has asked for · link: the page's address · batch: a batch on the server
cards: what is sent to the browser, and the HTML that it fills · downloads: files that people take away
endpoints: the same work for programs · server: how page and endpoints are served
gate, calls, logins: who is let in, and with what · turns: who may use the network now
files: how long uploads and results stay

In the browser, in static/: scores.js computes, page.js holds the choices, page_input.js takes keys and
uploads; viewer.js, verdict.js, evidence.js and player.js draw Inspect; batch.js, batch_chart.js,
batch_table.js and measured.js draw Batch; history.js, history_detail.js and brush.js draw History;
corrections.js and batch_corrections.js hear what people say of a verdict; words.js and elements.js are
shared.
"""

from diffad.ui.page import build_app
from diffad.ui.server import serve

__all__ = ["build_app", "serve"]
