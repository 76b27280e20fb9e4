"""The image's Python layer without a container builder: python -m tests.k8s.image_layer FOLDER

Follows k8s/image/Dockerfile in FOLDER, in a clean virtual environment with Ray where the image has its base, and then
uses what came of it as the image would. The weights of VGG are left out, as for a build without a network. Base image,
user and read-only root are not shown.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docker.utils.build import PatternMatcher

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "k8s/image/Dockerfile"
COMMANDS = ("train", "pack", "report", "restore", "evaluate")
_USE = """
import importlib, pkgutil, sys
import cluster, deblur, skimage.data
from deblur.data.sample_set import PHOTOGRAPHS

for package in (cluster, deblur):
    assert package.__path__[0].startswith(sys.prefix), package.__path__
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
assert (importlib.resources.files("deblur.plots") / "report.html.j2").is_file()
for name in sum(PHOTOGRAPHS.values(), ()):
    getattr(skimage.data, name)()
"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An instruction, its variables filled in, and what its shell would see."""

    word: str
    rest: str
    arguments: dict[str, str]
    environment: dict[str, str]


def steps(**build_arguments: str) -> Iterator[Step]:
    """The Dockerfile's instructions as a builder takes them."""
    arguments: dict[str, str] = {}
    environment: dict[str, str] = {}
    for word, rest in _instructions(DOCKERFILE.read_text()):
        if word != "RUN":  # its variables are the shell's
            rest = _filled_in(rest, arguments | environment)
        if word == "ARG":
            name, _, default = rest.partition("=")
            arguments[name] = build_arguments.get(name, default)
        elif word == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        yield Step(word=word, rest=rest, arguments=dict(arguments), environment=dict(environment))
        if word == "FROM":
            arguments.clear()  # those before it are its own


def context(root: Path = ROOT) -> set[str]:
    """The files that .dockerignore lets through to the builder, by the rules of Docker's own client."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    found = PatternMatcher([line for line in lines if line and not line.startswith("#")]).walk(str(root))
    return {name for name in found if (root / name).is_file()} - {".dockerignore"}  # the matcher always adds it


def follow(folder: Path) -> None:
    """Does in a folder what a builder does in an image; raises CalledProcessError where a command fails."""
    _copy_context(folder / "context")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    shell = _environment(folder / "venv")
    place = folder
    for step in steps(VGG=""):
        print(step.word, step.rest, flush=True)
        if step.word == "FROM":
            ray = f"ray[default,train,tune]=={step.arguments['RAY_VERSION']}"
            subprocess.run(["pip", "install", "--quiet", ray], env=shell, check=True)
        elif step.word == "WORKDIR":
            place = folder / "root" / step.rest.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
        elif step.word == "COPY":
            _copy(folder / "context", place, step.rest)
        elif step.word == "RUN":
            variables = shell | step.arguments | step.environment
            subprocess.run(["/bin/sh", "-c", step.rest], cwd=place, env=variables, check=True)
        elif step.word not in ("ARG", "ENV", "LABEL", "USER"):
            raise ValueError(f"{DOCKERFILE}: what {step.word} does is not known to {Path(__file__).name}: add it")
    _use(place, shell | step.environment)


def main() -> None:
    """Follows the Dockerfile in the folder of the command line, which is to be new or empty."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder}: is not empty; what lies there could pass for what was installed")
    follow(folder)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Word and rest of each instruction, without comments, continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", "").splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def _filled_in(text: str, values: dict[str, str]) -> str:
    """${NAME}, ${NAME:-otherwise} and ${NAME:+instead}."""

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1], "")
        if match[2] == ":+":
            return match[3] if found else ""
        return found or match[3] or ""

    return re.sub(r"\$\{(\w+)(?:(:[-+])([^{}]*))?\}", value, text)


def _environment(venv: Path) -> dict[str, str]:
    """This process' variables, but Python's own, with the virtual environment first on PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"PATH": f"{venv / 'bin'}{os.pathsep}{kept['PATH']}"}


def _copy_context(target: Path) -> None:
    for name in context():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)


def _copy(source: Path, place: Path, rest: str) -> None:
    """COPY of files and folders to a folder below WORKDIR."""
    *names, target = shlex.split(rest)
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, place / target, dirs_exist_ok=True)
        else:
            shutil.copy(source / name, place / target)


def _use(place: Path, variables: dict[str, str]) -> None:
    """What the image is for, as far as help texts and imports show it, without a network."""
    offline = variables | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    uses = [["-m", "pip", "check"], *(["-m", f"deblur.{command}", "--help"] for command in COMMANDS), ["-c", _USE]]
    for use in uses:
        print("python", *use, flush=True)
        subprocess.run(["python", *use], cwd=place, env=offline, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
