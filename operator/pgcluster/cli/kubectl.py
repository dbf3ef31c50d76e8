"""`kubectl pgcluster`: what people ask of a running cluster.

Exit status: 0 done; 1 refused or failed; 2 the command line makes no sense; 3 still under way when
the time was over; 4 the API server does not answer, or refuses; 130 interrupted. `psql` and
`repmgr` end as what they run does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from pgcluster.api.errors import PgClusterError
from pgcluster.cli.commands import Lazy, parser
from pgcluster.cli.terms import NO_API, REFUSED, Ending, Refused, fail


def main() -> None:
    """Entry point: `kubectl-pgcluster`, which kubectl finds as its plugin `pgcluster`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit status."""
    options = parse(arguments)
    try:
        ending = asyncio.run(_run(options))
    except Refused as error:
        return fail(str(error), REFUSED)
    except PgClusterError as error:
        return fail(str(error), NO_API)
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    if isinstance(ending, tuple):
        sys.stdout.flush()
        os.execv(ending[0], ending)  # noqa: S606 # a list, and no shell
    return ending


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what stands behind `--` is for the program that the command runs."""
    own, rest = list(arguments), []
    if "--" in own:
        own, rest = own[: own.index("--")], own[own.index("--") + 1 :]
    made = parser(__doc__ or "")
    options = made.parse_args(own)
    if rest and not options.passes_on:
        made.error(f"{options.name} takes nothing behind --")
    options.rest = rest
    return options


async def _run(options: argparse.Namespace) -> Ending:
    command: Lazy = options.command
    if options.offline or getattr(options, "client", False):
        return await command(None, None, options)
    # Imported late, as what each command does is: a person waits, and the client, the models and
    # their libraries are most of what a look at a cluster takes.
    from pgcluster.cli.connecting import connected

    async with connected(options) as (client, key):
        return await command(client, key, options)


if __name__ == "__main__":
    main()
