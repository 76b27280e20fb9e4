"""Run a local Prometheus that scrapes runs and evaluates alerts.yaml: make monitor RUN=runs/demo

python k8s/monitoring/local.py RUN... [--port 9190]    a run is a folder or s3:// URL; it may start later

For use without Kubernetes. Requires the program prometheus (Debian package: prometheus).
"""

import contextlib
import shutil
import signal
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
REFRESH_S = 2.0  # between reads of a run's targets.json


@dataclass(frozen=True, kw_only=True)
class Settings:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """Runs to watch."""
    port: int = 9190  # 9090 may be taken by the system's Prometheus
    """Port of Prometheus, on 127.0.0.1 only."""
    scrape_s: int = 5
    """Seconds between scrapes, and between evaluations of the alerts."""


def write_configuration(folder: Path, scrape_s: int) -> None:
    """Writes prometheus.yml and rules.yml, the rules of the PrometheusRule."""
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
    """Copies targets.json of each run that has one to where Prometheus discovers it."""
    for number, store in enumerate(stores):
        with contextlib.suppress(NotFound):  # not started
            partial = folder / f"{number}.partial"
            partial.write_bytes(store.get("targets.json"))
            partial.replace(folder / f"{number}.json")


def watch(settings: Settings) -> None:
    """Runs Prometheus until interrupted. Raises InputError if it cannot be started."""
    program = shutil.which("prometheus")
    if program is None:
        raise InputError("the program prometheus was not found: install it (Debian: apt-get install prometheus)")
    if not settings.runs:
        raise InputError("no run given; example: make monitor RUN=runs/demo")
    stores = [open_store(run) for run in settings.runs]
    with tempfile.TemporaryDirectory(prefix="prometheus-") as name:
        folder = Path(name)
        write_configuration(folder, settings.scrape_s)
        command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{settings.port}", "--log.level=warn"]
        with subprocess.Popen(command) as server:
            print(f"Prometheus at http://127.0.0.1:{settings.port}/alerts; stop with Ctrl-C", flush=True)
            try:
                _follow(stores, folder / "targets", server)
            finally:
                server.terminate()
                server.wait()  # an interrupted Popen does not wait, and the temporary folder would be removed under it


def _follow(stores: list[Store], folder: Path, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            copy_targets(stores, folder)
        except FINAL as error:
            print(f"cannot read targets.json, keeping the old targets: {error}", flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise InputError(f"prometheus exited with code {server.wait(REFRESH_S)}; its log is above")


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # background jobs of a script ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    with one_line_errors(), contextlib.suppress(KeyboardInterrupt):
        watch(tyro.cli(Settings, description=__doc__, prog="make monitor"))


if __name__ == "__main__":
    main()
