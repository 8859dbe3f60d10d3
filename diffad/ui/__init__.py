"""The page. The only room of the house that knows Gradio.

layout: the components · page: what they do · batch: many pictures · server: how it is served
cards: what is sent, and the HTML it fills · downloads: what a person takes away
files: what comes and is made, how long it stays · turns: who may use the network now
endpoints: the same work for programs · gate, calls, logins: who is let in, and with what
In the browser: scores.js judges, page.js holds the choices, viewer.js, verdict.js, evidence.js, player.js and
batch.js draw; page.css and batch.css are the looks.
"""

from diffad.ui.page import build_app
from diffad.ui.server import serve

__all__ = ["build_app", "serve"]
