"""One cluster, from what is to what should be: read everything, decide, write the difference.

Level-triggered and idempotent: it may be cut off after any write and starts over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pydantic

from pgcluster.api import conditions, names
from pgcluster.api.config import Orders
from pgcluster.api.errors import BlockedError, RetryError
from pgcluster.api.models import PgCluster, to_config
from pgcluster.api.validation import check
from pgcluster.controller import (
    certificates,
    issuers,
    nodes,
    pools,
    rollout,
    scale,
    serving,
    shape,
    status,
    switchover,
)
from pgcluster.controller.apply import Applier
from pgcluster.controller.metrics import Metrics
from pgcluster.controller.observe import Key, Observed, observe
from pgcluster.controller.orders import told
from pgcluster.controller.prerequisites import Catalog, check_storage_class, images_of, newer
from pgcluster.controller.storage import Storage
from pgcluster.controller.tell import tell
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import Conflict, Forbidden, Invalid, NotFound
from pgcluster.kube.events import EventRate
from pgcluster.kube.resources import (
    CONFIG_MAPS,
    PODS,
    STATEFUL_SETS,
)
from pgcluster.render import cluster as render_cluster
from pgcluster.render import lease as render_lease
from pgcluster.render import secrets as render_secrets

log = logging.getLogger(__name__)

# A cluster that is not as it should be is looked at again without an event: what it waits for may
# be something that nobody watches, such as a StorageClass.
_UNSETTLED_S = 15.0
# An agent writes the pools' section within moments of any change; the operator steps in after.
_REPAIR_AFTER_S = 4.0
# Each step of a rolling change is seen by an event; this is for one that got lost.
_ROLLING_S = 5.0
# Nobody watches the Secrets of others: how soon a change of one is followed.
_FOLLOW_S = 30.0
# What the Lease lists, and what the poolers have applied, is not watched.
_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """How a reconciliation ended; `again_s` is when to look again without being woken."""

    outcome: str  # done, blocked
    again_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Plans:
    """What is to be done next: of the cluster's shape, of a rolling change, of a switchover."""

    shape: shape.Shape
    rolling: rollout.Plan
    switchover: switchover.Decision
    tls_enforced: bool

    @property
    def orders(self) -> Orders:
        """What the agents are told beside the spec."""
        step = self.rolling.step
        return replace(
            self.shape.orders,
            switchover=self.switchover.order,
            restart=step.config if isinstance(step, rollout.Restart) else None,
            tls_enforced=self.tls_enforced,
        )


@dataclass(frozen=True, slots=True)
class _Written:
    """What writing came to: what waits (reason and message), and when to look again."""

    pending: tuple[str, str] | None
    again_s: float | None
    # Whether an object was not as the spec asks for.
    changed: bool


class Reconciler:
    """Reconciles one cluster a call; keeps nothing that a restart could not lose."""

    def __init__(
        self,
        client: KubeClient,
        metrics: Metrics,
        catalog: Catalog,
        *,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
        going: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._catalog = catalog
        self._identity = identity
        self._clock = clock
        self._today = today
        # Nodes that are about to go, and why.
        self._going = going
        # Since when a pools' section has been wrong in this very way.
        self._wrong_since: dict[Key, tuple[str, float]] = {}
        # Since when no primary has been there to tell which poolers are silent.
        self._untold_since: dict[Key, float] = {}
        self._event_rates: dict[Key, EventRate] = {}

    async def __call__(self, key: Key) -> Result | None:
        """Reconcile; None where the cluster is gone. RetryError and ApiError: to be tried again."""
        observed = await observe(self._client, key)
        if observed is None or "deletionTimestamp" in observed.cluster["metadata"]:
            # Owner references delete the rest; a write now would only bring something back.
            self.forget(key)
            return None
        cluster, blocked = _parse(observed)
        outcome = status.Outcome(blocked=blocked)
        again_s = None
        if cluster is not None:
            outcome, again_s = await self._bring_in_line(observed, cluster, blocked)
        settled = await tell(
            self._client,
            self._metrics,
            observed,
            cluster,
            outcome,
            identity=self._identity,
            rate=self._event_rates.setdefault(key, EventRate()),
            now_s=self._clock(),
        )
        if outcome.blocked or not settled:
            again_s = _sooner(again_s, _UNSETTLED_S)
        return Result("blocked" if outcome.blocked else "done", again_s)

    def forget(self, key: Key) -> None:
        """Drop what is kept for a cluster that is gone."""
        self._wrong_since.pop(key, None)
        self._untold_since.pop(key, None)
        self._event_rates.pop(key, None)
        self._metrics.forget(*key)

    # --- writing ------------------------------------------------------------------------------

    async def _bring_in_line(
        self, observed: Observed, cluster: PgCluster, blocked: tuple[str, str] | None
    ) -> tuple[status.Outcome, float | None]:
        images = None
        pending = None
        plans: _Plans | None = None
        offered = issuers.Offered()
        again_s = None
        applied = False
        acts = blocked is None and not cluster.spec.paused
        live_set = observed.child(STATEFUL_SETS, names.statefulset(cluster.name))
        wanted = shape.plan(observed, cluster, live_set, self._today())
        try:
            if not cluster.spec.paused:
                # First: clients are waiting, and a spec that cannot be acted on changes nothing.
                await self._serve(observed)
            images = images_of(observed, cluster, self._catalog)
            if blocked is None:
                plans = self._plan(observed, cluster, live_set, wanted)
                again_s = plans.switchover.again_s
            if live_set is not None or (plans is not None and acts):
                offered = await issuers.offered(self._client, observed, cluster, self._today())
                if offered.issuer != certificates.OPERATOR:
                    again_s = _sooner(again_s, _FOLLOW_S)
            if plans is not None and acts:
                written = await self._write(observed, cluster, images, plans, offered)
                pending = written.pending
                again_s = _sooner(again_s, written.again_s)
                applied = written.changed and not _known(observed)
                if applied:
                    again_s = _sooner(again_s, _STEP_S)
            elif live_set is not None:
                # Certificates expire, whoever keeps their hands off.
                applier = Applier(self._client, observed)
                await self._certify(observed, cluster, applier, offered)
        except BlockedError as error:
            blocked = (error.reason, str(error))
        except (Invalid, Forbidden) as error:
            blocked = (
                conditions.API_REFUSED,
                f"the API server refuses an object: {error}; correct the field that it names, or"
                " give the operator the right",
            )
        return (
            status.Outcome(
                applied=applied,
                image=images.postgres if images else None,
                pgbouncer_image=images.pgbouncer if images else None,
                blocked=blocked,
                pending=pending,
                rolling=plans.rolling if plans and acts else None,
                switchover=plans.switchover if plans else None,
                newer_image=newer(cluster, images, self._catalog) if images else None,
                asleep=wanted.sleep.asleep,
                sleeping=wanted.sleep.step if acts else None,
                held=wanted.upkeep.held if acts else told(observed).maintenance,
                not_held=wanted.upkeep.refused if acts else None,
                certificate=offered.trouble,
            ),
            again_s,
        )

    def _plan(
        self,
        observed: Observed,
        cluster: PgCluster,
        live_set: Manifest | None,
        wanted: shape.Shape,
    ) -> _Plans:
        """What to do next about all that changes a running cluster; one thing at a time."""
        now, known = self._today(), status.known_status(observed)
        rolling = rollout.plan(
            observed,
            shape.sized(cluster, wanted.size.instances),
            live_set,
            handing_over=wanted.in_the_way or switchover.in_the_way(cluster, known),
            now=now,
        )
        wishes = list(wanted.wishes)
        going = self._going()
        if (leave := nodes.wish(observed, going)) is not None:
            wishes.append(leave)
        if isinstance(rolling.step, rollout.HandOver):
            wishes.append(rolling.step.wish)
        changing = switchover.decide(
            observed, cluster, known, wishes, now=now, going=nodes.on(observed, going)
        )
        return _Plans(wanted, rolling, changing, certificates.everywhere(observed))

    async def _serve(self, observed: Observed) -> None:
        """Take silent poolers out of their Services, and bring them back."""
        key, now_s = observed.key, self._clock()
        if serving.silent(observed) is not None:
            self._untold_since.pop(key, None)
        untold_s = now_s - self._untold_since.setdefault(key, now_s)
        for change in serving.changes(observed, untold_s=untold_s):
            label = {names.LABEL_SERVING: names.SERVING if change.serve else None}
            patch = {"metadata": {"labels": label}}
            try:
                await self._client.merge_patch(
                    PODS, change.pod, key.namespace, patch, manager=names.MANAGER_OPERATOR
                )
            except NotFound:
                continue
            to = "serves again" if change.serve else "leaves the Services"
            log.info("pooler %s %s: %s", change.pod, to, change.reason)

    def _issued(
        self, observed: Observed, cluster: PgCluster, offered: issuers.Offered
    ) -> certificates.Wanted:
        return certificates.wanted(
            observed, cluster, self._today(), issuer=offered.issuer, given=offered.given
        )

    async def _certify(
        self, observed: Observed, cluster: PgCluster, applier: Applier, offered: issuers.Offered
    ) -> None:
        issued = self._issued(observed, cluster, offered)
        await applier.check(issued.manifests)
        await certificates.write(self._client, applier, issued)
        await certificates.publish(self._client, observed, cluster, issued.trust)

    async def _write(
        self,
        observed: Observed,
        asked: PgCluster,
        images: render_cluster.Images,
        plans: _Plans,
        offered: issuers.Offered,
    ) -> _Written:
        applier = Applier(self._client, observed)
        wanted, step = plans.shape, plans.rolling.step
        live_set = observed.child(STATEFUL_SETS, names.statefulset(asked.name))
        if live_set is not None and "deletionTimestamp" in live_set["metadata"]:
            raise RetryError("the StatefulSet is being deleted, and made anew then", delay_s=0.5)
        cluster = shape.sized(asked, wanted.size.instances)
        rendered = render_cluster.manifests(
            cluster,
            images=images,
            system_identifier=observed.system_identifier,
            orders=plans.orders,
        )
        manifests = [
            serving.adjusted(
                scale.adjusted(
                    manifest,
                    replicas=wanted.size.replicas,
                    live=live_set,
                    poolers=wanted.sleep.poolers,
                ),
                observed,
            )
            for manifest in rendered
        ]
        issued = self._issued(observed, cluster, offered)
        kept = [
            *render_secrets.manifests(cluster, trust=issued.trust),
            render_lease.manifest(
                cluster,
                system_identifier=observed.system_identifier,
                timeline=status.known_status(observed).timeline,
                epoch=status.known_status(observed).epoch,
                primary=status.known_status(observed).primary,
            ),
        ]
        await applier.check([*kept, *issued.manifests, *manifests])
        if live_set is None:
            await check_storage_class(self._client, cluster)
        for manifest in kept:
            await applier.create(manifest)
        # Before the StatefulSet, whose pods mount one of them.
        await certificates.write(self._client, applier, issued)
        await certificates.publish(self._client, observed, cluster, issued.trust)
        refused = []
        changed = False
        for manifest in manifests:
            try:
                changed |= await applier.apply(manifest)
            except (Invalid, Forbidden) as error:
                # One wrong field must not keep all the others from being brought in line.
                refused.append(f"{manifest['kind']} {manifest['metadata']['name']}: {error}")
        stateful_set = next(made for made in rendered if made["kind"] == STATEFUL_SETS.kind)
        storage = Storage(self._client, observed, asked)
        await storage.see_to(stateful_set, live_set, instances=wanted.size.instances)
        await applier.delete_unwanted([*kept, *issued.manifests, *manifests])
        again_s = await self._repair_pools(observed, cluster, applier, plans.orders)
        await self._prune_poolers(observed)
        await self._replace(observed, step, applier)
        if refused:
            raise BlockedError(
                f"the API server refuses {'; '.join(refused)}; correct what it names, or give the"
                " operator the right",
                reason=conditions.API_REFUSED,
            )
        if await storage.remake(stateful_set, live_set):
            again_s = _STEP_S
        if storage.refused is not None:
            raise BlockedError(storage.refused[1], reason=storage.refused[0])
        if wanted.sleep.step or wanted.size.under_way or storage.pending:
            again_s = _sooner(again_s, _STEP_S)
        if not isinstance(step, rollout.Nothing):
            again_s = _sooner(again_s, _ROLLING_S)
        return _Written(wanted.pending or storage.pending, again_s, changed)

    async def _repair_pools(
        self, observed: Observed, cluster: PgCluster, applier: Applier, orders: Orders
    ) -> float | None:
        config = to_config(cluster, system_identifier=observed.system_identifier, orders=orders)
        repair = pools.repair(observed, config)
        if repair is None:
            self._wrong_since.pop(observed.key, None)
            return None
        if not repair.urgent:
            content, since_s = self._wrong_since.get(observed.key, ("", 0.0))
            if content != repair.content:
                since_s = self._clock()
                self._wrong_since[observed.key] = (repair.content, since_s)
            left_s = since_s + _REPAIR_AFTER_S - self._clock()
            if left_s > 0:
                return left_s
        manifest = pools.manifest(observed, repair.content)
        if "resourceVersion" not in manifest["metadata"]:
            # The ConfigMap was made a moment ago, and nobody can have written to it before.
            manifest["metadata"]["resourceVersion"] = applier.version(
                CONFIG_MAPS, manifest["metadata"]["name"]
            )
        try:
            await self._client.apply(CONFIG_MAPS, manifest, manager=names.MANAGER_POOLS)
        except Conflict as error:
            raise RetryError("the pools' section changed meanwhile", delay_s=0.5) from error
        self._wrong_since.pop(observed.key, None)
        log.info("wrote the pools' databases section: %s", repair.reason)
        return None

    async def _prune_poolers(self, observed: Observed) -> None:
        gone = pools.gone_poolers(observed)
        if not gone:
            return
        name = names.config_map_poolers(observed.key.name)
        # One removed by somebody else meanwhile would refuse all the others: merge, not JSON patch.
        await self._client.merge_patch(
            CONFIG_MAPS,
            name,
            observed.key.namespace,
            {"data": dict.fromkeys(gone)},
            manager=names.MANAGER_OPERATOR,
        )
        log.info("dropped the reports of poolers that are gone: %s", ", ".join(gone))

    async def _replace(self, observed: Observed, step: rollout.Step, applier: Applier) -> None:
        """Delete the pod whose turn it is, unless what that was judged by has just changed."""
        if not isinstance(step, rollout.Delete):
            return
        name = names.statefulset(observed.key.name)
        before = observed.child(STATEFUL_SETS, name)
        if before is None or applier.version(STATEFUL_SETS, name) != _version(before):
            return
        await self._client.delete(PODS, step.pod, observed.key.namespace, uid=step.uid or None)
        log.info("%s", step.reason)


def _sooner(*moments_s: float | None) -> float | None:
    return min((moment_s for moment_s in moments_s if moment_s is not None), default=None)


def _known(observed: Observed) -> bool:
    """Whether the stored status is about the present spec."""
    generation = observed.cluster["metadata"].get("generation")
    return bool(status.known_status(observed).observed_generation == generation)


def _version(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("resourceVersion"))


def _parse(observed: Observed) -> tuple[PgCluster | None, tuple[str, str] | None]:
    """The cluster, and why its spec cannot be acted on, if so: reason and message."""
    try:
        cluster = PgCluster.parse(observed.cluster)
    except pydantic.ValidationError as error:
        told = "; ".join(
            f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"
            for detail in error.errors()
        )
        return None, (conditions.INVALID_SPEC, told)
    found = check(cluster.spec)
    if not found:
        return cluster, None
    return cluster, (conditions.INVALID_SPEC, "; ".join(str(problem) for problem in found))
