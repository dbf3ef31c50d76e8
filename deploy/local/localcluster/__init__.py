"""localkube: a real multi-node Kubernetes on one Linux machine, in namespaces instead of Docker."""
