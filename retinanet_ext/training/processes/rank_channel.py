"""A line between the processes of a job, apart from torch.distributed: who stops, who failed, who is gone.

A process that waits in a collective sees no signal and no failure of another process; with NCCL it would wait for half
an hour. So each process has a socket to rank 0, and a thread that reads it. The system closes the socket of a process
that is killed, and finds out about a machine that is gone by keep-alive probes. No heartbeat runs in Python, because
reading a large annotation file may keep the interpreter busy for longer than 30 seconds.
"""

import contextlib
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
from typing import Any, NamedTuple

from .. import stops

# How long a process may take to end by itself after another one has failed.
GRACE_SECONDS = 5.0
# How long a process that fails waits for the news that another one failed before, and is the cause.
NEWS_SECONDS = 1.0
_KEY = "retinanet_ext/channel"
logger = logging.getLogger(__name__)


class End(NamedTuple):
    """Why a process ended: its rank, its exit code, and what there is to say."""

    rank: int
    code: int
    text: str


class RankChannel:
    """The line of this process. Make it on all ranks of the job.

    Attributes:
        first: the end that ends the job: of the process that failed or stopped first; None as long as all work.
    """

    def __init__(self, rank: int, world_size: int, store: Any, host: str) -> None:
        """
        Args:
            rank, world_size: of this process, and how many there are.
            store: torch.distributed's store, which all processes share.
            host: the address of rank 0, as the others reach it.

        Raises:
            OSError: rank 0 cannot be reached.
        """
        self.rank, self.first = rank, None
        self._news, self._lock, self._left = threading.Event(), threading.Lock(), False
        self._ranks: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._buffers: dict[socket.socket, bytes] = {}
        if world_size == 1:
            return
        if rank == 0:
            self._listen(store, host, world_size)
        else:
            self._connect(store, host)
        threading.Thread(target=self._read, daemon=True, name="rank_channel").start()
        stops.tell_others_by(lambda reason: self._send({"stop": reason}))

    def _listen(self, store, host, world_size) -> None:
        local = host in ("localhost", "127.0.0.1", "::1")
        server = socket.create_server(("127.0.0.1" if local else "", 0), backlog=world_size)
        server.settimeout(60)
        token = secrets.token_hex(16)
        store.set(_KEY, f"{server.getsockname()[1]} {token}")
        while len(self._ranks) < world_size - 1:
            connection, _ = server.accept()
            connection.settimeout(10)
            try:
                given, number = _line(connection).split()
            except (OSError, ValueError):  # someone else
                connection.close()
                continue
            if secrets.compare_digest(given, token):
                self._add(connection, int(number))
        server.close()

    def _connect(self, store, host) -> None:
        port, token = store.get(_KEY).decode().split()
        connection = socket.create_connection((host, int(port)), timeout=60)
        connection.sendall(f"{token} {self.rank}\n".encode())
        self._add(connection, 0)

    def _add(self, connection: socket.socket, rank: int) -> None:
        connection.setblocking(True)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._ranks[connection], self._buffers[connection] = rank, b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _send(self, message: dict, but: socket.socket | None = None) -> None:
        data = (json.dumps(message) + "\n").encode()
        with self._lock:
            for connection in self._ranks:
                if connection is not but:
                    with contextlib.suppress(OSError):  # the reader sees that it is closed
                        connection.sendall(data)

    def _read(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                connection = key.fileobj
                try:
                    data = connection.recv(65536)
                except OSError:
                    data = b""
                *lines, rest = (self._buffers[connection] + data).split(b"\n")
                self._buffers[connection] = rest
                for line in lines:
                    self._handle(json.loads(line), connection)
                if not data:
                    self._selector.unregister(connection)
                    self._closed(connection)

    def _handle(self, message: dict, connection: socket.socket) -> None:
        if "bye" in message:
            with self._lock:
                self._ranks.pop(connection, None)
            return
        if self.rank == 0:
            self._send(message, but=connection)
        if "stop" in message:
            stops.request_from_thread(message["stop"])
        if "end" in message:
            self._end(End(*message["end"]))

    def _closed(self, connection: socket.socket) -> None:
        with self._lock:
            rank = self._ranks.pop(connection, None)
        if rank is None or self._left:
            return
        text = f"rank {rank} ended without a word: it was killed (out of memory?), or its machine is gone"
        end = End(rank, 1, text)
        self._send({"end": end})
        self._end(end)

    def _end(self, end: End) -> None:
        if self.first is None:
            self.first = end
            self._news.set()
            timer = threading.Timer(GRACE_SECONDS, self._exit)
            timer.daemon = True
            timer.start()

    def _exit(self) -> None:
        """The main thread has not ended in time: it waits for a process that is gone."""
        if self._left:
            return
        logger.error("rank %d ends: %s", self.rank, self.first.text)
        if self.reports():
            sys.stderr.write(f"error: {self.first.text}\n")
            sys.stderr.flush()
        os._exit(self.first.code)

    def reports(self) -> bool:
        """Whether this process tells the user about the first end: the process itself, or the first one left."""
        if self.first is None or self.first.rank == self.rank:
            return True
        gone = self.first.text.startswith(f"rank {self.first.rank} ended without")
        return gone and self.rank == (1 if self.first.rank == 0 else 0)

    def leave(self) -> None:
        """Tell the others that this process is done. Its end is no failure."""
        self._left = True
        stops.tell_others_by(None)
        self._send({"bye": self.rank})

    def fail(self, code: int, text: str) -> End:
        """Tell the others that this process ends, and with it the job; returns the end that came first."""
        if self._ranks:
            self._news.wait(NEWS_SECONDS)
        if self.first is None:
            self.first = End(self.rank, code, text)
            self._send({"end": self.first})
            # The news must arrive before this process closes its connections, which would look like the cause.
            threading.Event().wait(NEWS_SECONDS / 2)
        self._left = True
        stops.tell_others_by(None)
        return self.first


def _line(connection: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n") and len(data) < 200:
        part = connection.recv(1)
        if not part:
            break
        data += part
    return data.decode()
