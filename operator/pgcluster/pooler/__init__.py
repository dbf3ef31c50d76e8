"""The pooler agent: keeps one pgbouncer pointed at the primary, its clients waiting meanwhile."""
