"""A way to a service that can be cut, fall silent, or lose some requests: networks do all three."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Relay:
    """Hands bytes on between its port and another of this machine."""

    def __init__(self, to: int):
        self.to = to
        self.open = True
        """Whether connections are taken."""
        self.refused = b"\0"
        """Connections whose first bytes hold this are closed."""
        self.ends: list[socket.socket] = []
        self.silent: set[socket.socket] = set()
        """What is read of these is thrown away."""
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._take, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and take none."""
        self.open = False
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.open = True

    def fall_silent(self) -> None:
        """Of the connections that are there nothing arrives any more, and none is told."""
        self.silent |= set(self.ends)

    def _take(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:  # it was closed
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            first = client.recv(65536)
            if not self.open or self.refused in first:
                return
            with socket.create_connection(("127.0.0.1", self.to)) as service:
                service.sendall(first)
                self.ends += [client, service]
                back = threading.Thread(target=self._hand_on, args=(service, client), daemon=True)
                back.start()
                self._hand_on(client, service)
                back.join()

    def _hand_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source not in self.silent:
                    sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def relay(to: int) -> Iterator[Relay]:
    """One that is up within the block."""
    made = Relay(to)
    try:
        yield made
    finally:
        made.cut()
        made.server.close()
