"""A Kubernetes cluster rehearsed on one machine: reads manifests as KubeRay does, isolates nodes by network namespaces.

May import cluster.errors.
"""
