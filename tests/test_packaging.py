"""What is shipped is whole, and what is installed is what constraints.txt pins."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = {
    name: PROJECT["tool"]["setuptools"]["package-dir"].get(name, name.replace(".", "/"))
    for name in PROJECT["tool"]["setuptools"]["packages"]
}
DATA = (".pse", ".lark", ".j2", ".h", ".cuh", ".typed")


def pins() -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonical(line.partition("==")[0]): line for line in lines if line}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an sdist, and the wheel that was built from that sdist, not from the tree."""
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in {path.split("/")[0] for path in MAPPED.values()}:
        shutil.copytree(ROOT / name, tree / name, ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)

    def build(kind: str, place: Path) -> Path:
        program = f"from setuptools import build_meta as b; print(b.build_{kind}({str(folder)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return folder / done.stdout.splitlines()[-1]

    sdist = build("sdist", tree)
    shutil.unpack_archive(sdist, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", unpacked)


def test_every_folder_with_code_is_a_package_that_is_shipped() -> None:
    tops = {path.split("/")[0] for path in MAPPED.values() if "/" not in path}
    folders = {
        str(path.parent.relative_to(ROOT))
        for top in tops - {"grammar", "templates"}
        for path in (ROOT / top).rglob("*.py")
    }
    assert folders | {"grammar", "templates"} == set(MAPPED.values())
    assert all((ROOT / folder / "__init__.py").is_file() for folder in MAPPED.values())


def test_wheel_from_sdist_holds_every_module_and_data_file(built: tuple[Path, Path]) -> None:
    shipped = set(zipfile.ZipFile(built[1]).namelist())
    expected = set()
    for package, folder in MAPPED.items():
        files = (ROOT / folder).rglob("*") if package == "compll._templates" else (ROOT / folder).iterdir()
        for path in files:
            if path.suffix in (".py", *DATA):
                inside = path.relative_to(ROOT / folder).as_posix()
                expected.add(f"{package.replace('.', '/')}/{inside}")
    assert expected - shipped == set()
    assert any(name.endswith("pse.lark") for name in expected)
    assert any(name.endswith(".j2") for name in expected)
    assert any(name.endswith(".pse") for name in expected)
    tops = {name.split("/")[0] for name in shipped if ".dist-info" not in name}
    assert tops == {"compll", "casync", "secopa"}
    assert any(name.endswith("LICENSE") for name in shipped)


def test_unpacked_wheel_finds_its_grammar_and_templates(built: tuple[Path, Path], tmp_path: Path) -> None:
    zipfile.ZipFile(built[1]).extractall(tmp_path)
    program = (
        "import compll, importlib.resources as r, jinja2\n"
        "assert (r.files('compll._grammar') / 'pse.lark').is_file()\n"
        "assert jinja2.PackageLoader('compll._templates', '').list_templates()\n"
        "print(compll.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_every_dependency_is_pinned() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = {
        canonical(Requirement(line).name)
        for lines in (PROJECT["project"]["dependencies"], *extras, PROJECT["build-system"]["requires"])
        for line in lines
    }
    assert wanted - set(pins()) == set()


def test_pins_are_exact_and_name_no_host() -> None:
    for line in pins().values():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line), line


def test_installed_versions_are_the_pinned_ones() -> None:
    moved = {}
    for name, line in pins().items():
        if name == "cmake":  # only where the system has none that will do
            continue
        installed = importlib.metadata.version(name)
        if Version(installed).public != str(Version(line.partition("==")[2])):
            moved[name] = installed
    assert not moved, f"not as pinned, run `make setup`: {moved}"
