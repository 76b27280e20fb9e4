"""The image: what it is made of, and that it can be made."""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from deblur.models.vgg import digest, load_features
from tests.k8s.image_layer import DOCKERFILE, ROOT, Step, context, steps

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def all_of(word: str, **build_arguments: str) -> list[Step]:
    return [step for step in steps(**build_arguments) if step.word == word]


def final_environment(**build_arguments: str) -> dict[str, str]:
    return list(steps(**build_arguments))[-1].environment


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ray_is_the_one_that_constraints_name() -> None:
    (base,) = all_of("FROM")
    version = base.arguments["RAY_VERSION"]
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text().splitlines()
    (wanted,) = [found for found in map(Requirement, PROJECT["project"]["dependencies"]) if found.name == "ray"]
    assert wanted.specifier.contains(version)
    assert base.rest == f"rayproject/ray:{version}-py311-gpu"
    assert set(re.findall(r"rayproject/ray:([\d.]+)", DOCKERFILE.read_text())) == {version}  # of the comment, too


def test_its_version_is_the_project_s() -> None:
    (label,) = all_of("LABEL")
    assert f"org.opencontainers.image.version={PROJECT['project']['version']}" in shlex.split(label.rest)


def test_it_ends_as_a_user_who_is_not_root() -> None:
    assert int(all_of("USER")[-1].rest.partition(":")[0]) > 0


def test_the_builder_is_sent_the_packages_and_nothing_else() -> None:
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


def test_what_lies_about_is_not_sent_to_the_builder(tmp_path: Path) -> None:
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


def test_what_is_copied_is_sent_to_the_builder() -> None:
    sources = [name for step in all_of("COPY") for name in shlex.split(step.rest)[:-1]]
    assert sources
    assert not [name for name in sources if name != "." and name not in context()]


def test_nothing_is_fetched_but_by_pip_and_torchvision() -> None:
    commands = [step.rest for step in all_of("RUN")]
    assert commands
    assert not [command for command in commands if re.search(r"\b(curl|wget|git|apt|apt-get)\b|://", command)]


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "MPLCONFIGDIR"])
def test_caches_are_where_a_pod_can_write(name: str) -> None:
    assert final_environment()[name].startswith("/tmp/")


def test_weights_are_in_the_image_or_where_a_pod_can_write() -> None:
    assert final_environment(VGG="")["TORCH_HOME"].startswith("/tmp/")
    assert final_environment(VGG="vgg16 vgg19")["TORCH_HOME"] == "/opt/torch"


def test_weights_of_the_default_recipe_are_baked_in_where_a_run_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = [step for step in all_of("RUN") if "torchvision" in step.rest]
    program, option, code = shlex.split(command.rest)
    assert (program, option) == ("python", "-c")
    baked = load_features("vgg19-conv3_3", "random", None)

    def download(url: str, file: str, *_: object, **__: object) -> None:
        assert "/vgg19-" in url
        torch.save(baked.state_dict(), file)

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("VGG", command.arguments["VGG"])
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    exec(code, {})
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    loaded = load_features("vgg19-conv3_3", "pretrained", None)
    assert digest(loaded) == digest(baked)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_its_python_layer_can_be_installed_and_used() -> None:
    # Not tmp_path: pytest keeps the last three, of 8 GB each.
    folder = Path(tempfile.mkdtemp(prefix="deblur-image-"))
    try:
        command = [sys.executable, "-m", "tests.k8s.image_layer", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
