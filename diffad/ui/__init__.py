"""The page. The only room of the house that knows Gradio.

layout: the components · page: what they do · server: how it is served · endpoints: the same work for programs
cards: results as HTML, SVG and pictures · downloads: what a person takes away · files: uploads in, files out
page.css, page.js: its looks and its four live parts
"""

from diffad.ui.page import build_app
from diffad.ui.server import serve

__all__ = ["build_app", "serve"]
