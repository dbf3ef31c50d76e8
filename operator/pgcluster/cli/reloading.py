"""`kubectl pgcluster reload`: postgres and pgbouncer read their files again.

What the spec says is loaded by itself. This is for what has changed beside it, such as
`ALTER SYSTEM`, and for whoever wants to know what did not take effect, and why.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from pgcluster.api import names
from pgcluster.cli import executing, inside, outside
from pgcluster.cli.terms import DONE, REFUSED, Refused, coloured, paint, say, warn
from pgcluster.controller.observe import Key, pod_ready
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.resources import PODS

_WITHIN_S = 30.0
# A backend loads the files between two statements, and a new one has what the postmaster has: so a
# second connection tells whether that has read them. What waits for a restart is not wrong.
_SCRIPT = """\
\\pset tuples_only on
\\pset format unaligned
\\pset fieldsep '\\t'
SELECT pg_conf_load_time() AS before, pg_reload_conf() AS sent \\gset
SELECT pg_sleep(0.5) AS slept \\gset
\\connect
SELECT 'loaded', pg_conf_load_time() > timestamptz :'before';
SELECT 'wrong', coalesce(f.name, f.sourcefile || ' line ' || f.sourceline), f.error
  FROM pg_file_settings f
 WHERE f.error IS NOT NULL AND NOT EXISTS (
       SELECT FROM pg_settings s WHERE s.name = f.name AND s.pending_restart);
SELECT 'wrong', 'pg_hba.conf line ' || line_number, error
  FROM pg_hba_file_rules WHERE error IS NOT NULL;
SELECT 'restart', name FROM pg_settings WHERE pending_restart ORDER BY name;
"""


@dataclass(frozen=True, slots=True)
class Told:
    """What one pod said to the reload."""

    pod: str
    message: str
    well: bool


async def run(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Reload all, or the one pod that is named, and say of each what came of it."""
    await outside.body_of(client, key)
    selector = f"{names.LABEL_CLUSTER}={key.name}"
    pods, _ = await client.list(PODS, key.namespace, labels=selector)
    pods = [pod for pod in pods if options.pod in (None, pod["metadata"]["name"])]
    if not pods:
        raise Refused(f"there is no pod {options.pod}" if options.pod else "there is no pod")
    kubectl = outside.kubectl(key, options)
    pods.sort(key=lambda pod: (_component(pod) != names.COMPONENT_POSTGRES, _name(pod)))
    told = await asyncio.gather(*(_reloaded(kubectl, pod) for pod in pods))
    for one in told:
        line = f"{paint(one.pod, 'strong', on=coloured())}: {one.message}"
        (say if one.well else warn)(line)
    return DONE if all(one.well for one in told) else REFUSED


async def _reloaded(kubectl: tuple[str, ...], pod: Manifest) -> Told:
    name = _name(pod)
    instance = _component(pod) == names.COMPONENT_POSTGRES
    if not instance and not pod_ready(pod):
        return Told(name, "it is not ready, and reads its files when it starts", well=True)
    try:
        if instance:
            done = await executing.run(
                inside.psql(kubectl, name), stdin=_SCRIPT, timeout_s=_WITHIN_S
            )
        else:
            done = await executing.run(inside.console(kubectl, name, "RELOAD"), timeout_s=_WITHIN_S)
    except TimeoutError:
        return Told(name, f"no answer within {_WITHIN_S:g} s", well=False)
    if done.status != 0:
        return Told(name, done.reason, well=False)
    return instance_told(name, done.output) if instance else Told(name, "reloaded", well=True)


def instance_told(pod: str, output: str) -> Told:
    """What an instance answered to the script. Pure."""
    found = list(_rows(output))
    if ["loaded", "t"] not in found:
        return Told(pod, "it has not read its files within half a second: see its log", well=False)
    wrong = [f"{row[1]}: {row[2]}" for row in found if row[0] == "wrong"]
    restart = [row[1] for row in found if row[0] == "restart"]
    parts = ["reloaded"]
    if wrong:
        parts.append(f"did not take effect: {'; '.join(wrong)}")
    if restart:
        parts.append(f"waits for a restart: {', '.join(restart)}")
    return Told(pod, "; ".join(parts), well=not wrong)


def _rows(output: str) -> Iterator[list[str]]:
    for line in output.splitlines():
        fields = line.split("\t")
        if fields[0] in ("loaded", "wrong", "restart"):
            yield [*fields, "", ""][: 2 if fields[0] == "loaded" else 3]


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])


def _component(pod: Manifest) -> str:
    return str((pod["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT))
