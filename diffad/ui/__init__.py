"""The web page and the endpoints for programs. Only this package uses Gradio.

    page         assembles the page
    inspect_tab  events of the tab Inspect, whose components are in layout
    batch_tab    components and events of the tab Batch; a running batch is in batch
    teach_tab    components and events of the tab Teach, with teach_layout, teach_board and taught_card
    models       the models with the categories that were taught to them
    history_tab  components and events of the tab History, with history_board, history_answers, history_charts
    keeping      inspections on their way into the history
    corrections, batch_history  what people say of verdicts
    judging      how the browser judges
    access       what a login may do
    session      the state of one open page
    link         the page's address, which holds its settings
    cards        data and HTML for the browser
    downloads    files that users download
    endpoints    the endpoints for programs
    server       starts the web server
    gate, calls  check requests; logins checks passwords
    turns        shares the network among users
    files        stores uploads and results for a limited time

In the browser, in static/: scores.js computes, page.js holds the choices, page_input.js takes keys and
uploads; viewer.js, verdict.js, evidence.js and player.js draw Inspect; batch.js, batch_chart.js,
batch_table.js and measured.js draw Batch; history.js, history_detail.js and brush.js draw History; teach.js
draws Teach; corrections.js and batch_corrections.js hear what people say of a verdict; words.js and
elements.js are shared.
"""

from diffad.ui.page import build_app
from diffad.ui.server import serve

__all__ = ["build_app", "serve"]
