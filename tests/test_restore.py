"""A bucket is restored on a cluster whose driver, worker and node are killed: every output exists, once, correct."""

import io
import os
import signal
import time
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import PIL.Image
import pytest
import torch
from ray.job_submission import JobSubmissionClient

from benchmarks.fault_proxy import FaultProxy, Plan
from cluster.storage import Store, join, open_store
from deblur.data import pictures
from deblur.inference.bulk import restore_file
from deblur.models.trained import load_model
from tests.clusters import log_at_the_end, two_nodes, until, workers
from tests.datasets import picture

CPU = torch.device("cpu")
SIZES = [(300, 400), (240, 500), (64, 64), (1, 9)]
COUNT = 60


def write_inputs(store: Store) -> dict[str, bytes]:
    """Photographs by name, and one broken file."""
    made = {f"{nth % 3}/{nth:03d}.png": pictures.encode_png(picture(nth, *SIZES[nth % 4])) for nth in range(COUNT)}
    for name, data in made.items():
        store.put(name, data)
    store.put("1/broken.png", b"no picture")
    return made


def compare(out: Store, sent: dict[str, bytes], model: Path) -> None:
    """Every output exists, and differs from this process's result by at most one level."""
    generator = load_model(str(model), CPU)
    assert {key for key in out.list() if key.endswith(".png")} == set(sent)
    for name, data in sent.items():
        expected = PIL.Image.open(io.BytesIO(restore_file(generator, data, name, ".png", CPU)))
        found = PIL.Image.open(io.BytesIO(out.get(name)))
        assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_bucket_is_restored_once_despite_killed_processes(
    s3_server: dict[str, str], bucket: str, service_model: Path
) -> None:
    s3 = boto3.session.Session().client("s3")
    inputs, out = open_store(join(bucket, "in")), open_store(join(bucket, "out"))
    sent = write_inputs(inputs)
    open_store(bucket).put("generator.safetensors", service_model.read_bytes())
    command = f"python -m deblur.restore {inputs.url} --out {out.url} --nodes 2 "
    command += f"--model {join(bucket, 'generator.safetensors')}"

    def done() -> list[str]:
        return [key for key in out.list() if key.endswith(".png")]

    def written() -> dict[str, Any]:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket.removeprefix("s3://"), Prefix="out/")
        return {entry["Key"]: entry["LastModified"] for page in pages for entry in page["Contents"]}

    with (
        two_nodes(drain_s=5, cpus_per_node=2) as cluster,
        FaultProxy(s3_server["AWS_ENDPOINT_URL"], Plan(), cluster.gateway) as proxy,
    ):
        client = JobSubmissionClient(cluster.jobs)
        environment = {"env_vars": s3_server | {"AWS_ENDPOINT_URL": proxy.url}}

        # The driver is stopped.
        job = client.submit_job(entrypoint=command, runtime_env=environment)
        until(lambda: len(done()) >= 5, client, job)
        client.stop_job(job)
        log_at_the_end(client, job)
        while workers(cluster):  # they exit after the driver
            time.sleep(0.05)
        before = written()
        assert 5 < len(before) < COUNT  # restored-by.json among them

        # The same command again; a worker dies, then a node.
        job = client.submit_job(entrypoint=command, runtime_env=environment)
        until(lambda: len(done()) >= len(before) + 5, client, job)
        os.kill(workers(cluster)[0], signal.SIGKILL)
        until(lambda: len(done()) >= len(before) + 15, client, job)
        cluster.nodes[0].kill()
        log = log_at_the_end(client, job)
        print(log)
        assert client.get_job_status(job) == "FAILED"  # as one picture could not be restored

        # Once more: only the broken one is left.
        all_written = written()
        job = client.submit_job(entrypoint=command.replace("--nodes 2", "--nodes 1"), runtime_env=environment)
        again = log_at_the_end(client, job)
        assert f"0 of {COUNT + 1} photographs restored" in again
        assert f"{COUNT} already existed" in again

    assert log.splitlines()[-1].startswith(f"{inputs.url}/1/broken.png: not a picture")
    assert f"{COUNT + 1 - len(before)} of {COUNT + 1} photographs restored" in log
    assert {key: all_written[key] for key in before} == before  # not made again
    assert written() == all_written
    compare(out, sent, service_model)
