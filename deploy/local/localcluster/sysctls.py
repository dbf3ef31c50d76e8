"""Kernel settings that are the whole machine's: remembered before they change, put back by `down`.

The kubelet sets some of them itself, on any machine (setupKernelTunables in its container manager).
"""

import json
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc/sys")
SET_BY_KUBELET = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
# Each kubelet, containerd and shim watches files; Debian's 128 instances end with the second node.
AT_LEAST = {
    "fs/inotify/max_user_instances": 2048,
    "fs/inotify/max_user_watches": 1_048_576,
}


def prepare(record: Path) -> None:
    if not record.exists():
        before = {key: _read(key) for key in (*SET_BY_KUBELET, *AT_LEAST)}
        record.write_text(json.dumps({key: value for key, value in before.items() if value}))
    for key, value in AT_LEAST.items():
        if int(_read(key) or value) < value:
            (PROC / key).write_text(str(value))


def restore(record: Path) -> None:
    if not record.exists():
        return
    for key, value in json.loads(record.read_text()).items():
        if _read(key) != value:
            with suppress(OSError):  # read-only here, so nobody changed it
                (PROC / key).write_text(value)


def _read(key: str) -> str | None:
    try:
        return (PROC / key).read_text().strip()
    except OSError:
        return None
