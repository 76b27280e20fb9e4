"""The house: arrows point down, and Ray is where it is said to be."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLUSTER = sorted((ROOT / "cluster").glob("*.py"))
DOMAIN = sorted((ROOT / "deblur").rglob("*.py"))
WITH_RAY = {f"cluster/{name}.py" for name in ("launch", "local", "nodes", "search", "serving", "sync", "tasks")}
# These compute, and need nothing but torch or numpy and each other.
PLAIN = {
    "deblur/training/losses.py": {"torch"},
    "deblur/evaluation/quality.py": {"torch"},
    "deblur/models/generator.py": {"torch"},
}
PLAIN |= {
    "deblur/data/blur.py": {"numpy", "scipy"},
    "deblur/config/randomness.py": {"numpy"},
    "deblur/training/schedule.py": set(),
}


def imports(path: Path) -> set[str]:
    """Top-level names of all that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", CLUSTER, ids=lambda path: path.name)
def test_cluster_knows_nothing_of_what_is_learned(path: Path) -> None:
    assert "deblur" not in imports(path)
    text = path.read_text().lower()
    assert not [word for word in ("blur", "generator(", "critic") if word in text]


def test_ray_is_imported_in_its_places_alone() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in CLUSTER + DOMAIN if "ray" in imports(path)}
    assert found == WITH_RAY


def test_the_client_of_s3_is_in_one_place() -> None:
    assert [path.name for path in CLUSTER + DOMAIN if "boto3" in imports(path)] == ["s3.py"]


@pytest.mark.parametrize("name", PLAIN)
def test_what_computes_needs_little(name: str) -> None:
    standard = set(sys.stdlib_module_names)
    assert imports(ROOT / name) - standard - {"deblur"} == PLAIN[name]


def test_everything_but_the_launch_can_be_imported_without_ray() -> None:
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in CLUSTER + DOMAIN
        if path.relative_to(ROOT).as_posix() not in WITH_RAY - {"cluster/sync.py"}
    ]
    script = f"""
        import importlib, sys
        sys.modules["ray"] = None
        for module in {modules!r}:
            importlib.import_module(module)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=ROOT)


def test_cluster_can_be_imported_without_deblur() -> None:
    modules = [f"cluster.{path.stem}" for path in CLUSTER if path.stem != "__init__"]
    script = f"""
        import importlib, sys
        sys.modules["deblur"] = None
        for module in {modules!r}:
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
