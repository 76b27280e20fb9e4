"""A Prometheus on this machine that watches runs, with the alerts of this folder: make monitor RUN=runs/demo

python k8s/monitoring/local.py RUN... [--port 9190]    a run is a folder or s3:// URL; it need not have begun

For people without Kubernetes. Prometheus itself comes from the system's packages (Debian: prometheus).
"""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tyro
import yaml

from cluster.errors import FINAL, InputError, NotFound, one_line_errors
from cluster.storage import Store, open_store

ALERTS = Path(__file__).with_name("alerts.yaml")
LOOK_S = 2.0  # how often a run is asked where its processes are


@dataclass(frozen=True, kw_only=True)
class Settings:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """Runs to watch."""
    port: int = 9190  # 9090 may be that of a Prometheus of the system
    """Where Prometheus answers, on this machine alone."""
    scrape_s: int = 5
    """Seconds between scrapes, and between looks at the alerts."""


def write_configuration(folder: Path, scrape_s: int) -> None:
    """Writes prometheus.yml, and the alerts as the plain rules that a PrometheusRule wraps."""
    (folder / "rules.yml").write_text(yaml.safe_dump(yaml.safe_load(ALERTS.read_text())["spec"]))
    (folder / "targets").mkdir()
    discovery = {"files": [str(folder / "targets/*.json")], "refresh_interval": "5s"}
    configuration = {
        "global": {"scrape_interval": f"{scrape_s}s", "evaluation_interval": f"{scrape_s}s"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [{"job_name": "deblur", "file_sd_configs": [discovery]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))


def copy_targets(stores: Iterable[Store], folder: Path) -> None:
    """Copies where each run serves its metrics, as far as that is known, to where Prometheus looks."""
    for number, store in enumerate(stores):
        with contextlib.suppress(NotFound):  # it has not begun
            partial = folder / f"{number}.partial"
            partial.write_bytes(store.get("targets.json"))
            partial.replace(folder / f"{number}.json")


def watch(settings: Settings) -> None:
    """Runs Prometheus until it is interrupted. Raises InputError where it cannot be started."""
    program = shutil.which("prometheus")
    if program is None:
        raise InputError("prometheus is not installed on this machine; on Debian: apt-get install prometheus")
    if not settings.runs:
        raise InputError("no run was named; for instance: make monitor RUN=runs/demo")
    stores = [open_store(run) for run in settings.runs]
    with tempfile.TemporaryDirectory(prefix="prometheus-") as name:
        folder = Path(name)
        write_configuration(folder, settings.scrape_s)
        command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{settings.port}", "--log.level=warn"]
        with subprocess.Popen(command) as server:
            print(f"Prometheus at http://127.0.0.1:{settings.port}/alerts, Ctrl-C ends it", flush=True)
            try:
                _follow(stores, folder / "targets", server)
            finally:
                server.terminate()
                server.wait()  # an interrupted Popen waits no more, and its folder would be removed under it


def _follow(stores: list[Store], folder: Path, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            copy_targets(stores, folder)
        except FINAL as error:
            print(f"still watching the old addresses: {error}", flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise InputError(f"prometheus has ended with code {server.wait(LOOK_S)}; its own words are above")


def main() -> None:
    with one_line_errors(), contextlib.suppress(KeyboardInterrupt):
        watch(tyro.cli(Settings, description=__doc__, prog="make monitor"))


if __name__ == "__main__":
    main()
