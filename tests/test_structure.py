"""The house: who may import whom, read from the source without importing it."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import diffad

PACKAGE = Path(diffad.__file__).parent
FLOORS = {
    0: {"depth", "devices", "diffusion", "gaussian", "metrics", "nuisances", "quality", "scoring"},
    1: {"unet", "features"},
    2: {"reconstruction", "rehearsal", "data", "masks", "duplicates", "labels", "pose", "tiling",
        "inspection", "synthetic", "checkpoint", "render", "output"},
    3: {"training", "profiles", "sizes", "inspector", "ablation", "evaluation", "evaluation_report", "report",
        "peers", "batch", "benchmark", "stress"},
    4: {"cli", "commands", "console", "ui"},
}
SPLIT_BY_JOB = {"synthetic"}  # synthetic_*.py live on the same floor
GROUND = {"torch", "numpy", "cv2"}  # all that floor 0 may know besides the standard library


def files() -> dict[str, list[Path]]:
    """Every file of the package by module name; a folder counts as one module."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).with_suffix("").parts[0], []).append(path)
    return {name: paths for name, paths in found.items() if not name.startswith("__")}


def floor(module: str) -> int:
    for number, modules in FLOORS.items():
        if module in modules or module.split("_")[0] in SPLIT_BY_JOB & modules:
            return number
    pytest.fail(f"{module} has no floor: say in FLOORS where it belongs")


@cache
def imports(path: Path) -> frozenset[tuple[str, ...]]:
    """Everything imported anywhere in a file, inside functions and for types too, as dotted parts.

    `from diffad import X` and `diffad.X` count as X's home, so that the door is no way around the floors.
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


def siblings(module: str) -> set[str]:
    """The package's modules that a module imports, whichever way."""
    found = set()
    for path in files()[module]:
        for parts in imports(path):
            if parts[0] == "diffad" and len(parts) > 1 and parts[1] != "__version__":
                found.add(diffad._HOMES.get(parts[1], parts[1]))
    return found - {module}


MODULES = sorted(files())


def test_every_planned_module_is_seen():
    assert set().union(*FLOORS.values()) <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_never_lead_upstairs(module):
    above = {other for other in siblings(module) if floor(other) > floor(module)}
    assert not above, f"{module} (floor {floor(module)}) imports {above}"


def test_imports_have_no_cycle():
    order: list[str] = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in order:
            for other in sorted(siblings(module)):
                visit(other, (*path, module))
            order.append(module)

    for module in MODULES:
        visit(module, ())
    assert sorted(order) == MODULES


@pytest.mark.parametrize("module", sorted(FLOORS[0]))
def test_the_ground_floor_knows_only_torch_numpy_and_opencv(module):
    tops = {parts[0] for path in files()[module] for parts in imports(path)}
    assert tops - GROUND - set(sys.stdlib_module_names) <= {"diffad", "__future__"}
    assert siblings(module) <= FLOORS[0]


def test_only_the_page_knows_gradio():
    users = {
        name for name in MODULES for path in files()[name] if any(p[0] == "gradio" for p in imports(path))
    }
    assert users == {"ui"}


def test_training_and_inspector_do_not_know_each_other():
    assert "inspector" not in siblings("training") and "training" not in siblings("inspector")


def test_only_the_networks_use_bf16():
    """Whoever calls them stays outside autocast, so that scores and divergences are float32."""
    users = {
        name
        for name in MODULES
        for path in files()[name]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if "autocast" in (getattr(node, "id", None), getattr(node, "attr", None))
    }
    assert users == FLOORS[1]


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
        "CheckpointError", "DataError", "Inspection", "Inspector", "Region", "RepairStep", "TrainConfig",
        "__version__", "evaluate", "find_samples", "train",
    }  # fmt: skip
    for name in diffad.__all__:
        value = getattr(diffad, name)
        assert name == "__version__" or value.__module__ == for_types[name], name
    with pytest.raises(AttributeError, match="no attribute 'UNet'"):
        _ = diffad.UNet


def test_errors_a_person_may_cause_are_value_errors():
    assert issubclass(diffad.DataError, ValueError) and issubclass(diffad.CheckpointError, ValueError)
