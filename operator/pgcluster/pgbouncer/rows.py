"""What the admin console shows, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Database:
    """A row of SHOW DATABASES; `host` is the list as configured."""

    name: str
    host: str
    port: int
    dbname: str
    paused: bool


@dataclass(frozen=True, slots=True)
class Server:
    """A row of SHOW SERVERS; `client` is the `ptr` of the client that uses it, "" for none."""

    database: str
    address: str
    state: str
    client: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row of SHOW POOLS: how many clients wait, and how many servers are logged in."""

    database: str
    clients: int
    servers: int


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of SHOW CONFIG; what is not `changeable` takes a restart."""

    value: str
    changeable: bool
