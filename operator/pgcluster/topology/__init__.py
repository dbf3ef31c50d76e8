"""What the cluster is, as its parts observe it: typed facts that decisions are made from."""
