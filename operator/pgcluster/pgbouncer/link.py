"""One libpq connection that can be dropped at any moment.

psycopg's connection classes answer a cancelled query with a cancel request and wait for its effect,
for seconds where the other side has vanished. A pooler cannot wait: a link that did not answer in
time is closed, there and then. And an idle link tells at once when the other side is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from psycopg import conninfo, pq
from psycopg import errors as psycopg_errors
from psycopg.pq.abc import PGconn, PGresult

from pgcluster.api.errors import RetryError

Row = dict[str, str | None]


class LinkLost(RetryError):
    """There is no connection, or there is none any more."""


class Refused(RetryError):
    """The other side answered with an error."""


class Link:
    """An open connection; made by `Link.open`.

    `on_lost` is called once, from the event loop, when the other side ends the connection while no
    query is running.
    """

    def __init__(self, connection: PGconn, on_lost: Callable[[], None] | None) -> None:
        self._connection = connection
        # libpq forgets the number of a socket that was closed by the other side.
        self._socket = connection.socket
        self._on_lost = on_lost
        self._busy = asyncio.Lock()
        self._open = True
        self._watch()

    @classmethod
    async def open(
        cls,
        parameters: Mapping[str, str | int],
        *,
        deadline_s: float,
        on_lost: Callable[[], None] | None = None,
    ) -> Link:
        """Connect; LinkLost where that fails or takes longer than `deadline_s`.

        A host has to be an address or a folder: the name of a host would be looked up while the
        event loop stands still.
        """
        given = conninfo.make_conninfo("", **parameters)
        connection = pq.PGconn.connect_start(given.encode())
        try:
            async with asyncio.timeout(deadline_s):
                await _until_connected(connection)
        except TimeoutError:
            connection.finish()
            raise LinkLost(f"no connection within {deadline_s:g} s") from None
        except BaseException:
            connection.finish()
            raise
        connection.nonblocking = 1
        return cls(connection, on_lost)

    @property
    def is_open(self) -> bool:
        """Whether nothing is known to be wrong with it."""
        return self._open

    async def query(self, statement: str, *, deadline_s: float) -> list[Row]:
        """Run one statement by the simple protocol and return its rows.

        Refused where the server says no; LinkLost, and the link is closed, where the connection
        breaks or no answer comes in time.
        """
        async with self._busy:
            if not self._open:
                raise LinkLost("the connection is closed")
            self._unwatch()
            try:
                async with asyncio.timeout(deadline_s):
                    rows = await self._exchange(statement)
            except TimeoutError:
                self.close()
                raise LinkLost(f"no answer within {deadline_s:g} s") from None
            except psycopg_errors.Error as error:
                self.close()
                raise LinkLost(_text(error)) from error
            except Refused:
                self._watch()
                raise
            except BaseException:
                self.close()
                raise
            self._watch()
            return rows

    def close(self) -> None:
        """Drop the connection without a word to the other side."""
        if self._open:
            self._unwatch()
            self._open = False
            self._connection.finish()

    async def _exchange(self, statement: str) -> list[Row]:
        connection = self._connection
        connection.send_query(statement.encode())
        while connection.flush():
            await _ready(self._socket, write=True)
        rows: list[Row] = []
        refusal: str | None = None
        while True:
            while connection.is_busy():
                await _ready(self._socket, write=False)
                connection.consume_input()
            result = connection.get_result()
            if result is None:
                break
            if result.status == pq.ExecStatus.TUPLES_OK:
                rows += _rows(result)
            elif result.status == pq.ExecStatus.FATAL_ERROR:
                refusal = result.error_message.decode(errors="replace").strip()
        if connection.status != pq.ConnStatus.OK:
            raise psycopg_errors.OperationalError(refusal or "the connection was closed")
        if refusal is not None:
            raise Refused(refusal.removeprefix("ERROR:").strip())
        return rows

    def _watch(self) -> None:
        if self._open:
            asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def _unwatch(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)

    def _readable(self) -> None:
        """Something came though nothing was asked: a notice, or the end."""
        try:
            self._connection.consume_input()
            lost = self._connection.status != pq.ConnStatus.OK
            # A FATAL message precedes the end of the stream; libpq keeps it as a result.
            while not self._connection.is_busy() and self._connection.get_result() is not None:
                lost = self._connection.status != pq.ConnStatus.OK
        except psycopg_errors.Error:
            lost = True
        if lost:
            self.close()
            if self._on_lost is not None:
                self._on_lost()


def accepts_connections(parameters: Mapping[str, str | int]) -> bool:
    """Whether a server takes connections at all, though perhaps not ours. Blocks: for a thread.

    Source: PostgreSQL, PQping: a refused password or too many clients still mean that it runs,
    while a server that starts up or shuts down is told apart.
    """
    given = conninfo.make_conninfo("", **parameters)
    return pq.PGconn.ping(given.encode()) == pq.Ping.OK


async def _until_connected(connection: PGconn) -> None:
    while True:
        if connection.status == pq.ConnStatus.BAD:
            raise LinkLost(connection.error_message.decode(errors="replace").strip())
        match connection.connect_poll():
            case pq.PollingStatus.OK:
                return
            case pq.PollingStatus.READING:
                await _ready(connection.socket, write=False)
            case pq.PollingStatus.WRITING:
                await _ready(connection.socket, write=True)
            case _:
                raise LinkLost(connection.error_message.decode(errors="replace").strip())


async def _ready(socket: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )
    add(socket, done)
    try:
        await ready
    finally:
        remove(socket)


def _rows(result: PGresult) -> list[Row]:
    names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
    return [
        {
            name: None if (value := result.get_value(row, column)) is None else value.decode()
            for column, name in enumerate(names)
        }
        for row in range(result.ntuples)
    ]


def _text(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
