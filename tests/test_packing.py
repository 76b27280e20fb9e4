"""A bucket of photographs is packed on a cluster whose driver, worker and node are killed: one machine's bytes."""

import hashlib
import os
import signal
import time
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from benchmarks.fault_proxy import FaultProxy, Plan
from cluster.storage import Store, join, open_store
from deblur.data import pictures
from deblur.data.pack_settings import PackSettings
from deblur.data.packing import pack
from tests.clusters import log_at_the_end, two_nodes, until, workers
from tests.datasets import picture

COUNT = 240
FLAGS = {"blur_model": "camera", "validation_scenes": 20, "shard_mb": 4}


def hashes(store: Store) -> dict[str, str]:
    return {key: hashlib.sha256(store.get(key)).hexdigest() for key in store.list()}


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_nodes_that_are_killed_leave_the_bytes_of_one_machine(
    s3_server: dict[str, str], bucket: str, tmp_path: Path
) -> None:
    source, out = open_store(join(bucket, "photographs")), open_store(join(bucket, "out"))
    for nth in range(COUNT):
        source.put(f"{nth % 7}/{nth:03d}.png", pictures.encode_png(picture(nth, 200, 260)))
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in FLAGS.items())
    command = f"python -m deblur.pack {source.url} --out {out.url} --nodes 2 {flags}"

    def chunks() -> list[str]:
        return [key for key in out.list("parts/") if key.endswith(".json")]

    with (
        two_nodes(drain_s=5, cpus_per_node=2) as cluster,
        FaultProxy(s3_server["AWS_ENDPOINT_URL"], Plan(), cluster.gateway) as proxy,
    ):
        client = JobSubmissionClient(cluster.jobs)
        environment = {"env_vars": s3_server | {"AWS_ENDPOINT_URL": proxy.url}}
        job = client.submit_job(entrypoint=command, runtime_env=environment)
        until(lambda: len(chunks()) >= 3, client, job)
        client.stop_job(job)
        log_at_the_end(client, job)
        while workers(cluster):  # they exit after the driver
            time.sleep(0.05)
        kept = chunks()
        assert 3 <= len(kept) < COUNT / 16

        job = client.submit_job(entrypoint=command, runtime_env=environment)
        until(lambda: len(chunks()) > len(kept), client, job)
        os.kill(workers(cluster)[0], signal.SIGKILL)
        until(lambda: len(chunks()) >= len(kept) + 3, client, job)
        cluster.nodes[0].kill()
        log = log_at_the_end(client, job)
        assert client.get_job_status(job) == "SUCCEEDED", log

    one = open_store(tmp_path / "one")
    pack(PackSettings(source=source.url, out=one.url, **FLAGS))
    assert hashes(out) == hashes(one)
    assert len([key for key in out.list("train/") if key.endswith(".tar")]) > 3
