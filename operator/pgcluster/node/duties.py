"""What a running instance sees to, again and again: as a primary, and as a standby.

Level-triggered: each duty compares what should be with what is and acts on the difference, so that
it does not matter which event was missed or which step was cut off.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from prometheus_client import CollectorRegistry
from psycopg import conninfo

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError
from pgcluster.clock import monotonic_s
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Forbidden
from pgcluster.kube.resources import CONFIG_MAPS, SECRETS
from pgcluster.node.files import read_secret
from pgcluster.node.hearing import Attachment
from pgcluster.node.members import Members, patch_pod
from pgcluster.node.metadata import Metadata
from pgcluster.node.retention import Retention
from pgcluster.postgres import roles
from pgcluster.postgres.local import LocalPostgres
from pgcluster.render import pgbouncer as render_pgbouncer
from pgcluster.render import repmgr as render_repmgr
from pgcluster.repmgr import Repmgr

log = logging.getLogger(__name__)

_FAILED_AGAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Row:
    """This instance's row of repmgr.nodes, as far as it matters."""

    type: str
    active: bool
    conninfo: str
    upstream: int | None


def with_tls(upstream: str) -> str | None:
    """A standby's connection string to its upstream, with TLS; None where it has it already, or has
    no upstream."""
    parts = conninfo.conninfo_to_dict(upstream)
    wanted = {**parts, **render_repmgr.ENCRYPTED}
    if wanted == parts or not parts.get("host"):
        return None
    return conninfo.make_conninfo("", **wanted)


class Duties:
    """The duties of one instance; `config` gives the configuration in force."""

    def __init__(
        self,
        client: KubeClient,
        members: Members,
        local: LocalPostgres,
        config: Callable[[], ClusterConfig],
        *,
        me: str,
        address: str,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._client = client
        self._members = members
        self._local = local
        self._config = config
        self._me = me
        self._address = address
        self.repmgr_database = LocalPostgres(names.DB_REPMGR)
        self.metadata = Metadata(self.repmgr_database, config, lambda: self.repmgr, me=me)
        self.retention = Retention(local, config, me=me, registry=registry)
        self._internal_done = False
        self._declared: ClusterConfig | None = None
        self._declared_again_s = 0.0
        self._databases_written: str | None = None
        self._attachment = Attachment()
        self._stream_encrypted = False
        self.failed_objects: dict[str, str] = {}
        # Pods of the standbys that this primary streams to; None while it cannot tell.
        self.streaming: tuple[str, ...] | None = None

    @property
    def repmgr(self) -> Repmgr:
        """repmgr with this instance's configuration."""
        return Repmgr(render_repmgr.bindir(self._config().postgres_major))

    async def close(self) -> None:
        """Drop the connection, for instance because the server is about to stop."""
        await self.repmgr_database.close()

    def forget(self) -> None:
        """Look at everything again: the role has changed."""
        self._internal_done = False
        self._declared = None
        self._databases_written = None
        self._stream_encrypted = False
        self.retention.forget()
        self._attachment.forget()
        self.streaming = None

    # --- primary ------------------------------------------------------------------------------

    async def see_standbys(self) -> None:
        """Look which standbys are attached, for those who read from them."""
        pods = [names.pod(self._config().name, ordinal) for ordinal in range(names.MAX_INSTANCES)]
        rows = await self._local.query(
            "SELECT DISTINCT application_name AS pod FROM pg_stat_replication"
            " WHERE state = 'streaming' AND application_name = ANY(%s)",
            pods,
        )
        streaming = self._attachment.look(monotonic_s(), (row["pod"] for row in rows))
        if streaming != self.streaming:
            log.info("standbys that stream: %s", streaming)
        self.streaming = streaming

    async def point_pools_here(self, *, epoch: int, timeline: int) -> bool:
        """Make the pools' databases section name this instance; True where it was written.

        The write is forced: whoever holds the Lease is right.
        """
        config = self._config()
        target = render_pgbouncer.PoolTarget(
            primary=self._me,
            primary_host=self._address,
            standby_hosts=self._members.readable(self.streaming, staying=config.staying),
            epoch=epoch,
            timeline=timeline,
        )
        content = render_pgbouncer.databases_ini(config, target)
        if content == self._databases_written:
            return False
        name = names.config_map_pgbouncer(config.name)
        await self._client.apply(
            CONFIG_MAPS,
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": config.namespace},
                "data": {names.DATABASES_KEY: content},
            },
            manager=names.MANAGER_NODE,
        )
        self._databases_written = content
        log.info("the pools' databases section names this instance", extra={"epoch": epoch})
        return True

    async def claim_label(self) -> None:
        """Take the primary's label from every other instance, for the direct Service."""
        for pod in self._members.labelled_primary():
            if pod != self._me:
                await patch_pod(
                    self._client, self._config().namespace, pod, labels={names.LABEL_ROLE: None}
                )

    async def ensure_internal(self) -> None:
        """Make what repmgr and the poolers need; RetryError where the server says no."""
        if self._internal_done:
            return
        try:
            await roles.ensure_internal(
                repmgr_password=read_secret("repmgr", "password"),
                pooler_password=read_secret("pooler", "auth-password"),
            )
        except psycopg.Error as error:
            raise RetryError(f"the internal roles were not made: {error}") from error
        self._internal_done = True

    async def ensure_declared(self) -> None:
        """Make the users and databases that are configured; what could not be made is reported.

        One bad entry, such as a missing Secret, holds up neither the others nor the primary, and
        is tried again after a while.
        """
        config = self._config()
        now_s = monotonic_s()
        if self._declared == config and now_s < self._declared_again_s:
            return
        passwords, missing = await self._passwords(config)
        users = [user for user in config.users if f"user {user.name}" not in missing]
        try:
            failed = await roles.ensure_declared(users, config.databases, passwords)
        except psycopg.Error as error:
            raise RetryError(f"users and databases were not made: {error}") from error
        failed = {**missing, **failed}
        if failed and failed != self.failed_objects:
            log.warning("not made: %s", failed)
        self.failed_objects = failed
        self._declared = config
        self._declared_again_s = now_s + _FAILED_AGAIN_S if failed else float("inf")

    async def _passwords(self, config: ClusterConfig) -> tuple[dict[str, str], dict[str, str]]:
        """User → password, and for users whose Secret is missing, what is missing."""
        passwords: dict[str, str] = {}
        missing: dict[str, str] = {}
        for user in config.users:
            secret = user.password_secret
            if secret is None:
                continue
            try:
                manifest = await self._client.get(SECRETS, secret, config.namespace)
            except Forbidden:
                # The Role names each Secret, and may be a moment behind the configuration.
                manifest = None
            encoded = ((manifest or {}).get("data") or {}).get("password")
            if encoded:
                passwords[user.name] = base64.b64decode(encoded).decode()
            else:
                missing[f"user {user.name}"] = f"Secret {secret} with key password is missing"
        return passwords, missing

    async def ensure_primary_row(self) -> None:
        """Register this instance as the primary where repmgr does not know it as one.

        Then see to the rows of the others: see metadata.py.
        """
        if await self._row() != Row("primary", True, self._conninfo(), None):
            result = await self.repmgr.primary_register()
            if result.status != 0:
                raise RetryError(f"repmgr primary register failed: {result.last_line}")
        await self.metadata.keep()

    async def drop_stale_slots(self) -> None:
        """Drop slots of instances that are no more; they would keep WAL for ever.

        And renew invalidated ones: see retention.py.
        """
        await self.retention.see_to()

    # --- standby ------------------------------------------------------------------------------

    async def ensure_standby_row(self, upstream: str) -> None:
        """Register this instance as a standby of `upstream` where repmgr does not know it so."""
        row = await self._row()
        if row == Row("standby", True, self._conninfo(), names.node_id(upstream)):
            return
        result = await self.repmgr.standby_register(upstream)
        if result.status != 0:
            raise RetryError(f"repmgr standby register failed: {result.last_line}")

    async def encrypt_stream(self) -> None:
        """Have the stream of WAL go on under TLS, with this instance's certificate.

        repmgr writes where a standby streams from, and does so at a clone, a rejoin and a follow
        only: what it wrote before there were certificates is changed here.
        """
        if self._stream_encrypted or not self._config().tls_enforced:
            return
        rows = await self._local.query("SELECT current_setting('primary_conninfo') AS upstream")
        encrypted = with_tls(rows[0]["upstream"])
        if encrypted is not None:
            await self._local.alter_system("primary_conninfo", encrypted)
            await self._local.query("SELECT pg_reload_conf()")
            log.info("WAL is streamed under TLS from now on")
        self._stream_encrypted = True

    async def drop_own_slots(self) -> None:
        """A standby serves no walsender here: slots from its time as primary only keep WAL."""
        for row in await self._local.query(
            "SELECT slot_name FROM pg_replication_slots"
            " WHERE NOT active AND slot_name LIKE 'repmgr_slot_%%'"
            # A planned successor is promoted beside the loop, and its standbys' slots are new.
            " AND pg_is_in_recovery()"
        ):
            await self._local.query("SELECT pg_drop_replication_slot(%s)", row["slot_name"])
            log.info("dropped a slot of this former primary", extra={"slot": row["slot_name"]})

    # --- both ---------------------------------------------------------------------------------

    def _conninfo(self) -> str:
        config = self._config()
        host = names.pod_host(self._me, config.name, config.namespace)
        return render_repmgr.conninfo(host, config)

    async def _row(self) -> Row | None:
        """This instance's row as its own copy of repmgr's table has it; None where it has none."""
        try:
            rows = await self.repmgr_database.query(
                "SELECT type, active, conninfo, upstream_node_id FROM repmgr.nodes"
                " WHERE node_id = %s",
                names.node_id(self._me),
            )
        except RetryError:
            # Before the first registration there is neither table nor database.
            return None
        if not rows:
            return None
        return Row(
            rows[0]["type"], rows[0]["active"], rows[0]["conninfo"], rows[0]["upstream_node_id"]
        )
