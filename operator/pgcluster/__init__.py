"""PgCluster: PostgreSQL replicated and failed over by repmgr, behind pgbouncer pools."""

__version__ = "0.1.0"
