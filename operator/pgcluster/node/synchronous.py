"""Synchronous replication of one instance: what its commits wait for, and what the Lease says.

A change is made in three steps, each after the other is seen: the Lease lists the old and the new
quorum, postgres loads the new one, the Lease lists it alone. Whoever is promoted in between has to
satisfy both, so it does not matter where a crash comes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.topology import quorum
from pgcluster.topology.quorum import Quorum

log = logging.getLogger(__name__)


def as_primary(
    config: ClusterConfig, instance: str, joined: Collection[str] | None = None
) -> Quorum:
    """What the commits of an instance are to wait for when it is the primary.

    `joined` are the instances that have ever streamed; None: nobody knows, and all count.
    """
    if config.synchronous.mode == "none":
        return Quorum(0)
    instances = [names.pod(config.name, ordinal) for ordinal in range(config.staying)]
    full = quorum.wanted(config.synchronous.standbys, primary=instance, instances=instances)
    if joined is None:
        return full
    there = tuple(pod for pod in full.members if pod in joined)
    return replace(full, members=there) if len(there) >= full.standbys else full


def joined(listed: tuple[Quorum, ...] | None) -> frozenset[str] | None:
    """Who has streamed at some time, by what the Lease lists; None where it does not tell."""
    found = {pod for each in listed or () if each.standbys for pod in (each.primary, *each.members)}
    return frozenset(found) or None


def target(
    config: ClusterConfig,
    instance: str,
    streaming: Collection[str],
    counted: Collection[str] | None = None,
) -> Quorum:
    """What the commits of a primary are to wait for now, with these standbys streaming from it.

    Where they may not block they wait for as many standbys as there are, down to none. An instance
    is a member from when it has first streamed: `counted` are the members so far. One that is still
    cloned proves nothing, and as a member it would only keep the others from proving anything.
    """
    full = as_primary(config, instance)
    if counted is not None:
        there = tuple(pod for pod in full.members if pod in counted or pod in streaming)
        full = replace(full, standbys=min(full.standbys, len(there)), members=there)
        full = full if full.standbys else Quorum(0)
    if not config.synchronous.degrade or full.standbys == 0:
        return full
    standbys = min(full.standbys, sum(pod in streaming for pod in full.members))
    return replace(full, standbys=standbys) if standbys else Quorum(0)


class Synchronous:
    """The quorum that is in force here, and the one that is to be."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        # What postgres was last seen to have loaded; None before it was seen.
        self._loaded: Quorum | None = None
        self._next: Quorum | None = None
        # What the configuration file says.
        self._written: Quorum | None = None
        # Of the primary before, until enough standbys have what this one began with.
        self._inherited: tuple[Quorum, ...] = ()
        # Who has streamed from here at some time, of those that are not about to be removed.
        self._joined: set[str] = set()

    def inherit(self, quorums: tuple[Quorum, ...]) -> None:
        """This instance is about to be the primary after one with these."""
        self._inherited = tuple(each for each in quorums if each.standbys)

    def setting(self, config: ClusterConfig) -> str:
        """Value of `synchronous_standby_names` for the configuration file."""
        if self._written is None:
            self._written = as_primary(config, self._instance)
        return self._written.setting()

    def quorums(self, config: ClusterConfig) -> tuple[Quorum, ...]:
        """All that commits of this instance may rest on from now on, for the Lease."""
        found = {self._loaded, self._next, self._written, *self._inherited}
        if self._loaded is None:
            found.add(as_primary(config, self._instance))
        return tuple(sorted(each for each in found if each is not None))

    def loaded(self, setting: str) -> None:
        """Take note of what postgres has loaded."""
        self._loaded = quorum.of_setting(setting, primary=self._instance)

    def stopped(self) -> None:
        """postgres does not run: its next start loads the file."""
        self._loaded = None
        self._next = None

    def follow(self, config: ClusterConfig, listed: tuple[Quorum, ...] | None) -> bool:
        """As a standby: be ready to become the primary, with those that the Lease lists.

        Whether the file is to be written anew.
        """
        self._next = None
        self._inherited = ()
        self._joined = set()
        wanted = as_primary(config, self._instance, joined(listed))
        changed = self._written != wanted
        self._written = wanted
        return changed

    def lead(
        self,
        config: ClusterConfig,
        streaming: Collection[str],
        listed: tuple[Quorum, ...] | None,
    ) -> bool:
        """As the primary: the next step of a change, given what the Lease lists.

        Whether the file is to be written anew and loaded.
        """
        known = {*self._joined, *streaming, *(self._loaded.members if self._loaded else ())}
        self._joined = known & set(as_primary(config, self._instance).members)
        wanted = target(config, self._instance, streaming, self._joined)
        if len(set(wanted.members) & set(streaming)) >= wanted.standbys:
            # Whoever streams has all that this primary began with.
            self._inherited = ()
        if self._loaded == wanted == self._written:
            self._next = None
            return False
        if self._next != wanted:
            log.info("commits are to wait for %s", wanted.setting() or "nobody")
            self._next = wanted
        safe = {each for each in (self._loaded, self._written, wanted) if each is not None}
        if listed is None or not safe <= set(listed) or self._written == wanted:
            return False
        self._written = wanted
        return True
