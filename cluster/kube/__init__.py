"""Kubernetes files of a run, for the KubeRay operator; nothing here asks a cluster."""
