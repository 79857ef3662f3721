"""A webhook receiver with scripted answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """A receiver: the requests it received, and its answers, one per try; the last one repeats."""

    url: str = ""
    answers: list[int | str] = field(default_factory=lambda: [204])
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self) -> int | str:
        return self.answers[min(len(self.received), len(self.answers)) - 1]

    def await_tries(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while len(self.received) < count:
            assert time.monotonic() < deadline, f"{len(self.received)} of {count} tries came"
            time.sleep(0.02)


@contextmanager
def receiving(*answers: int | str) -> Iterator[Receiver]:
    receiver = Receiver(answers=list(answers) or [204])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            answer = receiver.answer()
            if answer == "hang":
                receiver.released.wait(30)
                return
            if answer == "flood":
                self.send_response(200)
                self.end_headers()
                try:
                    while not receiver.released.is_set():
                        self.wfile.write(b"x" * 65536)
                except OSError:
                    receiver.released.set()
                return
            self.send_response(int(answer))
            if answer in (301, 302, 307, 308):
                self.send_header("Location", receiver.url + "elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server_ = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server_.server_address[1]}/"
    thread = threading.Thread(target=server_.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server_.shutdown()
        thread.join()
        server_.server_close()
