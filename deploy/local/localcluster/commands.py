"""Running other programs: arguments as lists, a deadline on each, their output when they fail."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from .plan import NODE_RANGE
from .progress import LocalkubeError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | IO[bytes] | None = None,
    timeout_s: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program and return what it printed; an error carries what it printed too."""
    result = try_run(argv, stdin=stdin, timeout_s=timeout_s, env=env, cwd=cwd)
    if result.returncode != 0:
        output = (result.stderr + result.stdout).strip()[-2000:]
        raise LocalkubeError(f"{words(argv)}: exit code {result.returncode}\n{output}")
    return result.stdout


def try_run(
    argv: Sequence[str | Path],
    *,
    stdin: str | IO[bytes] | None = None,
    timeout_s: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """As `run`, for a program whose failure is an answer and no error."""
    try:
        return subprocess.run(
            [str(word) for word in argv],
            input=stdin if isinstance(stdin, str) else None,
            stdin=None if isinstance(stdin, str) else stdin or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=dict(env) if env is not None else tool_environment(),
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise LocalkubeError(f"{argv[0]}: not found on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise LocalkubeError(f"{words(argv)}: no end after {timeout_s:.0f} s") from error


def run_logged(
    argv: Sequence[str | Path],
    log: Path,
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a long program with its output in a file, which the error names."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        try:
            result = subprocess.run(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                env=dict(env) if env is not None else tool_environment(),
                cwd=cwd,
                check=False,
            )
        except FileNotFoundError as error:
            raise LocalkubeError(f"{argv[0]}: not found on this machine") from error
        except subprocess.TimeoutExpired as error:
            raise LocalkubeError(f"{words(argv)}: no end after {timeout_s:.0f} s", log) from error
    if result.returncode != 0:
        raise LocalkubeError(f"{words(argv)}: exit code {result.returncode}", log)


def tool_environment() -> dict[str, str]:
    """The caller's environment, with sbin on the path and no proxy between us and the nodes."""
    env = dict(os.environ)
    env["PATH"] = f"{env.get('PATH', '')}:{PATH}"
    direct = ",".join(filter(None, (env.get("NO_PROXY", env.get("no_proxy")), str(NODE_RANGE))))
    env["NO_PROXY"] = env["no_proxy"] = direct
    return env


def words(argv: Sequence[str | Path]) -> str:
    return " ".join(str(word) for word in argv)
