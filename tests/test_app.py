"""`python app.py`, as the README says it."""

from __future__ import annotations

import json
import urllib.request

from conftest import serving


def test_it_serves_the_page_with_the_bundled_models():
    with serving() as address:
        with urllib.request.urlopen(address, timeout=60) as page:
            assert b"gradio" in page.read()
        with urllib.request.urlopen(f"{address}health", timeout=60) as health:
            models = json.load(health)["models"]
    assert len(models) == 2 and "gear" in models[0]["categories"]
