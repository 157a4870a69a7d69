"""Proxies on loopback that break connections on purpose.

    with FaultProxy(service.port, [Fault(cut_to_server=300_000), Fault()]) as proxy:
        ...  # connect to 127.0.0.1:proxy.port

The first connection is cut after 300,000 bytes, the second passes whole, and so do all after
it. `HttpProxy` is a CONNECT proxy that works, refuses or stays silent.

Each proxy is one event loop on a thread of its own; leaving the `with` block closes every
socket it has.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

HOST = "127.0.0.1"
# Read at once; below 64 KiB the proxy, not the service, is what a benchmark measures.
READ_BYTES = 512 * 1024
SLOW_BUFFER_BYTES = 64 * 1024
# How long a connection cut by FIN is still read from: closing it with unread bytes would send
# RST instead.
FIN_LINGER_S = 5.0
STOP_TIMEOUT_S = 10.0

Result = TypeVar("Result")
Proxy = TypeVar("Proxy", bound="_LoopThread")


@dataclass(frozen=True)
class Fault:
    """What happens to one connection; byte counts are of forwarded bytes, TLS included.

    Cuts close both sides, by RST or, with `rst=False`, by FIN. Freezes keep both sockets open
    and neither read nor forward anything from then on. Swallowing goes on forwarding to the
    service and drops what it answers. `delay_s` and `bytes_per_s` hold for each direction; the
    delay is that of a long line: it does not limit how much is under way.
    """

    cut_to_server: int | None = None
    cut_to_client: int | None = None
    cut_after_s: float | None = None
    rst: bool = True
    freeze_to_server: int | None = None
    freeze_to_client: int | None = None
    swallow_after: int | None = None  # bytes to the server
    delay_s: float = 0
    bytes_per_s: float | None = None
    silent: bool = False  # accept, then neither read nor connect to the service


Plan = Sequence[Fault] | Callable[[int], Fault]


class _LoopThread:
    """A listening socket served by an event loop on its own thread."""

    def __init__(self) -> None:
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run on the loop's thread, and wait for the result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(STOP_TIMEOUT_S)

    async def _listen(self) -> asyncio.Server:
        raise NotImplementedError

    async def _close(self) -> None:
        raise NotImplementedError

    def __enter__(self: Proxy) -> Proxy:
        self._thread.start()
        self._server = self._call(self._listen())
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(self, *exception: object) -> None:
        self._call(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self._loop.close()

    async def _shut_down(self) -> None:
        self._server.close()
        await self._close()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- A TCP proxy with faults ---------------------------------------------------------


class FaultProxy(_LoopThread):
    """Forwards to `upstream_port`; connection i suffers fault i of the plan, or none."""

    def __init__(self, upstream_port: int, plan: Plan = ()) -> None:
        super().__init__()
        self.upstream_port = upstream_port
        self.plan = plan
        self.connections: list[Connection] = []

    @property
    def endpoint(self) -> str:
        return f"localhost:{self.port}"

    @property
    def to_server(self) -> int:
        return sum(connection.to_server for connection in self.connections)

    @property
    def to_client(self) -> int:
        return sum(connection.to_client for connection in self.connections)

    def cut_all(self, *, rst: bool = True) -> None:
        """Cut every live connection now."""

        async def cut() -> None:
            for connection in self.connections:
                connection.cut(rst=rst)

        self._call(cut())

    async def _listen(self) -> asyncio.Server:
        return await self._loop.create_server(self._accept, HOST, 0)

    async def _close(self) -> None:
        for connection in self.connections:
            connection.abort()

    def _accept(self) -> _Side:
        index = len(self.connections)
        if callable(self.plan):
            fault = self.plan(index)
        else:
            fault = self.plan[index] if index < len(self.plan) else Fault()
        connection = Connection(index, fault, self.upstream_port)
        self.connections.append(connection)
        return connection.client


class Connection:
    """A client's connection, the one to the service, and the fault that befalls them."""

    def __init__(self, index: int, fault: Fault, upstream_port: int) -> None:
        self.index = index
        self.fault = fault
        self.to_server = 0
        self.to_client = 0
        self.struck = ""  # "cut", "frozen", "swallowing", once the fault has begun
        self.client = _Side(self, "client")
        self.server = _Side(self, "server")
        self._upstream_port = upstream_port
        self._dialling: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def open(self) -> bool:
        return self.client.open or self.server.open

    def accepted(self) -> None:
        if self.fault.silent:
            self.freeze()
            return
        if self.fault.cut_after_s is not None:
            self._timers.append(self._loop.call_later(self.fault.cut_after_s, self.cut))
        self.client.pause()
        self._dialling = self._loop.create_task(self._dial())

    async def _dial(self) -> None:
        try:
            await self._loop.create_connection(lambda: self.server, HOST, self._upstream_port)
        except OSError:
            self.abort()
        else:
            self.client.resume()

    def forward(self, source: _Side, data: bytes) -> None:
        """Forward as much as the fault lets through, and strike when its count is reached."""
        if self.struck in ("cut", "frozen"):
            return
        fault = self.fault
        if source is self.client:
            done, cut_at, freeze_at = self.to_server, fault.cut_to_server, fault.freeze_to_server
        else:
            done, cut_at, freeze_at = self.to_client, fault.cut_to_client, fault.freeze_to_client
            if self.struck == "swallowing":
                return
        limit = min((at for at in (cut_at, freeze_at) if at is not None), default=None)
        if limit is not None:
            data = data[: limit - done]
        done += len(data)
        strike = (self.cut if limit == cut_at else self.freeze) if done == limit else None
        # Counted first: the other side may see a cut before this thread goes on.
        if source is self.client:
            self.to_server = done
            if not self.struck and fault.swallow_after is not None and done >= fault.swallow_after:
                self.struck = "swallowing"
        else:
            self.to_client = done
        source.other.write(data, strike)

    def freeze(self) -> None:
        if self.struck != "cut" and self.open:
            self.struck = "frozen"
            self.client.pause()
            self.server.pause()

    def cut(self, *, rst: bool | None = None) -> None:
        if self.struck == "cut" or not self.open:
            return
        self.struck = "cut"
        if self.fault.rst if rst is None else rst:
            self.abort()
            return
        for side in (self.client, self.server):
            side.finish()
            side.resume()
        self._timers.append(self._loop.call_later(FIN_LINGER_S, self.abort))

    def abort(self) -> None:
        """Close both sides at once, by RST."""
        if self._dialling:
            self._dialling.cancel()
        for timer in self._timers:
            timer.cancel()
        for side in (self.client, self.server):
            side.abort()


class _Side(asyncio.Protocol):
    """One of the two sockets of a connection."""

    def __init__(self, connection: Connection, name: Literal["client", "server"]) -> None:
        self._connection = connection
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._line: deque[tuple[float, bytes]] = deque()  # read, and due at the other side
        self._when_written: Callable[[], None] | None = None
        self._finished = False
        self._holds = 0

    @property
    def other(self) -> _Side:
        connection = self._connection
        return connection.server if self is connection.client else connection.client

    @property
    def open(self) -> bool:
        return self._transport is not None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(0)
        # No public name says how much to read at once.
        cast(Any, transport).max_size = self._read_bytes()
        if self._connection.fault.bytes_per_s:
            # The kernel takes up to 32 MB ahead otherwise, and a line is no store.
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        # Not at once: until Python 3.11.2 at least, asyncio begins to read after this call, whether
        # reading is paused or not, and what comes before there is another side would be lost.
        self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        if self._transport and self._holds:
            self._transport.pause_reading()
        if self is self._connection.client:
            self._connection.accepted()

    def data_received(self, data: bytes) -> None:
        fault = self._connection.fault
        if fault.bytes_per_s:
            self.pause()
            self._loop.call_later(len(data) / fault.bytes_per_s, self.resume)
        self._arrive(data)

    def eof_received(self) -> bool:
        self._arrive(b"")
        return True

    def pause_writing(self) -> None:
        self.other.pause()

    def resume_writing(self) -> None:
        self.other.resume()
        if self._when_written:
            self._when_written()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        # FIN went through eof_received; anything else ends the connection at once.
        if error or not self._connection.struck:
            self._connection.abort()

    # What the connection calls

    def pause(self) -> None:
        """Stop reading, until as many calls of resume()."""
        self._holds += 1
        if self._transport and self._holds == 1:
            self._transport.pause_reading()

    def resume(self) -> None:
        self._holds -= 1
        if self._connection.struck == "cut":
            self._holds = 0
        if self._transport and self._holds == 0 and not self._transport.is_closing():
            self._transport.resume_reading()

    def write(self, data: bytes, then: Callable[[], None] | None = None) -> None:
        """Write, and call `then` once the kernel has taken every byte."""
        if not self._transport:
            return
        self._transport.write(data)
        if then and self._transport.get_write_buffer_size():
            self._when_written = then
        elif then:
            then()

    def finish(self) -> None:
        """Send FIN, after what was written."""
        if self._transport and not self._finished:
            self._finished = True
            with contextlib.suppress(OSError):
                self._transport.write_eof()
            if self.other._finished:
                self._loop.call_soon(self._close)

    def abort(self) -> None:
        if self._transport:
            raw = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def _close(self) -> None:
        """Both directions are done."""
        if self._connection.struck != "cut":
            for side in (self, self.other):
                if side._transport:
                    side._transport.close()

    # The line between the two sides

    def _read_bytes(self) -> int:
        rate = self._connection.fault.bytes_per_s
        return max(1, min(READ_BYTES, int(rate / 50))) if rate else READ_BYTES

    def _arrive(self, data: bytes) -> None:
        delay_s = self._connection.fault.delay_s
        if not delay_s:
            self._depart(data)
            return
        self._line.append((self._loop.time() + delay_s, data))
        if len(self._line) == 1:
            self._loop.call_at(self._line[0][0], self._due)

    def _due(self) -> None:
        while self._line and self._line[0][0] <= self._loop.time():
            self._depart(self._line.popleft()[1])
        if self._line:
            self._loop.call_at(self._line[0][0], self._due)

    def _depart(self, data: bytes) -> None:
        if data:
            self._connection.forward(self, data)
        elif self._connection.struck not in ("frozen", "cut"):
            self.other.finish()
        elif self._connection.struck == "cut" and self._transport:
            self._transport.close()


# --- An HTTP proxy -------------------------------------------------------------------


REASONS = {
    "403": "Forbidden",
    "407": "Proxy Authentication Required",
    "408": "Request Timeout",
    "429": "Too Many Requests",
    "502": "Bad Gateway",
}


class HttpProxy(_LoopThread):
    """A CONNECT proxy: it works, refuses with a status, or accepts and stays silent.

    With `credentials`, as USER:PASSWORD, whoever does not give them is refused with 407.

    With `upstream_port` every tunnel ends at that port on loopback, whatever name was asked
    for, so that names which do not exist can be connected to.
    """

    def __init__(
        self,
        mode: Literal["works", "403", "407", "408", "429", "502", "silent"] = "works",
        *,
        upstream_port: int | None = None,
        credentials: str = "",
    ) -> None:
        super().__init__()
        self.mode = mode
        self.credentials = credentials
        self.upstream_port = upstream_port
        self.targets: list[str] = []  # "host:port" of each CONNECT
        # Asyncio itself lets the collector take a tunnel of which one side has been closed.
        self._serving: set[asyncio.Task[Any] | None] = set()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, HOST, 0)

    async def _close(self) -> None:
        """The tasks that _shut_down() cancels close their own sockets."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())
        # A cancelled handler would be reported as an error by asyncio's own callback.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            try:
                await self._connect(reader, writer)
            finally:
                writer.transport.abort()
                self._serving.discard(asyncio.current_task())

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode("latin-1").split(" ", 2)
        self.targets.append(target)
        if self.mode == "silent":
            await asyncio.Event().wait()
        works = "200 Connection established" if method == "CONNECT" else "405 CONNECT only"
        status = works if self.mode == "works" else f"{self.mode} {REASONS[self.mode]}"
        given = base64.b64encode(self.credentials.encode())
        if self.credentials and b"proxy-authorization: basic " + given.lower() not in head.lower():
            status = f"407 {REASONS['407']}"
        if not status.startswith("200"):
            is_407 = status.startswith("407")
            extra = 'Proxy-Authenticate: Basic realm="proxy"\r\n' if is_407 else ""
            writer.write(f"HTTP/1.1 {status}\r\n{extra}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            return
        host, _, port = target.rpartition(":")
        if self.upstream_port is not None:
            host, port = HOST, str(self.upstream_port)
        upstream_reader, upstream = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
            await asyncio.gather(_copy(reader, upstream), _copy(upstream_reader, writer))
        finally:
            upstream.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
