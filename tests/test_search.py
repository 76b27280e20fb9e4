"""Whole searches: on one machine with the driver killed, and on four nodes with a rank killed."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from cluster.local import Settings as ClusterSettings
from cluster.storage import join, open_store
from deblur.training.run import Run
from tests.clusters import isolated_cluster
from tests.datasets import write_dataset
from tests.deblur.test_train import REPOSITORY, SMALL, kill_all


def record(folder: Path) -> dict[str, Any]:
    """The content of search.json; no trials before it is written."""
    path = folder / "search.json"
    return json.loads(path.read_text()) if path.exists() else {"trials": []}


def states(folder: Path) -> Counter[str]:
    return Counter(trial["state"] for trial in record(folder)["trials"])


def score(trial: dict[str, Any]) -> float:
    return trial["curve"][-1]["validation_psnr"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_search_resumes_after_its_driver_is_killed_and_best_json_reproduces_its_score(tmp_path: Path) -> None:
    """Eight trials on the sample photographs; the second has a useless learning rate. Ten minutes on two cores."""
    (tmp_path / "points.json").write_text('[{"generator_lr": 0.7}]')
    runs, folder = tmp_path / "runs", tmp_path / "runs" / "s"
    arguments = [sys.executable, "-m", "deblur.tune", "--recipe", "demo", "--runs", runs, "--search", "s"]
    arguments += ["--trials", "8", "--images", "480", "--points", tmp_path / "points.json", "--reduction", "2"]
    arguments += ["--grace-images", "120", "--checkpoint-s", "2"]
    mark = f"RUN_OF_TEST={uuid.uuid4()}"
    environment = os.environ | dict([mark.split("=")]) | {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}
    started = time.monotonic()
    driver = subprocess.Popen(arguments, cwd=REPOSITORY, env=environment)
    # In the middle of the third trial.
    while not (folder / "s-002/metrics.jsonl").exists():
        assert driver.poll() is None
        time.sleep(0.1)
    kill_all(mark)
    driver.wait()
    before = {trial["name"]: trial for trial in record(folder)["trials"]}
    ended = [name for name, trial in before.items() if trial["state"] != "running"]
    assert states(folder)["running"] == 1
    assert len(ended) == 2
    files = {name: (folder / name / "metrics.jsonl").stat().st_mtime_ns for name in ended}
    again = subprocess.run(arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    print(again.stdout)
    assert again.returncode == 0, again.stderr
    print(f"both runs took {time.monotonic() - started:.0f} s")

    trials = {trial["name"]: trial for trial in record(folder)["trials"]}
    assert len(trials) == 8
    assert states(folder)["running"] == states(folder)["failed"] == 0
    # Trials that had ended were not repeated, and the interrupted one was resumed.
    assert {name: (folder / name / "metrics.jsonl").stat().st_mtime_ns for name in ended} == files
    assert {name: trials[name] for name in ended} == {name: before[name] for name in ended}
    restarts = {name: json.loads((folder / name / "history.json").read_text())["restarts"] for name in trials}
    assert restarts == {name: int(name == "s-002") for name in trials}
    # The useless one was stopped early and is the last.
    assert trials["s-001"]["state"] == "stopped"
    assert trials["s-001"]["curve"][-1]["images_seen"] == 120
    assert min(trials.values(), key=score)["name"] == "s-001"
    for name in ("report.html", "report.png"):
        assert (folder / name).stat().st_size > 20_000

    best = json.loads((folder / "best.json").read_text())
    finished = [trial for trial in trials.values() if trial["state"] == "finished"]
    assert best["trial"] == max(finished, key=score)["name"]
    assert (best["ranks"], best["threads_per_rank"]) == (1, 2)
    train = [sys.executable, "-m", "deblur.train", "--recipe", folder / "best.json", "--runs", runs, "--run", "again"]
    subprocess.run(train, cwd=REPOSITORY, env=environment | {"OMP_NUM_THREADS": "2"}, check=True)
    assert Run(str(runs / "again")).read_metrics()[-1]["validation_psnr"] == best["validation_psnr"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_trials_of_two_nodes_run_on_four_and_resume_after_a_rank_is_killed(tmp_path: Path) -> None:
    dataset = write_dataset(open_store(tmp_path / "data"), train=43)
    folder = tmp_path / "runs" / "s"
    most, killed = 0, 0
    with isolated_cluster(ClusterSettings(nodes=4)) as cluster:
        client = JobSubmissionClient(cluster.jobs)
        arguments = ["--trials", "3", "--nodes-per-trial", "2", "--images", "800", "--grace-images", "400"]
        arguments += ["--search", "s", "--checkpoint-s", "1", "--space", "critic_updates=5", "objective=wgan-gp"]
        job = client.submit_job(
            entrypoint=" ".join(["python -m deblur.tune", *SMALL, *arguments]),
            runtime_env={
                "working_dir": str(REPOSITORY),
                "env_vars": {"DEBLUR_DATA": dataset.store.url, "DEBLUR_RUNS": str(tmp_path / "runs")},
                "excludes": ["runs", ".venv", ".git"],
            },
        )
        while not client.get_job_status(job).is_terminal():
            most = max(most, len(ranks()))
            if not killed and has_checkpoint(folder / "s-000"):
                killed = next(pid for pid, run in ranks().items())
                os.kill(killed, signal.SIGKILL)
            time.sleep(0.2)
        log = client.get_job_logs(job)
        assert client.get_job_status(job) == "SUCCEEDED", log
    print(log)
    assert killed
    assert most == 4, "two concurrent trials of two ranks, never more"
    assert states(folder)["running"] == states(folder)["failed"] == 0
    assert "2 concurrent trials" in log
    restarts = [json.loads((path / "history.json").read_text())["restarts"] for path in sorted(folder.glob("s-*"))]
    assert sum(restarts) == 1
    (restarted,) = (trial for trial, count in zip(record(folder)["trials"], restarts, strict=True) if count)
    assert restarted["state"] in ("finished", "stopped")
    seen = [point["images_seen"] for point in restarted["curve"]]
    assert seen == sorted(set(seen))
    assert all(trial["ranks"] == 2 for trial in record(folder)["trials"])


def has_checkpoint(run: Path) -> bool:
    return bool(Run(join(str(run))).checkpoints.list())


def ranks() -> dict[int, str]:
    """The Ray Train workers that run now."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        if command.startswith(b"ray::RayTrainWorker"):
            found[int(process.name)] = command.decode(errors="replace")
    return found
