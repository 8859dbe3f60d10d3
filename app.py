"""Opens the inspection page with the bundled models: python app.py"""

from diffad.checkpoint import bundled
from diffad.inspector import Inspector
from diffad.ui import serve

if __name__ == "__main__":
    checkpoints = bundled()
    if not checkpoints:
        raise SystemExit("No model in checkpoints/: train one with `diffad train`, or clone again.")
    serve({path.stem: Inspector.load(path) for path in checkpoints})
