"""The package as a whole: its version, what is installed with it, the house's order of imports, the command line."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest
from ci_scripts import load_script
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import apt_monai
from apt_monai import data

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


def test_the_names_that_configs_take_from_the_data_room_are_there() -> None:
    for names in data._FILES.values():
        assert all(callable(getattr(data, name)) for name in names)
    with pytest.raises(AttributeError, match="'apt_monai.data' has no attribute 'find_study'"):
        data.find_study  # noqa: B018


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
        for brought in map(Requirement, importlib.metadata.requires(requirement.name) or []):
            if brought.marker and any(brought.marker.evaluate({"extra": extra}) for extra in requirement.extras):
                names.add(canonicalize_name(brought.name))
    return names


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
    ("folder", "extras"), [("apt_monai", ("phantom", "preprocess")), ("tests", ("phantom", "test", "onnx", "tracking"))]
)
def test_every_package_that_is_imported_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    owners = module_owners()
    owners["itk"] = ["itk"]  # a distribution that only brings itk-core, itk-io and others, which own the module
    ours = {"apt_monai", "benchmarks", "conftest", *sys.stdlib_module_names}
    ours |= {path.stem for path in (ROOT / "tests").glob("*.py")}
    known = declared(*extras)
    known |= {"packaging", "timm"} if folder == "tests" else set()  # pytest and open_clip themselves need them
    undeclared = set()
    for path in (ROOT / folder).rglob("*.py"):
        for imported, _ in imports(module_name(path), path):
            top = imported.partition(".")[0]
            if top not in ours and not known & {canonicalize_name(owner) for owner in owners.get(top, [top])}:
                undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert not undeclared


ENTRIES = [n for n, p in MODULES.items() if p.name == "__main__.py" or '__name__ == "__main__"' in p.read_text()]


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_command_and_subcommand_has_help(
    entry: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def help_of(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [entry, *arguments, "--help"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(entry.removesuffix(".__main__"), run_name="__main__", alter_sys=True)
        assert stop.value.code in (0, None)
        return capsys.readouterr().out

    usage = help_of()
    assert "usage" in usage.lower()
    subcommands = re.search(r"\{([\w,-]+)\}", usage)
    for subcommand in subcommands[1].split(",") if subcommands else []:
        assert subcommand in help_of(subcommand)


@pytest.fixture
def venv() -> ModuleType:
    """The script that makes the Makefile's environment."""
    return load_script("venv")


def test_environment_depends_on_the_dependencies_alone(venv: ModuleType, tmp_path: Path) -> None:
    text = (ROOT / "setup.cfg").read_text()
    edited = tmp_path / "setup.cfg"
    edited.write_text(text.replace("attr: apt_monai.__version__", "9.9.9").replace("# torchvision", "# TorchVision"))
    assert venv.default_folder(edited) == venv.default_folder(ROOT / "setup.cfg")
    edited.write_text(text.replace("numpy>=1.26", "numpy>=1.27"))
    assert venv.default_folder(edited) != venv.default_folder(ROOT / "setup.cfg")


def test_environment_is_made_once_and_made_anew_after_an_interruption(
    venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a folder" / "venv"
    commands: list[list[str]] = []
    interrupt = True

    def fake_run(command: list[str], check: bool) -> None:
        commands.append(command)
        if command[2] == "venv":
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").touch()
        elif interrupt:
            (folder / "half-installed").touch()
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", fake_run)
    with pytest.raises(KeyboardInterrupt):
        venv.install(folder, ["numpy"])
    assert (folder / "half-installed").exists() and not (folder / venv.STAMP).exists()

    interrupt = False
    venv.install(folder, ["numpy"])
    assert not (folder / "half-installed").exists() and commands[-1][-1] == "numpy"

    done = len(commands)
    venv.install(folder, ["numpy"])
    assert len(commands) == done
    venv.install(folder, ["numpy", "torch"])
    assert commands[-1][-2:] == ["numpy", "torch"] and "venv" not in [c[2] for c in commands[done:]]


def test_environment_that_was_there_before_is_only_added_to(
    venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()

    def interrupted(command: list[str], check: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            venv.install(tmp_path / "venv", ["numpy"])
        assert python.exists()
