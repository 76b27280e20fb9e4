"""A Kubernetes cluster rehearsed on one machine: manifests read as KubeRay reads them, nodes in network namespaces.

May import cluster.errors.
"""
