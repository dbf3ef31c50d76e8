"""What keeps a pod from its work, as a sentence that names the pod and what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pgcluster.api import conditions

_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
# A bad image breaks every pod alike; the list of pods says it once.
_SHOWN_PODS = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one pod."""

    pod: str
    reason: str
    message: str
    # Whether only a change of the spec or of the world helps.
    blocks: bool = False


def find(pods: Iterable[Mapping[str, Any]]) -> tuple[Problem, ...]:
    """At most one problem a pod, the one that explains the others first."""
    found = (of_pod(pod) for pod in pods)
    return tuple(problem for problem in found if problem is not None)


def of_pod(pod: Mapping[str, Any]) -> Problem | None:
    """What is wrong with a pod; None where nothing is, or where it is only on its way."""
    if "deletionTimestamp" in pod["metadata"]:
        return None
    name = pod["metadata"]["name"]
    status = pod.get("status") or {}
    if problem := _unschedulable(name, status):
        return problem
    statuses = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    for container in statuses:
        if problem := _container(name, container):
            return problem
    if status.get("phase") == "Failed":
        why = status.get("message") or status.get("reason") or "no reason given"
        told = f"pod {name} has failed: {why}; delete it, and it is made anew"
        return Problem(name, conditions.CRASH_LOOP, told)
    return None


def summary(problems: Iterable[Problem]) -> str:
    """Several problems in one message: those that differ only in the pod are told once."""
    by_text: dict[str, list[Problem]] = {}
    for problem in problems:
        by_text.setdefault(problem.message.replace(problem.pod, "\0"), []).append(problem)
    told = []
    for same in by_text.values():
        rest = [problem.pod for problem in same[1:]]
        more = ""
        if rest:
            shown = ", ".join(rest[:_SHOWN_PODS])
            left = len(rest) - _SHOWN_PODS
            more = f" (so too: {shown}{f' and {left} more' if left > 0 else ''})"
        told.append(same[0].message + more)
    return "; ".join(told)


def _unschedulable(name: str, status: Mapping[str, Any]) -> Problem | None:
    for condition in status.get("conditions") or ():
        if (
            condition["type"] == "PodScheduled"
            and condition["status"] == "False"
            and condition.get("reason") == "Unschedulable"
        ):
            why = (condition.get("message") or "no node fits").rstrip(".")
            return Problem(
                name,
                conditions.UNSCHEDULABLE,
                f"pod {name} finds no node: {why}; free or add capacity, or change spec.scheduling"
                " or the resources",
                blocks=True,
            )
    return None


def _container(name: str, container: Mapping[str, Any]) -> Problem | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = waiting.get("reason") or ""
    if reason in _IMAGE_REASONS:
        return Problem(
            name,
            conditions.IMAGE_PULL,
            f"pod {name} cannot get the image {container.get('image')}:"
            f" {_pull_cause(waiting.get('message'))}; correct the image in the spec, or make it"
            " available",
            blocks=True,
        )
    if reason in _CONFIG_REASONS:
        return Problem(
            name,
            conditions.CRASH_LOOP,
            f"container {container['name']} of pod {name} cannot be started:"
            f" {waiting.get('message') or reason}; make what it names available, or correct the"
            " spec",
            blocks=True,
        )
    if reason == "CrashLoopBackOff":
        ended = (container.get("lastState") or {}).get("terminated") or {}
        how = _ending(ended)
        return Problem(
            name,
            conditions.CRASH_LOOP,
            f"container {container['name']} of pod {name} ends again and again ({how}); its log"
            f" says why: kubectl logs {name} -c {container['name']} --previous",
        )
    return None


def _ending(terminated: Mapping[str, Any]) -> str:
    if terminated.get("reason") == "OOMKilled":
        return "out of memory: raise its memory limit"
    if "exitCode" in terminated:
        return f"exit status {terminated['exitCode']}"
    return terminated.get("reason") or "unknown ending"


def _pull_cause(message: str | None) -> str:
    """The kubelet's message, without what changes from one try to the next: a status must rest."""
    if not message:
        return "it cannot be pulled"
    text = re.sub(r"^Back-off pulling image \"[^\"]*\":?\s*", "", message).strip()
    text = re.sub(r"^ErrImagePull:\s*", "", text)
    return (text or "it cannot be pulled").rstrip(".")[:500]
