"""Writes what repeats raycluster.yaml: `make manifests`

rayjob.yaml and rayjob-kueue.yaml, the same cluster for one training each, rayjob-tune.yaml, for a search, and
base/raycluster.yaml, which the overlays change (kustomize reads no file above the folder of a kustomization.yaml).
Comments stay in raycluster.yaml.
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
    files = {
        "base/raycluster.yaml": base,
        "rayjob.yaml": "---\n".join([*common, job]),
        "rayjob-kueue.yaml": "---\n".join([*common, changed(job, QUEUED)]),
        "rayjob-tune.yaml": "---\n".join([*common, changed(job, SEARCH)]),
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
