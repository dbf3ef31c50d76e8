"""A forced promotion: who asked for it, and what came of it. Pure.

The agents carry `spec.failover.forcePromotion` out by themselves, at the gate. Here it is only
followed, for the status, the Events and the log: the wish accepts that commits are lost, and
somebody will ask whose it was.
"""

from __future__ import annotations

from collections.abc import Iterable

from pgcluster.api.models import FailoverRecord, ForcedPromotionRecord, ForcePromotion, PgCluster
from pgcluster.controller.asking import manager_of
from pgcluster.controller.observe import Observed

WAITING = "Waiting"


def follow(
    observed: Observed,
    cluster: PgCluster | None,
    known: ForcedPromotionRecord | None,
    failovers: Iterable[FailoverRecord],
    *,
    now: str,
) -> ForcedPromotionRecord | None:
    """What is to be on record now, from what is; a wish that was dealt with stays as it was."""
    if cluster is None or observed.lease is None:
        return known
    wish = cluster.spec.failover.force_promotion
    # One that was withdrawn and is there again is a new one.
    same = (
        known is not None
        and wish is not None
        and known.state != "Withdrawn"
        and (known.instance, known.epoch) == (wish.instance, wish.epoch)
    )
    if same and known is not None and known.state != WAITING:
        return known
    if wish is None:
        if known is None or known.state != WAITING:
            return known
        state, reason = _state(observed, known, failovers)
        if state in (WAITING, "Ignored"):
            state, reason = "Withdrawn", "it was taken out of the spec before it was met"
        return _ended(known, state, reason, now)
    begun = known if same and known is not None else _begun(cluster, wish, now)
    state, reason = _state(observed, begun, failovers)
    if same and state == "Ignored":
        # It was meant in this epoch, and another instance was faster.
        state = "Superseded"
    return _ended(begun, state, reason, now)


def _begun(cluster: PgCluster, wish: ForcePromotion, now: str) -> ForcedPromotionRecord:
    return ForcedPromotionRecord(
        instance=wish.instance,
        epoch=wish.epoch,
        asked_by=manager_of(cluster.metadata, "spec", "failover", "forcePromotion"),
        state=WAITING,
        seen_at=now,
    )


def _state(
    observed: Observed, wish: ForcedPromotionRecord, failovers: Iterable[FailoverRecord]
) -> tuple[str, str]:
    name, epoch = wish.instance, wish.epoch
    primary = observed.primary
    if observed.epoch == epoch:
        if primary is not None and primary.name == name:
            return "Succeeded", f"{name} is the primary already"
        if primary is not None:
            return WAITING, f"{primary.name} is the primary, and is not deposed by a wish"
        if all(pod.name != name for pod in observed.pods):
            return WAITING, f"there is no instance {name}"
        return WAITING, f"no instance is the primary; {name} may become it whatever it lacks"
    if observed.epoch < epoch:
        return WAITING, f"status.epoch is {observed.epoch}, and the wish is of {epoch}"
    # The next epoch is the first promotion after the wish: whoever that was of.
    if any((record.to, record.epoch) == (name, epoch + 1) for record in failovers):
        return "Succeeded", f"{name} became the primary; commits that it lacked are lost"
    if observed.epoch == epoch + 1 and observed.holder == name:
        if primary is None:
            return WAITING, f"{name} holds the Lease and is being promoted"
        return "Succeeded", f"{name} became the primary; commits that it lacked are lost"
    return "Ignored", f"status.epoch is {observed.epoch}, and the wish is of {epoch}"


def _ended(
    record: ForcedPromotionRecord, state: str, reason: str, now: str
) -> ForcedPromotionRecord:
    ended_at = None if state == WAITING else now
    return record.model_copy(update={"state": state, "reason": reason, "ended_at": ended_at})
