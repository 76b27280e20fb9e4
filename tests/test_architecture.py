"""Imports point down: what each package says that it may import is read from its docstring, and enforced."""

import ast
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# These compute, and need nothing but torch or numpy and each other.
PLAIN = {"deblur/training/losses.py": {"torch"}, "deblur/evaluation/quality.py": {"torch"}}
PLAIN |= {"deblur/models/generator.py": {"torch"}, "deblur/data/blur.py": {"numpy", "scipy"}}
COMMANDS = ("train", "tune", "pack", "restore", "evaluate", "serve", "report", "export", "import_weights")
PLAIN |= {"deblur/config/randomness.py": {"numpy"}, "deblur/training/schedule.py": set()}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the product by its dotted name; a package by its own."""
    files = [*(root / "cluster").rglob("*.py"), *(root / "deblur").rglob("*.py")]
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in sorted(files)
    }


def package_of(module: str, known: dict[str, Path]) -> str:
    """The package that a module belongs to."""
    return module if known[module].name == "__init__.py" else module.rpartition(".")[0]


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, anywhere in it; those of `from a import b` as a and as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def edges(known: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """(module, module that it imports) within the product, parent packages left out."""
    for module, path in known.items():
        found = imports(path) & known.keys()
        for other in found - {module}:
            if not any(deeper.startswith(f"{other}.") for deeper in found):
                yield module, other


def permitted(package: str, known: dict[str, Path]) -> list[str]:
    """The packages and modules that a package names in its docstring after "May import"."""
    docstring = ast.get_docstring(ast.parse(known[package].read_text())) or ""
    sentence = re.search(r"May import (.*?)\.(\s|$)", docstring, re.DOTALL)
    assert sentence, f"{package} does not say what it may import"
    return re.findall(r"(?:deblur|cluster)(?:\.\w+)*", sentence[1])


def forbidden_imports(root: Path) -> list[str]:
    """Every import that its package does not permit; of commands (deblur/*.py), those of each other."""
    known = modules(root)
    commands = {module for module in known if package_of(module, known) == "deblur"}
    found = []
    for module, other in edges(known):
        here = package_of(module, known)
        if module in commands:
            allowed = other not in commands
        else:
            allowed = any(f"{other}.".startswith(f"{name}.") for name in [here, *permitted(here, known)])
        if not allowed or (here == "cluster" and other.startswith("deblur")):
            found.append(f"{module} -> {other}")
    return found


def cycles(root: Path) -> list[str]:
    """Modules that import themselves by way of others."""
    known = modules(root)
    graph: dict[str, set[str]] = {module: set() for module in known}
    for module, other in edges(known):
        graph[module].add(other)

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for other in graph[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    return sorted(module for module in known if module in reached(module))


def test_every_import_points_down() -> None:
    assert forbidden_imports(ROOT) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert cycles(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("deblur/data/plan.py", "import deblur.training.run", "deblur.data.plan -> deblur.training.run"),
        ("deblur/config/cli.py", "from deblur.models import vgg", "deblur.config.cli -> deblur.models.vgg"),
        ("cluster/sync.py", "from deblur import config", "cluster.sync -> deblur.config"),
        ("cluster/storage/s3.py", "from cluster import sync", "cluster.storage.s3 -> cluster.sync"),
        ("deblur/tune.py", "def f():\n    from deblur import train", "deblur.tune -> deblur.train"),
        ("deblur/search/space.py", "from deblur.train import main", "deblur.search.space -> deblur.train"),
    ],
)
def test_a_planted_import_is_found(file: str, line: str, found: str, tmp_path: Path) -> None:
    for package in ("cluster", "deblur"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    assert forbidden_imports(tmp_path) == [found]


def test_a_planted_cycle_is_found(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    for name, other in (("a", "b"), ("b", "c"), ("c", "b"), ("d", "a")):
        (tmp_path / f"cluster/{name}.py").write_text(f"def f():\n    import cluster.{other}\n")
    assert cycles(tmp_path) == ["cluster.b", "cluster.c"]


def test_cluster_knows_nothing_of_what_is_learned() -> None:
    for path in (ROOT / "cluster").rglob("*.py"):
        words = re.findall(r"blur|generator\(|critic", path.read_text().lower())
        assert not words, path


@pytest.mark.parametrize(
    ("library", "places"),
    [
        ("ray", ("cluster/on_ray/", "cluster/local.py")),
        ("boto3", ("cluster/storage/s3.py",)),
        ("optuna", ("deblur/search/",)),
    ],
)
def test_a_library_is_imported_in_its_place_alone(library: str, places: tuple[str, ...]) -> None:
    files = {path.relative_to(ROOT).as_posix(): imports(path) for path in modules(ROOT).values()}
    users = [file for file, names in files.items() if library in {name.partition(".")[0] for name in names}]
    assert users
    assert all(file.startswith(places) for file in users), users


@pytest.mark.parametrize("name", PLAIN)
def test_what_computes_needs_little(name: str) -> None:
    names = {imported.partition(".")[0] for imported in imports(ROOT / name)}
    assert names - set(sys.stdlib_module_names) - {"deblur"} == PLAIN[name]


def test_everything_but_what_runs_on_ray_can_be_imported_without_it() -> None:
    names = [name for name in modules(ROOT) if not name.startswith(("cluster.on_ray.", "cluster.local"))]
    assert_importable([*names, "cluster.on_ray.placement"], without="ray")


def test_cluster_can_be_imported_without_deblur() -> None:
    assert_importable([name for name in modules(ROOT) if name.startswith("cluster")], without="deblur")


def assert_importable(names: list[str], without: str) -> None:
    script = f"""
        import importlib, sys
        sys.modules[{without!r}] = None
        for module in {names!r}:
            importlib.import_module(module)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=ROOT)


@pytest.mark.parametrize("theme", ["update", "restore"])
def test_what_is_measured_on_a_bare_machine_needs_little(theme: str) -> None:
    """An image for GPUs has torch, torchvision, numpy, pillow and torchmetrics."""
    absent = ["boto3", "botocore", "prometheus_client", "ray", "safetensors", "scipy", "skimage", "tyro", "webdataset"]
    script = f"""
        import sys
        sys.modules |= dict.fromkeys({absent!r})
        import benchmarks.{theme}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=ROOT)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_parsed_before_torch_and_ray_are_imported(command: str) -> None:
    program = f"""
import sys
from deblur.{command} import main
sys.argv = ["{command}", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end
print("imported:", *sorted({{"torch", "ray", "boto3", "scipy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported:"
