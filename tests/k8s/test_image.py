"""The container image: its contents, its settings, and that its Python layer builds and runs."""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement

from deblur.models.vgg import digest, load_features
from tests.k8s.image_layer import DOCKERFILE, ROOT, context, environment, instructions

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def values_of(word: str) -> list[str]:
    return [value for _, value in instructions(word)]


def test_hadolint_passes() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ray_version_matches_constraints_and_project() -> None:
    found = environment()
    version = found["RAY_VERSION"]
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text().splitlines()
    (wanted,) = [found for found in map(Requirement, PROJECT["project"]["dependencies"]) if found.name == "ray"]
    assert wanted.specifier.contains(version)
    assert values_of("FROM") == ["${BASE}"]
    assert found["BASE"] == f"rayproject/ray:{version}-py311-gpu"
    assert set(re.findall(r"rayproject/ray:([\d.]+)", DOCKERFILE.read_text())) == {version}  # of the comment, too


def test_image_version_is_the_project_version() -> None:
    (label,) = values_of("LABEL")
    assert f"org.opencontainers.image.version={PROJECT['project']['version']}" in shlex.split(label)


def test_image_runs_as_non_root() -> None:
    assert int(values_of("USER")[-1].partition(":")[0]) > 0


def test_every_instruction_is_known_to_the_layer_build() -> None:
    known = ("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "COMMENT")
    assert len(instructions(*known)) == len(DockerfileParser(fileobj=BytesIO(DOCKERFILE.read_bytes())).structure)


def test_build_context_is_the_packages_and_nothing_else() -> None:
    files = {"pyproject.toml", "constraints.txt", "LICENSE", PROJECT["project"]["readme"]}
    setuptools = PROJECT["tool"]["setuptools"]
    patterns = [f"{name}/**/*.py" for name in setuptools["packages"]["find"]["include"]]
    patterns += [
        f"{package.replace('.', '/')}/{name}" for package, names in setuptools["package-data"].items() for name in names
    ]
    for pattern in patterns:
        found = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
        assert found, pattern
        files |= found
    assert context() == files


def test_build_context_excludes_caches_secrets_and_runs(tmp_path: Path) -> None:
    names = [
        "deblur/data/plan.py",
        "deblur/data/__pycache__/plan.cpython-311.pyc",
        ".env",
        ".git/config",
        "runs/demo/x",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert context(tmp_path) == {"deblur/data/plan.py"}


def test_copied_files_are_in_the_build_context() -> None:
    sources = [name for value in values_of("COPY") for name in shlex.split(value)[:-1]]
    assert sources
    assert not [name for name in sources if name != "." and name not in context()]


def test_only_pip_and_torchvision_download() -> None:
    commands = values_of("RUN")
    assert commands
    assert not [command for command in commands if re.search(r"\b(curl|wget|git|apt|apt-get)\b|://", command)]


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "MPLCONFIGDIR"])
def test_caches_are_on_a_writable_volume(name: str) -> None:
    assert environment()[name].startswith("/tmp/")


def test_weights_are_baked_in_or_on_a_writable_volume() -> None:
    assert environment(VGG="")["TORCH_HOME"].startswith("/tmp/")
    assert environment(VGG="vgg16 vgg19")["TORCH_HOME"] == "/opt/torch"


def test_baked_weights_of_the_default_recipe_are_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = [value for value in values_of("RUN") if "torchvision" in value]
    program, option, code = shlex.split(command)
    assert (program, option) == ("python", "-c")
    baked = load_features("vgg19-conv3_3", "random", None)

    def download(url: str, file: str, *_: object, **__: object) -> None:
        assert "/vgg19-" in url
        torch.save(baked.state_dict(), file)

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("VGG", environment()["VGG"])
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    exec(code, {})
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    loaded = load_features("vgg19-conv3_3", "pretrained", None)
    assert digest(loaded) == digest(baked)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_python_layer_installs_and_runs() -> None:
    # Not tmp_path: pytest keeps the last three, of 8 GB each.
    folder = Path(tempfile.mkdtemp(prefix="deblur-image-"))
    try:
        command = [sys.executable, "-m", "tests.k8s.image_layer", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
