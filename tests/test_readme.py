"""What the README and the results show works as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "METHOD.md", "RESULTS.md", "CONTRIBUTING.md")
ALL = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)


def test_the_library_example_runs(one_round, capsys, monkeypatch):
    """With 20 steps of repair instead of 90."""
    example, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)  # the other is in test_interfaces
    assert example.count("steps=90") == 1
    monkeypatch.chdir(ROOT)
    exec(example.replace("steps=90", "steps=20"), {})
    lines = capsys.readouterr().out.splitlines()
    category, anomalous, score, threshold = lines[0].split()
    assert (category, anomalous) == ("gear", "True") and float(score) > float(threshold)
    assert lines[1].split()[0] == "anomalous" and float(lines[1].split()[1]) < float(threshold)
    assert lines[4].startswith("0 ") and float(lines[-1].split()[1]) < float(score) / 2


def test_every_file_they_name_is_there():
    named = re.findall(r"\[[^]]*\]\(([^):]+)\)|`((?:assets|checkpoints|tests|diffad)/[\w./]+)`", ALL)
    assert named
    for path in (image or code for image, code in named):
        assert (ROOT / path).exists(), path


def test_alpha_is_explained_in_the_same_words_everywhere(capsys):
    from diffad.cli.main import main
    from diffad.inspector import Inspector

    for command in ("inspect", "repair", "evaluate"):
        main([command, "--help"])
    package = ("method/fusion.py", "measuring/ablation_settings.py", "ui/cards.py", "ui/endpoints.py")
    names = ("METHOD.md", *(f"diffad/{name}" for name in package))
    files = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    files |= {"help": capsys.readouterr().out, "Inspector.inspect": Inspector.inspect.__doc__}
    said = "0 features only, 1 pixels only; at 0.5 a σ of the pixels counts a twentieth"
    of_door = {"help": 3, "diffad/ui/endpoints.py": 2}
    for name, text in files.items():
        plain = re.sub(r'["\s]+', " ", text)
        assert plain.count(said) == of_door.get(name, 1), name
    assert "rest is the features" not in "".join(files.values())


def test_every_command_they_name_exists():
    from diffad.cli.main import main

    for command in set(re.findall(r"^(?:\.venv/bin/)?diffad (\w+)|`diffad (\w+)", ALL, re.MULTILINE)):
        try:
            main([*filter(None, command), "--help"])
        except SystemExit as end:
            assert end.code in (0, None)
