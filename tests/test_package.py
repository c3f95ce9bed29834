"""The package as shipped."""

import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_configurations_examples_template_and_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "examples").rglob("*.*")]:
        if "__pycache__" not in path.parts:
            assert f"opposing_signals/{path.relative_to(ROOT)}" in names
    for path in (ROOT / "src").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT / "src")) in names


@pytest.mark.slow
def test_an_installed_wheel_runs_experiment_and_demo_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import opposing_signals; "
        "assert opposing_signals.__file__.startswith(sys.path[0]); "
        "from pathlib import Path; from opposing_signals.__main__ import main; from opposing_signals.demo import demo; "
        "sys.exit(main() or demo(Path('demo'), epochs=2, planted=['scale=smoke'], curve=['scale=smoke']))"
    )
    arguments = ["experiment=fig03_chebyshev", "scale=smoke", "steps=12", "logger=none"]
    ran = subprocess.run([sys.executable, "-c", code, site, *arguments], cwd=elsewhere, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (elsewhere / "outputs" / "fig03_chebyshev" / "claims.json").is_file()
    assert (elsewhere / "demo" / "report" / "index.html").is_file()


def test_the_readme_leads_to_what_is_there() -> None:
    links = re.findall(r"\]\((?![a-z]+:)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists() and not link.startswith("results/")]


@pytest.mark.parametrize("repository", [None, "https://host/owner/name"])
def test_on_an_index_every_link_leads_somewhere(repository) -> None:
    on_an_index = runpy.run_path(str(ROOT / "hatch_build.py"))["on_an_index"]
    readme = (ROOT / "README.md").read_text()
    text = on_an_index(readme, repository)
    addresses = re.findall(r"\]\(([^)]*)\)", text)
    assert addresses
    assert all(address.startswith("https://") for address in addresses)
    has_caption = "*Figure 6a: a VGG-11" in text
    assert ("![" in text) == has_caption == (repository is not None), "a picture goes with its caption"
    assert len(addresses) == len(re.findall(r"\]\(", readme)) or repository is None
    assert "**the paper, figure by figure**" in re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(wheel, tmp_path) -> None:
    build = "from hatchling.build import build_sdist; print(build_sdist({out!r}))"
    subprocess.run([sys.executable, "-c", build.format(out=str(tmp_path))], cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert {"README.md", "CHANGELOG.md", "constraints.txt", "tests/conftest.py", "benchmarks/regime/grid.py"} <= names
    assert not [name for name in names if name.startswith("results")]
    (unpacked,) = (folder for folder in tmp_path.iterdir() if folder.is_dir())
    build = "from hatchling.build import build_wheel; build_wheel({out!r})"
    subprocess.run([sys.executable, "-c", build.format(out=str(tmp_path))], cwd=unpacked, check=True)
    (again,) = tmp_path.glob("*.whl")

    def contents(path: Path) -> dict[str, int]:
        return {entry.filename: entry.CRC for entry in zipfile.ZipFile(path).infolist()}

    assert contents(again) == contents(wheel)


def test_every_locked_file_is_of_the_pinned_version():
    """constraints.txt holds the versions; the lock adds the hashes of their files. `make lock` rewrites it."""
    pinned = re.findall(r"^([\w.-]+)==([^ ;\n]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    locked = re.findall(r"^([\w.-]+)==([^ ;\n]+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert {_normal(name) for name, _ in locked} >= {"hydra-core", "lightning", "omegaconf", "wandb", "pytest", "ruff"}
    versions = {(_normal(name), version) for name, version in pinned}
    assert [(name, version) for name, version in locked if (_normal(name), version) not in versions] == []
    assert (ROOT / "requirements.lock").read_text().count("--hash=sha256:") >= len(locked)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
