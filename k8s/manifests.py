"""Writes what repeats raycluster.yaml: `make manifests`

rayjob.yaml and rayjob-kueue.yaml, the same cluster for one training each, rayjob-tune.yaml, for a search,
rayservice.yaml, a smaller one that restores pictures, and base/raycluster.yaml, which the overlays change (kustomize
reads no file above the folder of a kustomization.yaml). Comments stay in raycluster.yaml.
"""

import re
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent
HEADER = "# Written from raycluster.yaml by `make manifests`. The reasons for its settings are there.\n"
JOB = """\
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: deblur-train
  namespace: deblur
spec:
  entrypoint: python -m deblur.train --nodes 4
  # A retry is a new cluster. All that it needs is in the bucket: the same command goes on from the newest checkpoint.
  # Ranks and workers that are lost need no retry, only a driver or a head that is.
  backoffLimit: 5
  preRunningDeadlineSeconds: 3600  # until the GPUs are there
  activeDeadlineSeconds: 604800  # a week, then the GPUs are given back; applied again, the job goes on
  shutdownAfterJobFinishes: true
  ttlSecondsAfterFinished: 600  # as long the head still shows its logs
  submissionMode: K8sJobMode
  submitterPodTemplate:
    metadata:
      labels:
        app.kubernetes.io/component: submitter  # the policy `job-submission` knows it by this
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
        runAsGroup: 100
        fsGroup: 100
        seccompProfile:
          type: RuntimeDefault
      containers:
        - name: ray-job-submitter
          image: {image}
          imagePullPolicy: IfNotPresent
          resources:
            requests: &submitter-resources
              cpu: 500m
              memory: 1Gi
            limits: *submitter-resources
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          volumeMounts:
            - {{name: tmp, mountPath: /tmp}}
      volumes:
        - name: tmp
          emptyDir:
            sizeLimit: 1Gi
  rayClusterSpec:
"""
# Kueue admits the job when its quota has room for all pods at once, and takes it back by suspending it: a retry.
QUEUED = {
    "metadata:\n  name: deblur-train\n": "metadata:\n  name: deblur-train\n"
    "  labels:\n    kueue.x-k8s.io/queue-name: deblur  # a LocalQueue of this namespace\n",
    "spec:\n  entrypoint": "spec:\n  suspend: true  # until Kueue admits it\n  entrypoint",
}
SEARCH = {
    "name: deblur-train": "name: deblur-tune",
    "python -m deblur.train --nodes 4": "python -m deblur.tune --trials 20 --images 200000",
    "the same command goes on from the newest checkpoint.": "the same command goes on with the search.",
    # The search's driver, and 1.5 GB of processes for each trial at once.
    "memory: 8Gi": "memory: 16Gi",
}
# Who may send pictures, and what restores them.
REQUESTS = """\
# Nobody may send a request, until a namespace says that its pods shall, such as that of your ingress controller:
#   kubectl label namespace NAMESPACE deblur/ingress=true
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: requests
  namespace: deblur
spec:
  podSelector:
    matchLabels:
      ray.io/serve: "true"  # KubeRay puts it on the workers of a RayService
  policyTypes: [Ingress]
  ingress:
    - from:
        - namespaceSelector:
            matchLabels:
              deblur/ingress: "true"
      ports:
        - {protocol: TCP, port: 8000}
"""
SERVICE = """\
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: deblur-restore  # requests go to the Service deblur-restore-serve-svc
  namespace: deblur
spec:
  # The operator hands this to Ray Serve. A change of it is made in the cluster that runs, replica by replica.
  serveConfigV2: |
    proxy_location: EveryNode
    http_options:
      host: 0.0.0.0
      port: 8000  # that of the policy `requests` and of the ports `serve`
    applications:
      - name: deblur
        import_path: deblur.serve:application
        route_prefix: /
        args:
          model: s3://my-bucket/runs/RUN  # to be set: a run, or a generator.safetensors
        deployments:
          - name: Restorer
            # As many as there are workers: their GPUs are taken anyway, and a worker without a replica has no proxy
            # either and is never ready.
            autoscaling_config:
              min_replicas: 2
              max_replicas: 2
              target_ongoing_requests: 4
            ray_actor_options:
              num_gpus: 1  # so one on each worker; whatever it reserves, it decodes on all of the worker's CPUs
              num_cpus: 1
  # A change of rayClusterConfig makes a second cluster, to which requests go once it is ready: it needs as many free
  # GPUs as the first has. (But `replicas` of the workers and its bounds, which only the next cluster will have.)
  upgradeStrategy:
    type: NewCluster
  # The head has no GPU, and if it is overrun, all is. The operator would have to reach its port 8000, too.
  excludeHeadPodFromServeSvc: true
  # No gcsFaultToleranceOptions, which need a Redis. Without them a lost head takes the workers with it, and the service
  # is away until they have started again: minutes. With a Redis that outlives the head the replicas answer meanwhile.
  rayClusterConfig:
"""
# Limits of uploads, and 503 where a replica is lost: in the proxy of each node.
GATE = "- {name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, value: cluster.gate:middlewares}\n"
HTTP = "- {name: serve, containerPort: 8000}\n"
DRAIN = '- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: "100"}\n'
SERVING = {
    # On the head, too: KubeRay makes the service from its ports.
    "- {name: driver-metrics": f"{HTTP}              - {{name: driver-metrics",
    "- {name: rank0-metrics": f"{HTTP}                - {{name: rank0-metrics",
    '- {name: RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, value: "300"}\n': GATE,
    '              - {name: RAY_TRAIN_COLLECTIVE_TIMEOUT_S, value: "600"}\n': "",
    DRAIN: f"{DRAIN}                {GATE}",
    "replicas: 4\n      minReplicas: 4\n      maxReplicas: 4\n": (
        "replicas: 2\n      minReplicas: 2\n      maxReplicas: 2\n"
    ),
    'cpu: "8"': 'cpu: "4"',
    "memory: 32Gi": "memory: 16Gi",
    "ephemeral-storage: 32Gi": "ephemeral-storage: 12Gi",
    "podAffinity:": "podAntiAffinity:",  # no gradients that had better stay in a zone, and a zone may be lost
    # There are no shards.
    "                - {name: cache, mountPath: /cache}\n": "",
    "            - name: cache\n              emptyDir:\n                sizeLimit: 20Gi\n": "",
}


def without_comments(manifest: str) -> str:
    """A manifest without its comments: they stand alone on a line, or behind two spaces at the end of one."""
    lines = re.sub(r"^ *#.*\n", "", manifest, flags=re.MULTILINE)
    return re.sub(r"  #.*$", "", lines, flags=re.MULTILINE)


def written(cluster: str) -> dict[str, str]:
    """What follows from the text of raycluster.yaml: the text of each file by its path in this folder."""
    base = without_comments(cluster)
    *common, ray_cluster = base.split("---\n")
    (image,) = set(re.findall(r"image: (.+)", ray_cluster))
    spec = ray_cluster.partition("\nspec:\n")[2]
    job = JOB.format(image=image) + textwrap.indent(spec, "  ")
    service = SERVICE + textwrap.indent(changed(spec, SERVING), "  ")
    files = {
        "base/raycluster.yaml": base,
        "rayjob.yaml": "---\n".join([*common, job]),
        "rayjob-kueue.yaml": "---\n".join([*common, changed(job, QUEUED)]),
        "rayjob-tune.yaml": "---\n".join([*common, changed(job, SEARCH)]),
        "rayservice.yaml": "---\n".join([*common, REQUESTS, service]),
    }
    return {path: HEADER + text for path, text in files.items()}


def changed(text: str, changes: dict[str, str]) -> str:
    """A text with other words, each of which stands in it once."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def main() -> None:
    for path, text in written((FOLDER / "raycluster.yaml").read_text()).items():
        (FOLDER / path).write_text(text)


if __name__ == "__main__":
    main()
