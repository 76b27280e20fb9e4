"""A scanner of manifests, checkov, finds nothing in ours that is not answered here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.k8s.manifests import NAMES, objects, pods

CHECKOV = "checkov==3.3.30"
ANSWERED = {
    "CKV_K8S_8": "liveness: KubeRay adds a probe to head and workers; jobs end by themselves",
    "CKV_K8S_9": "readiness: likewise",
    "CKV_K8S_15": "pull policy Always: tags are versions, and kind's images are in no registry",
    "CKV_K8S_35": "secrets as files: keys of S3, where there are any, are read from AWS' standard variables",
    "CKV_K8S_40": "high user ids: 1000 is the user of Ray's images, who owns Ray there",
    "CKV_K8S_43": "digests: the image is the user's own, built from k8s/image",
}


@pytest.fixture(scope="module")
def checkov(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In an environment of its own: it wants other versions of what we use."""
    folder = tmp_path_factory.mktemp("checkov")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin/pip", "install", "--quiet", CHECKOV], check=True)
    return folder / "bin/checkov"


@pytest.mark.soak
def test_nothing_is_found_that_is_not_answered(checkov: Path, tmp_path: Path) -> None:
    for name in NAMES:
        core = [found for found in objects(name) if "ray.io" not in found["apiVersion"]]
        (tmp_path / f"{name.removesuffix('.yaml')}.yaml").write_text(yaml.safe_dump_all([*core, *pods(name).values()]))
    command = [checkov, "--directory", tmp_path, "--framework", "kubernetes", "--output", "json", "--compact"]
    done = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 1000
    found = {check["check_id"] for check in report["results"]["failed_checks"]}
    assert found == ANSWERED.keys(), report["results"]["failed_checks"]
