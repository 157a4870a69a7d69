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
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

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

    async def _listen(self) -> int:
        """Begin to listen; return the port."""
        raise NotImplementedError

    async def _close(self) -> None:
        raise NotImplementedError

    def __enter__(self: Proxy) -> Proxy:
        self._thread.start()
        self.port = self._call(self._listen())
        return self

    def __exit__(self, *exception: object) -> None:
        self._call(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self._loop.close()

    async def _shut_down(self) -> None:
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
        self._serving: set[asyncio.Task[None]] = set()  # Asyncio itself keeps no task alive.

    @property
    def endpoint(self) -> str:
        return f"localhost:{self.port}"

    @property
    def to_server(self) -> int:
        return sum(connection.to_server for connection in self.connections)

    def cut_all(self, *, rst: bool = True) -> None:
        """Cut every live connection now."""

        async def cut() -> None:
            for connection in self.connections:
                connection.cut(rst=rst)
            if rst and self.connections:
                await asyncio.wait([connection.task for connection in self.connections])

        self._call(cut())

    async def _listen(self) -> int:
        self._listener = socket.create_server((HOST, 0))
        self._listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept())
        return int(self._listener.getsockname()[1])

    async def _close(self) -> None:
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            index = len(self.connections)
            if callable(self.plan):
                fault = self.plan(index)
            else:
                fault = self.plan[index] if index < len(self.plan) else Fault()
            connection = Connection(fault, client, self.upstream_port)
            self.connections.append(connection)
            self._serving.add(connection.task)
            connection.task.add_done_callback(self._serving.discard)


Line = asyncio.Queue[tuple[float, bytes]]  # What was read, and when it is due.


class Connection:
    """A client's connection, the one to the service, and the fault that befalls them."""

    def __init__(self, fault: Fault, client: socket.socket, upstream_port: int) -> None:
        self.fault = fault
        self.to_server = self.to_client = 0
        self.struck = ""  # "cut", "frozen", "swallowing", once the fault has begun
        self._client, self._server = client, socket.socket()
        self._upstream_port = upstream_port
        self._ends: asyncio.Queue[str] = asyncio.Queue()  # "frozen", "RST", "FIN", "closed"
        self._loop = asyncio.get_running_loop()
        self._end = "RST"
        self.task = self._loop.create_task(self._serve())
        # Also if it is cancelled before it has begun, or while it waits for the last time.
        self.task.add_done_callback(self._close)

    def cut(self, *, rst: bool | None = None) -> None:
        if self.struck != "cut" and not self.task.done():
            self.struck = "cut"
            self._ends.put_nowait("RST" if (self.fault.rst if rst is None else rst) else "FIN")

    def _freeze(self) -> None:
        if self.struck != "cut":
            self.struck = "frozen"
            self._ends.put_nowait("frozen")

    async def _serve(self) -> None:
        """Forward, until the fault or the end; then close both sides."""
        for side in (self._client, self._server):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.fault.bytes_per_s:
                # The kernel takes up to 32 MB ahead otherwise, and a line is no store.
                side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        if self.fault.cut_after_s is not None:
            self._loop.call_later(self.fault.cut_after_s, self.cut)
        forwarding = self._loop.create_task(self._forward())
        try:
            self._end = await self._ends.get()
            if self._end == "frozen":
                forwarding.cancel()
                self._end = await self._ends.get()
            if self._end == "FIN":
                for side in (self._client, self._server):
                    with contextlib.suppress(OSError):
                        side.shutdown(socket.SHUT_WR)
                await asyncio.wait([forwarding], timeout=FIN_LINGER_S)
        finally:
            # Before the sockets are closed: the loop still watches what is read.
            forwarding.cancel()
            await asyncio.wait([forwarding])

    def _close(self, _: asyncio.Task[None]) -> None:
        for side in (self._client, self._server):
            if self._end in ("RST", "frozen"):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            side.close()

    async def _forward(self) -> None:
        if self.fault.silent:
            self._freeze()
            return
        sides = (self._client, self._server, "to_server"), (self._server, self._client, "to_client")
        tasks = []
        try:
            await self._loop.sock_connect(self._server, (HOST, self._upstream_port))
            for source, target, name in sides:
                # Without a delay no more than one piece is under way.
                line: Line = asyncio.Queue(0 if self.fault.delay_s else 1)
                tasks.append(self._loop.create_task(self._read(source, line)))
                tasks.append(self._loop.create_task(self._write(target, line, name)))
            await asyncio.gather(*tasks)
            self._ends.put_nowait("closed")
        except OSError:
            self._ends.put_nowait("RST")
        finally:
            for task in tasks:
                task.cancel()

    async def _read(self, source: socket.socket, line: Line) -> None:
        rate = self.fault.bytes_per_s
        read_bytes = max(1, min(READ_BYTES, int(rate / 50))) if rate else READ_BYTES
        data = b"begin"
        while data:
            data = await self._loop.sock_recv(source, read_bytes)
            await line.put((self._loop.time() + self.fault.delay_s, data))
            if rate:
                await asyncio.sleep(len(data) / rate)

    async def _write(self, target: socket.socket, line: Line, name: str) -> None:
        """Write as much as the fault lets through, and strike when its count is reached."""
        cut_at, freeze_at = (getattr(self.fault, f"{what}_{name}") for what in ("cut", "freeze"))
        limit = min((at for at in (cut_at, freeze_at) if at is not None), default=None)
        while True:
            due_s, data = await line.get()
            if (wait_s := due_s - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            is_swallowed = self.struck == "swallowing" and name == "to_client"
            if is_swallowed or self.struck in ("cut", "frozen"):
                if not data:
                    return
                continue
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            before = getattr(self, name)
            data = data[: None if limit is None else limit - before]
            done = before + len(data)
            # Counted first: the other side may see a cut before this thread goes on.
            setattr(self, name, done)
            swallow_after = self.fault.swallow_after
            if name == "to_server" and swallow_after is not None and done >= swallow_after:
                self.struck = "swallowing"
            await self._loop.sock_sendall(target, data)
            if done == limit:
                self.cut() if limit == cut_at else self._freeze()


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

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        """Listen no longer; the tasks that _shut_down() cancels close their own sockets."""
        self._server.close()

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
