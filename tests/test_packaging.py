"""The package as a whole: its version, what is installed with it, the house's order of imports, the command line."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import apt_monai

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "apt_monai"


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    return config


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str, path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that a file imports, by its full name, with the statement."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in MODULES else base), node


def own_imports(name: str, path: Path) -> set[str]:
    """Of our own modules; what the package itself imports inside `load` is a caller's, not a floor's."""
    if name == "apt_monai":
        return set()
    return {imported for imported, _ in imports(name, path) if imported.partition(".")[0] == "apt_monai"}


def house() -> dict[str, int]:
    """From CONTRIBUTING.md: for each module or folder of the house its floor."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = text.split("<!-- the house:", 1)[1].split("```")[1]
    floors = {}
    for line in block.strip().splitlines():
        match = re.fullmatch(r"\s*(\d+)  (\S+(?:, \S+)*)  +\S.*", line)
        assert match, f"CONTRIBUTING.md: this row of the house is not 'floor  name, name  what it is': {line!r}"
        for name in match[2].split(", "):
            floors[f"apt_monai.{name.removesuffix('/').removesuffix('.py')}"] = int(match[1])
    return floors


def floor(name: str, floors: dict[str, int]) -> int:
    if name == "apt_monai":
        return -1
    top = ".".join(name.split(".")[:2])
    assert top in floors, f"{name} has no place in the house: add {top} to the list in CONTRIBUTING.md"
    return floors[top]


def test_changelog_knows_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == apt_monai.__version__
    assert setup_cfg()["metadata"]["version"] == "attr: apt_monai.__version__"


def test_every_folder_of_the_package_and_every_bundle_is_installed() -> None:
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES.values()}
    bundles = {f"apt_monai.bundles.{path.parents[1].name}" for path in ROOT.glob("bundles/*/configs/metadata.json")}
    assert len(bundles) == 2
    packages = setup_cfg()["options"]["packages"].split()
    assert sorted(packages) == sorted(folders | bundles), "correct `packages` in setup.cfg"
    missing = {path.parent for path in MODULES.values() if not (path.parent / "__init__.py").exists()}
    assert not missing, f"these folders have no __init__.py: {missing}"


def test_every_data_file_of_the_package_is_installed() -> None:
    patterns = setup_cfg()["options.package_data"]["apt_monai"].replace(",", " ").split()
    files = [p.relative_to(PACKAGE) for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    others = [str(p) for p in files if p.suffix != ".py"]
    assert "py.typed" in others
    assert [p for p in others if not any(fnmatch(p, pattern) for pattern in patterns)] == []


def test_modules_import_only_from_floors_above_them_and_their_own() -> None:
    floors = house()
    wrong = []
    for name, path in MODULES.items():
        for imported in own_imports(name, path):
            if floor(imported, floors) > floor(name, floors):
                wrong.append(f"{name} (floor {floor(name, floors)}) imports {imported} ({floor(imported, floors)})")
    assert not wrong


def test_modules_do_not_import_in_circles() -> None:
    TopologicalSorter({name: own_imports(name, path) - {name} for name, path in MODULES.items()}).prepare()


def test_listing_and_reading_studies_does_not_wait_for_torch_or_monai() -> None:
    code = "import sys, apt_monai.data.readers, apt_monai.io; print({'torch', 'monai'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"set()"


def test_every_function_can_be_read_at_a_glance() -> None:
    long = {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > 60:
                    long[f"{name}.{node.name}"] = lines
    assert long == {}


LAZY = ("apt_monai", "apt_monai.bundle", "apt_monai.cli")  # so that help is quick


def test_only_the_top_floor_imports_our_own_modules_in_functions() -> None:
    wrong = []
    for name, path in MODULES.items():
        if ".".join(name.split(".")[:2]) in LAZY:
            continue
        functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
        inside = {(n.lineno, n.end_lineno) for n in functions}
        for imported, node in imports(name, path):
            if imported.startswith("apt_monai") and any(a <= node.lineno <= (b or a) for a, b in inside):
                wrong.append(f"{path}:{node.lineno} imports {imported}")
    assert not wrong


def declared(*extras: str) -> set[str]:
    """The distributions that setup.cfg asks for, those that extras such as ``monai[ignite]`` bring included."""
    config = setup_cfg()
    lists = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    names: set[str] = set()
    for line in "\n".join(lists).split():
        requirement = Requirement(line)
        names.add(canonicalize_name(requirement.name))
        try:
            its_own = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # in the environment of MONAI Label's server alone
        for brought in map(Requirement, its_own):
            if brought.marker and any(brought.marker.evaluate({"extra": extra}) for extra in requirement.extras):
                names.add(canonicalize_name(brought.name))
    return names


@cache
def module_owners() -> dict[str, list[str]]:
    """The distributions that own each top-level module: ``packages_distributions`` of Python 3.11, for 3.10 as well."""
    owners: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        for top in {
            file.parts[0].partition(".")[0] for file in distribution.files or [] if file.suffix in (".py", ".so")
        }:
            owners.setdefault(top, []).append(distribution.metadata["Name"])
    return owners


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("apt_monai", ("phantom", "preprocess", "label")), ("tests", ("phantom", "test", "onnx", "tracking", "label"))],
)
def test_every_package_that_is_imported_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    # itk is a distribution that only brings itk-core, itk-io and others, which own the module
    owners = {**module_owners(), "itk": ["itk"]}
    ours = {"apt_monai", "benchmarks", "conftest", *sys.stdlib_module_names}
    ours |= {path.stem for path in (ROOT / "tests").glob("*.py")} | {"AptSynthesisLib"}  # docs/slicer
    known = declared(*extras)
    # pytest, open_clip and nbclient themselves need them
    known |= {"packaging", "timm", "nbformat"} if folder == "tests" else set()
    undeclared = set()
    for path in (ROOT / folder).rglob("*.py"):
        for imported, _ in imports(module_name(path), path):
            top = imported.partition(".")[0]
            if top not in ours and not known & {canonicalize_name(owner) for owner in owners.get(top, [top])}:
                undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert not undeclared
