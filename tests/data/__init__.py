"""Real PostgreSQL and pgbouncer on loopback addresses; no Kubernetes."""
