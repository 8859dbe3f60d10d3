"""Opens the inspection page with the bundled models: python app.py"""

from diffad.inspector import Inspector
from diffad.ui import bundled_checkpoints, serve

if __name__ == "__main__":
    checkpoints = bundled_checkpoints()
    if not checkpoints:
        raise SystemExit("There is no model in checkpoints/: train one with `diffad train`.")
    try:
        inspectors = {path.stem: Inspector.load(path) for path in checkpoints}
    except ValueError as error:  # CheckpointError, in words
        raise SystemExit(str(error)) from error
    serve(inspectors)
