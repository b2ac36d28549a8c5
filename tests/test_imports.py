"""Imports go one way; the command line does not load torch before it must."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segrow"
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Absolute names of all modules (and names in them) that a file imports."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{name.name}" for name in node.names}
    return found


def within(path: Path) -> set[str]:
    """First two parts of segrow's modules that a file imports: {"losses", "methods.base"}."""
    ours = {name.removeprefix("segrow.") for name in imports(path) if name.startswith("segrow.")}
    return {
        ".".join(name.split(".")[:2]) if name.startswith("methods.") else name.split(".")[0] for name in ours
    }


def test_the_walk_sees_imports() -> None:
    assert "losses" in within(PACKAGE / "methods" / "ssul.py")
    assert "methods.base" in within(PACKAGE / "methods" / "ssul.py")
    assert len(FILES) > 30


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_methods_know_neither_engine_nor_data(path: Path) -> None:
    allowed = {"methods.base", "methods.parts", "losses", "medians", "argmax", "model", "batch"}
    allowed |= {"scenario", "errors", "shapes"}
    own = {"methods"} if path.stem == "base" else set()  # it looks the methods up by name
    assert within(path) <= allowed | own


@pytest.mark.parametrize("path", sorted((PACKAGE / "engine").glob("*.py")), ids=lambda p: p.stem)
def test_engine_knows_no_command_and_no_single_method(path: Path) -> None:
    found = within(path)
    assert not found & {"cli", "commands", "demo", "report", "predict", "grow"}
    assert {name for name in found if name.startswith("methods")} <= {"methods.base"}


@pytest.mark.parametrize(
    "path",
    [
        *(PACKAGE / f for f in ("scenario.py", "losses.py", "memory.py")),
        *sorted((PACKAGE / "model").glob("*.py")),
    ],
    ids=lambda p: p.stem,
)
def test_the_lower_half_knows_nothing_of_the_upper(path: Path) -> None:
    found = within(path)
    assert not found & {"engine", "cli", "commands", "evaluate", "predict", "report", "grow"}
    assert not [name for name in found if name.startswith("methods")]


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").glob("*.py")), ids=lambda p: p.stem)
def test_data_knows_no_network(path: Path) -> None:
    assert not within(path) & {"engine", "model", "losses", "cli", "commands"}
    assert not [name for name in within(path) if name.startswith("methods")]


def test_nothing_imports_the_command_line() -> None:
    users = {module_of(path) for path in FILES if within(path) & {"cli"}}
    assert users == {"segrow.__main__"}
    users = {module_of(path) for path in FILES if within(path) & {"commands"}}
    assert all(name == "segrow.cli" or name.startswith("segrow.commands") for name in users)


@pytest.mark.parametrize("name", ["scenario", "protocol", "errors", "config", "cli", "__init__", "__main__"])
def test_light_modules_stay_light(name: str) -> None:
    """numpy and the standard library only."""
    import sys

    roots = {found.split(".")[0] for found in imports(PACKAGE / f"{name}.py", top_level=True)}
    assert roots <= {*sys.stdlib_module_names, "numpy", "segrow"}
    heavy = {"model", "data", "engine", "losses", "methods", "report", "evaluate", "predict", "memory"}
    top = {n.removeprefix("segrow.").split(".")[0] for n in imports(PACKAGE / f"{name}.py", top_level=True)}
    assert not top & heavy
