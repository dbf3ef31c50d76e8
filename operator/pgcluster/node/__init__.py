"""The node agent: runs in each postgres pod and is the only one that starts, stops or promotes."""
