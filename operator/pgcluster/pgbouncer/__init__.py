"""Talking to pgbouncer's admin console, and to any server over one libpq connection."""
