"""The wire: one handler for calls (POST), blobs (PUT) and files (GET), and the environment that aims the client."""

from __future__ import annotations

import json
import os
import sys
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.kaggle_stub.world import World

ACCOUNT, SECRET = "tester", "0123456789abcdef0123456789abcdef"
DEAD = "http://127.0.0.1:9"  # https of any kind ends here at once
STAMP = 1_780_000_000.0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code: int, body: object, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_response(code)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def handle_any(self) -> None:
        world: World = self.server.world  # type: ignore[attr-defined]
        path = urlsplit(self.path).path  # a proxied request carries the whole address
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with world.lock:
            if self.command == "GET" and path.startswith("/files/"):
                code, data = world.file(path.removeprefix("/files/"))
                self.answer(code, data, Last_Modified=formatdate(STAMP, usegmt=True), Accept_Ranges="none")
            elif self.command == "PUT" and path.startswith("/upload/"):
                self.answer(world.put(path.removeprefix("/upload/"), body), {})
            else:
                code, reply = world.call(path.rsplit("/", 1)[-1], json.loads(body or b"{}"))
                self.answer(code, reply, **({"Location": reply["to"]} if code == 302 else {}))

    do_GET = do_PUT = do_POST = handle_any


class Stub:
    """``with Stub() as stub``: a running service. ``stub.world`` is its state, its failure switches and its log."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.world = World(self.address)
        self._server.world = self.world  # type: ignore[attr-defined]

    def __enter__(self) -> Stub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


def client_environment(stub: Stub, home: Path) -> dict[str, str]:
    """What aims the real client at the stub, with nothing patched: its "localhost" goes through a proxy, the stub."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
        "HOME": str(home),
        "KAGGLE_CONFIG_DIR": str(home),
        "TMPDIR": str(home),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "KAGGLE_USERNAME": ACCOUNT,
        "KAGGLE_KEY": SECRET,
        "http_proxy": stub.address,
        "no_proxy": "",
        "NO_PROXY": "",
        "https_proxy": DEAD,
        "HTTPS_PROXY": DEAD,
    }
