"""Open the inspection page with the bundled models: python app.py"""

from diffad.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["serve"]))
