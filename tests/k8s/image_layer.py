"""The image's Python layer without a container builder: python -m tests.k8s.image_layer FOLDER

Runs k8s/image/Dockerfile as a shell script in FOLDER, in a clean virtual environment with Ray in place of the base
image, then imports and runs what was installed. VGG weights are left out, as in a build without a network. Does not
cover the base image, the user and the read-only root file system.
"""

import os
import shlex
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from docker.utils.build import PatternMatcher
from dockerfile_parse import DockerfileParser

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


def instructions(*words: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions of these kinds with their values, in order, variables not substituted."""
    structure = DockerfileParser(fileobj=BytesIO(DOCKERFILE.read_bytes())).structure
    return [(step["instruction"], step["value"]) for step in structure if step["instruction"] in words]


def environment(**build_args: str) -> dict[str, str]:
    """The values of ARG and ENV at the end of a build. The shell substitutes ${NAME:-default} as Docker does."""
    script = _script(instructions("ARG", "ENV"), Path())
    done = subprocess.run(
        ["sh", "-ec", f"{script}\nenv -0"], env=build_args, capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)


def context(root: Path = ROOT) -> set[str]:
    """The files that .dockerignore lets through to the builder, by the rules of Docker's own client."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    found = PatternMatcher([line for line in lines if line and not line.startswith("#")]).walk(str(root))
    return {name for name in found if (root / name).is_file()} - {".dockerignore"}  # the matcher always adds it


def build(folder: Path) -> None:
    """Runs the Dockerfile in a folder, then uses the result. Raises CalledProcessError if a command fails."""
    for name in context():
        (folder / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "context" / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    variables = ours | {"PATH": f"{folder / 'venv/bin'}{os.pathsep}{ours['PATH']}", "VGG": ""}
    script = _script(instructions("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN"), folder)
    subprocess.run(["sh", "-exc", f"{script}\n{_checks()}"], env=variables, check=True)


def main() -> None:
    """Builds in the folder of the command line, which must be new or empty."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(
            f"{folder} is not empty: its files could be mistaken for what was installed; name a new folder"
        )
    build(folder)


def _script(steps: list[tuple[str, str]], folder: Path) -> str:
    """The shell commands for instructions; `folder` has the context, and the image's files under root/."""
    return "\n".join(_command(word, value, folder) for word, value in steps)


def _command(word: str, value: str, folder: Path) -> str:
    if word == "FROM":
        return 'pip install --quiet "ray[default,train,tune]==$RAY_VERSION"'
    if word == "ARG":
        name, _, default = value.partition("=")
        return f'export {name}="${{{name}-{default}}}"'
    if word == "ENV":
        return f"export {value}"
    if word == "WORKDIR":
        place = shlex.quote(f"{folder}/root{value}")
        return f"mkdir -p {place}; cd {place}"
    if word == "COPY":
        *sources, target = shlex.split(value)
        return f'(cd {shlex.quote(str(folder / "context"))} && cp -r {shlex.join(sources)} "$OLDPWD"/{target})'
    return f"({value})"  # RUN; in parentheses so that -e sees a failure before `&&`


def _checks() -> str:
    """Imports everything and prints help texts, without a network."""
    uses = ["-m pip check", *(f"-m deblur.{command} --help >/dev/null" for command in COMMANDS)]
    uses.append(f"-c {shlex.quote(_USE)}")
    return "\n".join(
        ["export http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9", *(f"python {use}" for use in uses)]
    )


if __name__ == "__main__":
    main()
