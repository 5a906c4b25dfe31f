"""What is released: the wheel is complete, and works in an empty folder of a user."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("medpix", "pipelines", "tasks", "vlm_core", "deployments")
FILES = ("pyproject.toml", "README.md", "LICENSE")
BYTECODE = shutil.ignore_patterns("__pycache__", "*.egg-info")
INSTALLED = """
from importlib.metadata import entry_points, version
from prefect.cli.deploy._models import PrefectYamlModel
import medpix, tasks.services.deploy as deploy, yaml
assert str(medpix.__file__).startswith(str(deploy.PACKAGES)), medpix.__file__
assert PrefectYamlModel.model_validate(yaml.safe_load(deploy.PREFECT_FILE.read_text())).deployments
assert [found.value for found in entry_points(group="prefect.plugins", name="medpix-deployment-names")]
print(deploy.working_directory(), version("medpix-finetune"))
"""


def run(*words: object, at: Path, **variables: str) -> str:
    """Runs a command without this checkout on Python's path; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run([*map(str, words)], cwd=at, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def built(source: Path, output: Path) -> tuple[Path, Path]:
    """Returns the sdist of a copy of the project, and the wheel that is built from the sdist."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=BYTECODE)
    for file in FILES:
        shutil.copy(ROOT / file, source / file)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, ".", at=source)
    (sdist,), (wheel,) = output.glob("*.tar.gz"), output.glob("*.whl")
    return sdist, wheel


def installed(wheel: Path, environment: Path) -> Path:
    """Installs a wheel into a new environment, which shares this one's other packages; returns its `bin` directory."""
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        at=wheel.parent,
    )
    (packages,) = environment.glob("lib/*/site-packages")
    # A line of a .pth file adds a directory, but not what the .pth files in it name: no editable install is found.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def test_the_version_is_the_same_everywhere() -> None:
    released = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.findall(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0]
    assert newest == (cited["version"], str(cited["date-released"])) == (released, newest[1])


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    sdist, wheel = built(source, tmp_path / "dist")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, at=tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for package in PACKAGES for path in (source / package).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(source)) for path in files}
    assert wanted - names == set()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)

    commands = installed(wheel, tmp_path / "environment")
    where, version = run(commands / "python", "-c", INSTALLED, at=folder).split()
    assert Path(where) == folder
    (folder / "tasks.py").write_text("raise SystemExit('this is a file of the user')")
    medpix = commands / "medpix"
    assert run(medpix, "--version", at=folder) == f"medpix-finetune {version}\n"
    assert "name: demo" in run(medpix, "train", "--recipe", "demo", "--print-config", at=folder)
    report = run(medpix, "prepare", "builtin:phantom?images=6", at=folder, MEDPIX_HOME=str(tmp_path / "home"))
    assert "next        medpix prepare 'builtin:phantom?images=6' --init builtin-phantom.yaml" in report
    assert "<style>" in (folder / "data-report" / "report.html").read_text()
    assert "no services are running; `medpix up` starts them" in run(medpix, "status", at=folder)
