"""The command: what it refuses before any work, and real runs over Ray on one node, on two, and after a kill."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.job_submission import JobSubmissionClient

from cluster.errors import InputError
from cluster.local import Settings as ClusterSettings
from cluster.local import local_cluster
from cluster.storage import join, open_store
from deblur.config import presets, recipes
from deblur.config.recipes import DataRecipe, GeneratorRecipe
from deblur.models.vgg import load_features
from deblur.train import parse
from deblur.training.job import prepare
from deblur.training.run import Run
from tests.datasets import write_dataset

REPOSITORY = Path(__file__).parents[2]
# The smallest run that is still the paper's: penalty, five critic steps, InstanceNorm.
SMALL = shlex.split("""
    --recipe paper --batch-size 4 --crop 24 --generator.filters 4 --generator.blocks 1 --critic.filters 4
    --critic.layers 2 --features vgg16-block1_conv1 --feature-weights random --precision float32
""")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(open_store(folder), train=43)
    return str(folder)


# ---- settings


def test_flags_change_fields_of_the_preset() -> None:
    settings = parse(["--recipe", "blog", "--batch-size", "8", "--generator.filters", "32", "--nodes", "4"])
    assert settings.nodes == 4
    expected = replace(presets.blog(), generator=GeneratorRecipe(norm="batch", output="mean", filters=32))
    assert settings.recipe == replace(expected, data=replace(presets.blog().data, batch_size=8))


def test_without_flags_the_recipe_is_the_papers() -> None:
    assert parse([]).recipe == presets.paper()


def test_a_recipe_is_read_from_its_file(tmp_path: Path) -> None:
    recipe = replace(presets.demo(), seed=7)
    (tmp_path / "best.json").write_text(recipes.to_json(recipe))
    assert parse(["--recipe", str(tmp_path / "best.json")]).recipe == recipe


def test_the_environment_names_the_roots_and_flags_win(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBLUR_DATA", data)
    monkeypatch.setenv("DEBLUR_RUNS", str(tmp_path / "by-environment"))
    job = prepare(parse(SMALL))
    assert job.config.data == data
    assert job.config.runs == str(tmp_path / "by-environment")
    assert job.config.name == f"paper-{job.dataset.index.digest[:8]}"
    assert prepare(parse([*SMALL, "--runs", str(tmp_path / "by-flag")])).config.runs == str(tmp_path / "by-flag")


# ---- refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--recipe", "papre"], r"--recipe papre: no such recipe; choose .*paper, .*demo"),
        (["--batch-size", "4", "--nodes", "5"], r"5 ranks cannot share batches of 4; choose --batch-size 5"),
        (["--batch-size", "2", "--ranks-per-node", "3"], r"3 ranks cannot share batches of 2"),
        (["--batch-size", "64"], r"batch size 64 is more than the 43 samples"),
        (["--crop", "64"], r"--crop 64 is larger than the smallest training picture \(56x48\)"),
        (["--data", "nowhere"], r"nowhere/index\.json: .*deblur\.pack"),
        (["--data", "gs://bucket/x"], r"gs://bucket/x: .*s3://"),
        (["--data", "pipe:cat"], r"pipe:cat: .*s3://"),
        (["--feature-weights", "pretrained", "--vgg-weights", "no.pth"], r"no\.pth"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        prepare(parse([*SMALL, "--data", data, "--runs", "runs", *more]))
    assert not list(tmp_path.rglob("*")), "nothing may have been written"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes", "0"], r"--nodes is 0; it must be at least 1"),
        (["--min-nodes", "3", "--nodes", "2"], r"--min-nodes 3 is more than --nodes 2"),
        (["--storage-wait-s", "900"], r"--storage-wait-s is 900\.0; .* between 0 and 300"),
        (["--run", "../escape"], r"--run \.\./escape: not a name"),
        (["--run", "/tmp/x"], r"--run /tmp/x: not a name"),
        (["--run", "a{b}"], r"--run a\{b\}: not a name"),
        (["--run", "a//b"], r"--run a//b: not a name"),
        (["--max-bad-share", "1.5"], r"--max-bad-share is 1\.5; it must lie between 0 and 1"),
    ],
)
def test_flags_out_of_range_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*SMALL, *flags])
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())  # as the terminal's width breaks it
    assert re.search(message, said)


def test_a_missing_bucket_is_refused_by_name(bucket: str) -> None:
    with pytest.raises(InputError, match=r"s3://there-is-no-such/.*no such bucket"):
        prepare(parse([*SMALL, "--data", "s3://there-is-no-such/data"]))


def test_wrong_credentials_are_refused_with_the_variables(
    s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(InputError, match=r"no credentials; set AWS_ACCESS_KEY_ID"):
        prepare(parse([*SMALL, "--data", "s3://bucket/data"]))


def test_vgg_weights_of_a_file_are_taken_wherever_a_rank_runs(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = load_features("vgg16-block1_conv1", "random", None)
    torch.save(features.state_dict(), tmp_path / "vgg.pth")
    monkeypatch.chdir(tmp_path)
    weights = ["--feature-weights", "pretrained", "--vgg-weights", "vgg.pth"]
    job = prepare(parse([*SMALL, "--data", data, "--runs", str(tmp_path / "runs"), *weights]))
    assert job.config.vgg_weights == str(tmp_path / "vgg.pth")
    loaded = job.config.load_features(torch.device("cpu"))
    assert loaded is not None
    assert torch.equal(loaded.state_dict()["features.0.weight"], features.state_dict()["features.0.weight"])


# ---- real runs


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "deblur.train", *SMALL, *arguments]


@pytest.mark.cluster
def test_two_ranks_of_one_node_train_and_a_second_start_finds_nothing_to_do(data: str, tmp_path: Path) -> None:
    arguments = command(
        "--data", data, "--runs", str(tmp_path), "--run", "r", "--ranks-per-node", "2", "--images", "48"
    )
    first = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "48/48 images" in first.stdout + first.stderr
    run = Run(str(tmp_path / "r"))
    assert run.checkpoints.list()[-1].images_seen == 48
    assert {"recipe.json", "origin.json", "metrics.jsonl"} <= set(run.store.list())
    assert run.read_metrics()[-1]["images_seen"] == 48
    again = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "nothing to do" in again.stdout


@pytest.mark.cluster
def test_a_check_reads_writes_and_says_what_would_run_and_leaves_nothing(data: str, tmp_path: Path) -> None:
    arguments = command("--data", data, "--runs", str(tmp_path / "runs"), "--run", "r", "--images", "48", "--check")
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert f"dataset  {data}/index.json: 43 train, 3 validation" in done.stdout
    assert "r: starts at 0 of 48 images, 12 updates of 4" in done.stdout
    assert f"read and write {tmp_path / 'runs'}" in done.stdout
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.soak
def test_a_check_of_more_nodes_than_there_are_says_what_is_missing(data: str, tmp_path: Path) -> None:
    arguments = command("--data", data, "--runs", str(tmp_path), "--nodes", "2", "--check", "--wait-s", "0")
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "1 of 2 nodes" in line


@pytest.mark.parametrize(
    "num_ranks",
    [
        pytest.param(1, marks=pytest.mark.soak),
        pytest.param(2, marks=pytest.mark.long),
        pytest.param(4, marks=pytest.mark.long),
    ],
)
def test_the_command_killed_and_given_again_ends_in_the_same_bits(data: str, tmp_path: Path, num_ranks: int) -> None:
    """SIGKILL to every process of the run, driver and Ray included, then the same command."""
    mark = f"RUN_OF_TEST={uuid.uuid4()}"
    environment = os.environ | dict([mark.split("=")]) | {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": num_ranks})}

    def start(run: str) -> subprocess.Popen[bytes]:
        arguments = ["--data", data, "--runs", str(tmp_path), "--run", run, "--images", "400", "--checkpoint-s", "0"]
        arguments += ["--ranks-per-node", str(num_ranks), "--validate-images", "100000"]
        return subprocess.Popen(command(*arguments), cwd=REPOSITORY, env=environment)

    def generator(run: str) -> bytes:
        checkpoints = Run(str(tmp_path / run)).checkpoints
        newest = checkpoints.list()[-1]
        assert newest.images_seen == 400
        return checkpoints.load_part(newest, "generator.safetensors")

    assert start("straight").wait() == 0
    driver = start("killed")
    while not Run(str(tmp_path / "killed")).checkpoints.list():
        assert driver.poll() is None
        time.sleep(0.01)
    kill_all(mark)
    driver.wait()
    assert 0 < Run(str(tmp_path / "killed")).checkpoints.list()[-1].images_seen < 400
    assert start("killed").wait() == 0
    assert generator("killed") == generator("straight")


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.integration),
        pytest.param(signal.SIGTERM, marks=pytest.mark.soak),
    ],
)
def test_an_interrupted_command_saves_and_ends_in_the_same_bits_when_given_again(
    data: str, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ["--data", data, "--runs", str(tmp_path), "--images", "1200", "--validate-images", "100000"]
    arguments += ["--checkpoint-s", "0"]
    session = tmp_path / "ray"  # where Ray would write
    environment = os.environ | {"RAY_TMPDIR": str(session)}
    straight = subprocess.run(
        command(*arguments, "--run", "straight"), cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    run = Run(str(tmp_path / "straight"))
    best = f"best     {run.read_metrics()[-1]['validation_psnr']:.2f} dB, blurred "
    assert f"finished {run.url}\n{best}" in straight.stdout
    assert not session.exists(), "one rank on one machine does not wait for Ray"

    interrupted = subprocess.Popen(
        command(*arguments, "--run", "interrupted"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not Run(str(tmp_path / "interrupted")).checkpoints.list():
        assert interrupted.poll() is None
        time.sleep(0.01)
    interrupted.send_signal(number)
    rest, errors = interrupted.communicate()
    assert interrupted.returncode == 130, errors
    assert "Traceback" not in errors
    saved = Run(str(tmp_path / "interrupted")).images_seen()
    assert 0 < saved < 1200
    assert f"saved at {saved} images; the same command resumes" in rest
    subprocess.run(command(*arguments, "--run", "interrupted"), cwd=REPOSITORY, check=True, capture_output=True)
    first, second = (
        Run(str(tmp_path / name)).checkpoints.newest_part("generator.safetensors")
        for name in ("straight", "interrupted")
    )
    assert first == second


def kill_all(mark: str) -> None:
    """SIGKILL to every process that inherited the mark: Ray's daemons have left the driver's group and session."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            if mark.encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture(scope="module")
def two_nodes(s3_server: dict[str, str]) -> Iterator[str]:
    """The jobs address of a cluster of a head and two worker nodes."""
    with local_cluster(ClusterSettings(nodes=2)) as addresses:
        yield addresses.jobs


def submit(address: str, entrypoint: str, environment: dict[str, str], folder: Path = REPOSITORY) -> str:
    """`ray job submit --working-dir . -- ENTRYPOINT` in a folder; its log, when it has ended well."""
    client = JobSubmissionClient(address)
    runtime = {"working_dir": str(folder), "env_vars": environment}
    job = client.submit_job(entrypoint=entrypoint, runtime_env=runtime)
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.5)
    assert client.get_job_status(job) == "SUCCEEDED", client.get_job_logs(job)
    return client.get_job_logs(job)


@pytest.mark.soak
def test_a_job_takes_along_the_code_and_nothing_else(two_nodes: str, tmp_path: Path) -> None:
    code = ["deblur/train.py", "deblur/models/embedded.safetensors", "cluster/storage/s3.py", "space.json"]
    others = [".git/objects/x", "runs/r/checkpoints/x", "data/train/0.tar", "photos.zip", ".venv/x", "x/deblur"]
    for name in code + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    shutil.copy(REPOSITORY / ".rayignore", tmp_path)
    log = submit(two_nodes, "find . -type f", {}, tmp_path)
    assert sorted(re.findall(r"^\./(.*)$", log, re.MULTILINE)) == sorted(code)


@pytest.mark.soak  # tests/k8s/test_rehearsal.py has four nodes and a bucket among the quick ones
def test_a_job_on_two_nodes_leaves_its_run_in_the_bucket(
    two_nodes: str, bucket: str, s3_server: dict[str, str]
) -> None:
    write_dataset(open_store(join(bucket, "data")), train=43)
    environment = s3_server | {"DEBLUR_DATA": join(bucket, "data"), "DEBLUR_RUNS": join(bucket, "runs")}
    log = submit(two_nodes, f"python -m deblur.train {' '.join(SMALL)} --nodes 2 --images 48 --run r", environment)
    assert "48/48 images" in log
    run = Run(join(bucket, "runs", "r"))
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest[0].images_seen == 48
    keys = set(run.store.list())
    assert {"recipe.json", "origin.json", "metrics.jsonl", "samples/000000000048.png"} <= keys
    assert recipes.from_json(run.store.get("recipe.json"), "").data == DataRecipe(batch_size=4, crop=24, images=48)
