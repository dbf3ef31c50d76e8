"""Completion of command lines: by kubectl (`kubectl_complete-pgcluster`), and by shells themselves.

Everything is read from the parser of the command line, so that nothing can be forgotten here; names
of clusters and instances come from the API server, where it answers at once.
Source of the protocol: kubectl, "Extend kubectl with plugins", and cobra's `__complete`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pgcluster.cli.commands import CLUSTER, INSTANCE, POD, parser
from pgcluster.cli.terms import DONE, say

# cobra's directives: no names of files; or leave it to the shell.
_NO_FILES, _DEFAULT = 4, 0
_WITHIN_S = 2.0

# (kind of value, namespace and the like, the cluster that is named) → values
Values = Callable[[str, argparse.Namespace, str | None], Sequence[str]]

_SCRIPTS = {
    "bash": """\
# source <(kubectl-pgcluster completion bash)
_kubectl_pgcluster() {
    local IFS=$'\\n' line
    COMPREPLY=()
    for line in $(kubectl_complete-pgcluster "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null); do
        case $line in
        :0) compopt -o default ;;
        :*) ;;
        *) COMPREPLY+=("${line%%$'\\t'*}") ;;
        esac
    done
}
complete -F _kubectl_pgcluster kubectl-pgcluster
""",
    "zsh": """\
#compdef kubectl-pgcluster
# source <(kubectl-pgcluster completion zsh)
_kubectl_pgcluster() {
    local -a found
    local line
    for line in "${(@f)$(kubectl_complete-pgcluster "${(@)words[2,$CURRENT]}" 2>/dev/null)}"; do
        case $line in
        :0) _files ;;
        :*) ;;
        *) found+=("${line%%$'\\t'*}:${line#*$'\\t'}") ;;
        esac
    done
    _describe 'kubectl pgcluster' found
}
compdef _kubectl_pgcluster kubectl-pgcluster
""",
    "fish": """\
# kubectl-pgcluster completion fish | source
function __kubectl_pgcluster
    set -l words (commandline -opc) (commandline -ct)
    kubectl_complete-pgcluster $words[2..-1] 2>/dev/null | string match -rv '^:'
end
complete -c kubectl-pgcluster -f -a '(__kubectl_pgcluster)'
""",
}


async def script(_client: None, _key: None, options: argparse.Namespace) -> int:
    """`kubectl pgcluster completion SHELL`."""
    say(_SCRIPTS[options.shell].rstrip())
    return DONE


def main() -> None:
    """Entry point `kubectl_complete-pgcluster`: the words so far, the last one to be completed."""
    found, directive = complete(sys.argv[1:], _from_the_api)
    for candidate, told in found:
        sys.stdout.write(f"{candidate}\t{told}\n" if told else f"{candidate}\n")
    sys.stdout.write(f":{directive}\n")


def complete(words: Sequence[str], values: Values) -> tuple[list[tuple[str, str]], int]:
    """Candidates with a description each, and cobra's directive. Pure but for `values`."""
    *before, last = words or [""]
    if "--" in before:
        # That is for psql or repmgr.
        return [], _DEFAULT
    line = _read(before)
    if line.awaits is not None:
        found, directive = _of(line.awaits, line, values)
    elif last.startswith("-"):
        name, equals, last_value = last.partition("=")
        option = line.options.get(name)
        if equals and option is not None:
            found, directive = _of(option, line, values)
            return [(f"{name}={x}", t) for x, t in found if x.startswith(last_value)], directive
        found, directive = list(_flags(line)), _NO_FILES
    elif line.command is None:
        found, directive = list(_commands(line.parser)), _NO_FILES
    elif line.missing:
        found, directive = _of(line.missing[0], line, values)
    else:
        found, directive = [], _NO_FILES
    return [(name, told) for name, told in found if name.startswith(last)], directive


# --- what has been typed ----------------------------------------------------------------------
@dataclass(slots=True)
class _Line:
    """A command line up to the word that is completed."""

    parser: argparse.ArgumentParser
    options: dict[str, argparse.Action]
    given: argparse.Namespace
    command: str | None = None
    # The option whose value comes next, and the arguments that are still to come.
    awaits: argparse.Action | None = None
    missing: Sequence[argparse.Action] = ()


def _read(words: Sequence[str]) -> _Line:
    made = parser("")
    line = _Line(made, _options(made), argparse.Namespace())
    for word in words:
        if line.awaits is not None:
            setattr(line.given, line.awaits.dest, word)
            line.awaits = None
        elif word.startswith("-"):
            name, equals, value = word.partition("=")
            option = line.options.get(name)
            if option is not None and equals:
                setattr(line.given, option.dest, value)
            elif option is not None and option.nargs != 0:
                line.awaits = option
        elif line.command is None:
            chosen = _subparsers(made).choices.get(word)
            line.command = word
            if chosen is not None:
                line.parser = chosen
                line.options = _options(chosen)
                line.missing = [x for x in chosen._actions if not x.option_strings]
        elif line.missing:
            setattr(line.given, line.missing[0].dest, word)
            line.missing = line.missing[1:]
    return line


def _options(made: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {name: action for action in made._actions for name in action.option_strings}


def _subparsers(
    made: argparse.ArgumentParser,
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    return next(x for x in made._actions if isinstance(x, argparse._SubParsersAction))


# --- what may come ----------------------------------------------------------------------------
def _commands(made: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in _subparsers(made)._get_subactions():
        yield action.dest, action.help or ""


def _flags(line: _Line) -> Iterator[tuple[str, str]]:
    for action in line.parser._actions:
        long = next((name for name in action.option_strings if name.startswith("--")), None)
        if long is not None and action.help != argparse.SUPPRESS:
            yield long, action.help or ""


def _of(action: argparse.Action, line: _Line, values: Values) -> tuple[list[tuple[str, str]], int]:
    """What an argument or option may be."""
    if action.choices is not None:
        return [(str(choice), "") for choice in action.choices], _NO_FILES
    kind = action.metavar if isinstance(action.metavar, str) else ""
    if kind == "FILE":
        return [], _DEFAULT
    if kind in (CLUSTER, INSTANCE, POD, "NAMESPACE", "CONTEXT"):
        cluster = getattr(line.given, "cluster", None)
        return [(name, "") for name in values(kind, line.given, cluster)], _NO_FILES
    return [], _NO_FILES


def _from_the_api(kind: str, options: argparse.Namespace, cluster: str | None) -> Sequence[str]:
    """Names of one kind; none where the API server does not answer at once."""
    # Whatever is wrong, a person who presses Tab does not want to read it.
    with contextlib.suppress(Exception):
        return asyncio.run(asyncio.wait_for(_asked(kind, options, cluster), _WITHIN_S))
    return ()


async def _asked(kind: str, options: argparse.Namespace, cluster: str | None) -> Sequence[str]:
    from pgcluster.api import names
    from pgcluster.cli.connecting import connected
    from pgcluster.kube import kubeconfig
    from pgcluster.kube.resources import NAMESPACES, PGCLUSTERS, PODS

    if kind == "CONTEXT":
        return kubeconfig.contexts(getattr(options, "kubeconfig", None))
    async with connected(options) as (client, key):
        if kind == "NAMESPACE":
            found, _ = await client.list(NAMESPACES)
        elif kind == CLUSTER:
            found, _ = await client.list(PGCLUSTERS, key.namespace)
        else:
            labels = f"{names.LABEL_CLUSTER}={cluster}"
            if kind == INSTANCE:
                labels += f",{names.LABEL_COMPONENT}={names.COMPONENT_POSTGRES}"
            found, _ = await client.list(PODS, key.namespace, labels=labels)
    return sorted(one["metadata"]["name"] for one in found)
