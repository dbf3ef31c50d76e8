"""Which commands an agent runs for a peer: repmgr's own, taken apart, and nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, TlsConfig
from pgcluster.node import remote
from pgcluster.node.remote import RefusedError, Remote, parse
from pgcluster.proc import Result
from pgcluster.render.repmgr import conninfo, repmgr_conf

BINDIR = "/usr/lib/postgresql/17/bin"
R = f"{BINDIR}/repmgr -f {names.REPMGR_CONF}"
CONFIG = ClusterConfig(name="shop", namespace="test", uid="u", instances=3, tls=TlsConfig())
CONNINFO = conninfo(names.pod_host("shop-1", "shop", "test"), CONFIG)


def arguments(command: str) -> list[str]:
    """What is run, without the program and its configuration file."""
    found = parse(command, bindir=BINDIR).arguments
    assert found[:3] == (f"{BINDIR}/repmgr", "-f", names.REPMGR_CONF)
    return list(found[3:])


@pytest.mark.parametrize(
    ("command", "run"),
    [
        ("--version", ["--version"]),
        (
            "node check --data-directory-config --optformat -LINFO",
            ["--data-directory-config", "--optformat", "--log-level=INFO", "node", "check"],
        ),
        (
            "node check --replication-config-owner --optformat -LINFO",
            ["--replication-config-owner", "--optformat", "--log-level=INFO", "node", "check"],
        ),
        (
            "node check --remote-node-id=2 --replication-connection",
            ["--remote-node-id=2", "--replication-connection", "node", "check"],
        ),
        (
            "node check --terse -LERROR --archive-ready --optformat",
            ["--terse", "--log-level=ERROR", "--archive-ready", "--optformat", "node", "check"],
        ),
        (
            "node check --db-connection --superuser=postgres --optformat -LINFO",
            [
                "--db-connection",
                "--superuser=postgres",
                "--optformat",
                "--log-level=INFO",
                "node",
                "check",
            ],
        ),
        ("node service --action=stop --checkpoint", None),
        ("node service --terse -LERROR --list-actions --action=stop", None),
        ("node status --is-shutdown-cleanly", ["--is-shutdown-cleanly", "node", "status"]),
        (
            f"--no-wait -d '{CONNINFO}' node rejoin",
            ["--no-wait", f"--dbname={CONNINFO}", "node", "rejoin"],
        ),
        (
            f"--no-wait -d '{CONNINFO}' node rejoin --force-rewind --config-files=a.conf,b.conf",
            None,
        ),
        ("standby follow", ["standby", "follow"]),
        (
            "cluster show --csv --terse -L NOTICE",
            ["--csv", "--terse", "--log-level=NOTICE", "cluster", "show"],
        ),
        ("cluster matrix --csv --terse -L NOTICE", None),
        ("cluster matrix --csv --terse --log-level=DEBUG --verbose", None),
    ],
)
def test_what_repmgr_sends_is_run(command: str, run: list[str] | None) -> None:
    found = arguments(f"{R} {command}")
    if run is not None:
        assert found == run
    else:
        assert found


@pytest.mark.parametrize("program", ["/bin/true", "/usr/bin/true"])
def test_the_test_of_the_connection_is_run(program: str) -> None:
    assert parse(program, bindir=BINDIR).arguments == ("/bin/true",)


@pytest.mark.parametrize("path", [names.REPMGR_CONF, names.REPMGR_CONF_LINK])
def test_the_configuration_file_is_looked_for_under_both_of_its_names(path: str) -> None:
    found = parse(f"test -f {path}", bindir=BINDIR).arguments
    assert found == ("test", "-f", names.REPMGR_CONF)
    assert parse(f"{BINDIR}/repmgr -f {path} --version", bindir=BINDIR)


def test_a_stop_may_take_as_long_as_its_checkpoint() -> None:
    stop = parse(f"{R} node service --action=stop --checkpoint", bindir=BINDIR)
    assert stop.deadline_s >= 600
    assert parse(f"{R} cluster show --csv", bindir=BINDIR).deadline_s <= 60


@pytest.mark.parametrize(
    "command",
    [
        "",
        "   ",
        "sh",
        "bash -c id",
        "/bin/true extra",
        "/bin/false",
        "true",
        "repmgr cluster show --csv",
        "test",
        "test -f",
        "test -f /etc/passwd",
        f"test -f {names.REPMGR_CONF} extra",
        f"test -e {names.REPMGR_CONF}",
        f"{BINDIR}/repmgr",
        f"{BINDIR}/repmgr -f",
        f"{BINDIR}/repmgr -f /tmp/evil.conf cluster show --csv",
        f"{BINDIR}/repmgr -f {names.REPMGR_CONF}.evil --version",
        f"{BINDIR}/repmgr --version",
        f"{BINDIR}/psql -f {names.REPMGR_CONF}",
        f"{BINDIR}/../bin/repmgr -f {names.REPMGR_CONF} --version",
        f"/usr/lib/postgresql/16/bin/repmgr -f {names.REPMGR_CONF} --version",
        R,
        f"{R} cluster show",
        f"{R} cluster cleanup",
        f"{R} cluster event",
        f"{R} cluster crosscheck --csv",
        f"{R} cluster show --csv extra",
        f"{R} cluster show --csv --config-files=x",
        f"{R} cluster show --csv=yes",
        f"{R} node status",
        f"{R} node service",
        f"{R} node service --action=start",
        f"{R} node service --action=restart",
        f"{R} node service --action=stop --action=promote",
        f"{R} node check --superuser",
        f"{R} node check --superuser=a,b",
        f"{R} node check --remote-node-id=x",
        f"{R} node check --upstream",
        f"{R} node rejoin",
        f"{R} -d host=shop-1 node rejoin --force-rewind=/tmp/pg_rewind",
        f"{R} -d host=shop-1 node rejoin --config-files=../../etc/passwd",
        f"{R} -d host=shop-1 node rejoin --config-files=/etc/passwd",
        f"{R} -d host=shop-1 node rejoin --config-archive-dir=/tmp",
        f"{R} -d 'host=shop-1 service=evil' node rejoin",
        f"{R} -d 'host=shop-1 sslkey=/tmp/x' node rejoin",
        f"{R} -d 'host=shop-1 passfile' node rejoin",
        f"{R} -d postgresql://shop-1 node rejoin",
        f"{R} -d",
        f"{R} --version cluster",
        f"{R} -L TRACE node status --is-shutdown-cleanly",
        f"{R} -LINFO=x --version",
        f"{R} -F standby follow",
        f"{R} -tv --version",
        f"{R} -f /tmp/evil.conf --version",
        f"{R} --config-file=/tmp/evil.conf --version",
        f"{R} -D /tmp standby follow",
        f"{R} -b /tmp standby follow",
        f"{R} --pg_bindir=/tmp standby follow",
        f"{R} standby promote",
        f"{R} standby promote --siblings-follow",
        f"{R} standby switchover",
        f"{R} standby clone",
        f"{R} primary register --force",
        f"{R} primary unregister",
        f"{R} service pause",
        f"{R} witness register -d host=shop-1 --force",
        "x" * 100_000,
    ],
)
def test_anything_else_is_refused_with_a_sentence(command: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse(command, bindir=BINDIR)
    assert len(str(refused.value).split()) >= 4


@pytest.mark.parametrize(
    "injection",
    [
        "; id",
        "&& id",
        "| sh",
        "& id",
        "$(id)",
        "`id`",
        "${IFS}id",
        "\nid",
        "\r\nid",
        "\0id",
        "> /tmp/x",
        "< /etc/passwd",
        "'$(id)'",
        '"$(id)"',
        "\\; id",
        "* ",
        "# ",
        "\u00a0id",
        "{a,b}",
        "'",
    ],
)
@pytest.mark.parametrize(
    "command", ["/bin/true", f"{R} --version", f"{R} standby follow", f"{R} -d host=a node rejoin"]
)
def test_what_a_shell_would_act_upon_is_refused(command: str, injection: str) -> None:
    for text in (f"{command} {injection}", f"{command}{injection}", f"{injection} {command}"):
        with pytest.raises(RefusedError):
            parse(text, bindir=BINDIR)


_WORDS = st.sampled_from(
    [
        *("node", "check", "cluster", "show", "standby", "follow", "rejoin", "host=a", "INFO"),
        *(
            "--csv",
            "--version",
            "--action=stop",
            "-d",
            "-L",
            "-f",
            "--",
            "-",
            "--=",
            "-d=",
            "'a b'",
        ),
    ]
)


@given(st.lists(_WORDS | st.text(max_size=8), max_size=6))
def test_whatever_is_sent_only_repmgr_with_its_configuration_is_run(words: list[str]) -> None:
    try:
        found = parse(f"{R} {' '.join(words)}", bindir=BINDIR).arguments
    except RefusedError:
        return
    assert found[:3] == (f"{BINDIR}/repmgr", "-f", names.REPMGR_CONF)
    assert not any(word.startswith(("-f", "--config-file=")) for word in found[3:])


def test_the_commands_fit_the_configuration_that_repmgr_is_given() -> None:
    config = ClusterConfig(name="shop", namespace="test", uid="u", instances=3)
    text = repmgr_conf(config, instance="shop-0")
    assert f"repmgr_bindir='{BINDIR}'" in text
    assert "ssh_options='-q" in text


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Programs that were started, none of them really."""
    started: list[list[str]] = []

    async def run(
        arguments: list[str], *, deadline_s: float, apart: bool, env: Mapping[str, str]
    ) -> Result:
        started.append([*arguments, env["PGCLUSTER_ASKED_BY"]])
        assert apart
        return Result(3, "x" * 200_000, "told\n")

    monkeypatch.setattr(remote, "run", run)
    return started


async def test_status_output_and_errors_come_back_and_are_bounded(ran: list[list[str]]) -> None:
    others = ("shop-1", "shop-2")
    answer = await Remote(lambda: BINDIR, lambda: others).run(
        {"command": f"{R} node status --is-shutdown-cleanly"}
    )
    assert ran == [[*shlex.split(f"{R} --is-shutdown-cleanly node status"), ""]]
    assert answer["status"] == 3
    assert answer["errors"] == "told\n"
    assert len(answer["output"]) <= 64 * 1024


@pytest.mark.parametrize(
    ("asking", "told"),
    [("shop-1", "shop-1"), ("shop-9", ""), ("shop-1; id", ""), (["shop-1"], ""), (None, "")],
)
async def test_who_asks_is_told_where_it_is_an_instance_of_this_cluster(
    ran: list[list[str]], asking: object, told: str
) -> None:
    remote = Remote(lambda: BINDIR, lambda: ("shop-1", "shop-2"))
    await remote.run({"command": f"{R} node service --action=stop", "from": asking})
    assert [words[-1] for words in ran] == [told]


async def test_a_refusal_is_an_answer_and_starts_nothing(ran: list[list[str]]) -> None:
    for body in ({"command": "id"}, {"command": ["id"]}, {"command": None}, {}):
        answer = await Remote(lambda: BINDIR, lambda: ()).run(body)
        assert answer["status"] == 126
        assert "refused" in answer["errors"]
    assert ran == []
