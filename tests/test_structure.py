"""The house: who may import whom, read from the source without importing it."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import diffad

PACKAGE = Path(diffad.__file__).parent
ROOMS = (  # a room imports from those before it, and a folder counts as one room
    "output", "pictures", "method", "synthetic", "checkpoint", "verdicts", "inspection", "recognition",
    "repairing", "inspector", "report", "teaching", "measuring", "batch", "benchmark", "workspace", "ui",
    "cli",
)  # fmt: skip
NUMERIC = {  # what is mathematics alone: torch, NumPy and OpenCV besides the standard library
    f"method.{name}"
    for name in ("devices", "diffusion", "encoding", "gaussian", "metrics", "nuisances", "scoring",
                 "similarity", "calibration", "fusion", "image_score", "regions")
} | {"pictures.arrays"}  # fmt: skip
NETWORKS = {"method.unet", "method.features"}
GROUND = {"torch", "numpy", "cv2"}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.name.startswith("__") or path.parent.name == "ui"
}


def room(module: str) -> int:
    name = module.partition(".")[0]
    assert name in ROOMS, f"{name} is no room: say in ROOMS where it belongs"
    return ROOMS.index(name)


@cache
def imports(path: Path) -> frozenset[tuple[str, ...]]:
    """Everything imported anywhere in a file, inside functions and for types too, as dotted parts.

    `from diffad import X` and `diffad.X` count as X's home, so that the door is no way around the order.
    """
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide the direction"
            found |= {(*node.module.split("."), alias.name) for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "diffad":
            found.add(("diffad", node.attr))
    return frozenset(found)


def known(module: str) -> set[str]:
    """The package's modules that a module imports, whichever way."""
    found = set()
    for parts in imports(MODULES[module]):
        if parts[0] == "diffad" and len(parts) > 1 and parts[1] != "__version__":
            parts = (*diffad._HOMES[parts[1]].split("."),) if parts[1] in diffad._HOMES else parts[1:]
            full = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            found.add(next((name for name in full if name in MODULES), full[-1]))
    return found - {module}


def test_every_room_is_there():
    assert {module.partition(".")[0] for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_those_before_it(module):
    later = {other for other in known(module) if room(other) > room(module)}
    assert not later, f"{module} imports {later}"


def test_no_file_imports_itself_in_the_end():
    order: list[str] = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in order and module in MODULES:
            for other in sorted(known(module)):
                visit(other, (*path, module))
            order.append(module)

    for module in MODULES:
        visit(module, ())
    assert sorted(order) == sorted(MODULES)


@pytest.mark.parametrize("module", sorted(NUMERIC))
def test_mathematics_knows_only_torch_numpy_and_opencv(module):
    tops = {parts[0] for parts in imports(MODULES[module])}
    assert tops - GROUND - set(sys.stdlib_module_names) <= {"diffad", "__future__"}
    assert known(module) <= NUMERIC


def test_only_the_page_knows_gradio():
    users = {
        module for module, path in MODULES.items() if any(parts[0] == "gradio" for parts in imports(path))
    }
    assert users and all(module.startswith("ui") for module in users)


def test_training_and_inspector_do_not_know_each_other():
    assert "inspector" not in known("teaching.training")
    assert not any(module.startswith("teaching") for module in known("inspector"))


def test_only_the_networks_use_bf16():
    """Whoever calls them stays outside autocast, so that scores and divergences are float32."""
    users = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if "autocast" in (getattr(node, "id", None), getattr(node, "attr", None))
    }
    assert users == NETWORKS


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "numpy", "cv2", "gradio", "timm", "PIL", "matplotlib")
    code = f"import sys, diffad, diffad.cli; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert said.stdout.strip() == "[]"


def test_the_public_door_opens_on_what_it_names():
    """Every name leads home, the list for type checkers is the same one, and nothing else gets out."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for_types = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("diffad.")
        for alias in node.names
    }
    assert for_types == {name: f"diffad.{home}" for name, home in diffad._HOMES.items()}
    assert set(diffad.__all__) == {
        "CheckpointError", "DataError", "Inspection", "Inspector", "Region", "RepairOptions", "RepairStep",
        "TrainConfig", "__version__", "evaluate", "find_samples", "train",
    }  # fmt: skip
    for name in diffad.__all__:
        value = getattr(diffad, name)
        assert name == "__version__" or value.__module__ == for_types[name], name
    with pytest.raises(AttributeError, match="no attribute 'UNet'"):
        _ = diffad.UNet


def test_errors_a_person_may_cause_are_value_errors():
    assert issubclass(diffad.DataError, ValueError) and issubclass(diffad.CheckpointError, ValueError)
