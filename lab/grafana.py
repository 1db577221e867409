"""A Prometheus that looks at xskd inside a lab, and a page on the host that draws the dashboards from it.

No Grafana server is needed: the page is dashboards/viewer, Grafana's components over the dashboard files. It
is served by a plain socket of the host; questions to Prometheus' HTTP API are passed on through sockets made
inside the lab's namespace. The page is for whoever sits at this machine: it must never listen anywhere but on
the loopback address, and never pass on anything but questions.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from lab.topology import Topology, entered

ROOT = Path(__file__).parents[1]
DASHBOARDS, RULES = ROOT / "dashboards/grafana", ROOT / "dashboards/prometheus"
PAGE = ROOT / "dashboards/viewer/built"
PORT = 3000  # Grafana's own
SCRAPE_SECONDS = 1
PROMETHEUS = ("127.0.0.1", 9090)  # inside the namespace
QUESTIONS = ("/api/v1/query", "/api/v1/query_range", "/api/v1/label/", "/api/v1/series", "/api/v1/rules")
START_SECONDS = 20.0


class GrafanaError(Exception):
    """Something is missing or did not start; the text says what, and what to do."""


@contextmanager
def prometheus(lab: Topology, directory: Path, target: str) -> Iterator[None]:
    """Run Prometheus beside xskd, asking `target` every second, with this project's rules."""
    file, log = directory / "prometheus.yaml", directory / "prometheus.log"
    file.write_text(json.dumps(_configuration(target)), encoding="utf-8")
    with log.open("wb") as said:
        process = lab.popen(
            *(lab.dut, "prometheus", f"--config.file={file}", f"--storage.tsdb.path={directory / 'tsdb'}"),
            f"--web.listen-address={PROMETHEUS[0]}:{PROMETHEUS[1]}",
            stderr=said,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(lab.dut):
            if process.poll() is not None or time.monotonic() > deadline:
                raise GrafanaError(f"Prometheus did not start; it said:\n{log.read_text('utf-8')}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


def _configuration(target: str) -> dict[str, Any]:
    """What Prometheus is told, as JSON, which is YAML too."""
    rules = [
        str(file) for file in sorted(RULES.glob("*.y*ml")) if "groups" in yaml.safe_load(file.read_text())
    ]
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": rules,
        "scrape_configs": [{"job_name": "xskd", "static_configs": [{"targets": [target]}]}],
    }


def _listens(ns: str) -> bool:
    try:
        _connection(ns).close()
    except OSError:
        return False
    return True


def _connection(ns: str) -> socket.socket:
    """A socket of the namespace's, which stays that when the thread has left it."""
    with entered(ns):
        return socket.create_connection(PROMETHEUS, timeout=10)


@contextmanager
def viewer(ns: str, *, port: int = PORT, page: Path = PAGE) -> Iterator[str]:
    """Serve the page, and beside it the API of the Prometheus in a namespace; gives the page's address."""

    class Handler(_Handler):
        namespace, folder = ns, page

    if not (page / "index.html").exists():
        raise GrafanaError(f"there is no page in {page}: `scripts/setup grafana` makes it")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise GrafanaError(
            f"cannot listen on port {port} of 127.0.0.1: {error.strerror}; choose another"
        ) from None
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _Handler(SimpleHTTPRequestHandler):
    namespace: str
    folder: Path
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=str(self.folder))

    def do_GET(self) -> None:
        """Answer with a question's answer, the dashboards, or a file of the page."""
        path = urllib.parse.urlsplit(self.path).path
        if path.startswith("/api/"):
            self._pass_on(path)
        elif path == "/viewer.json":
            self._answer(200, "application/json", json.dumps(settings()).encode())
        else:
            if path.startswith("/d/"):  # a dashboard's address, as Grafana has it: the page finds out which
                self.path = "/"
            super().do_GET()

    def _pass_on(self, path: str) -> None:
        """Ask Prometheus the same."""
        if not path.startswith(QUESTIONS) or ".." in path:
            self._answer(404, "text/plain", b"only questions are passed on to Prometheus\n")
            return
        connection = http.client.HTTPConnection(*PROMETHEUS)
        try:
            connection.sock = _connection(self.namespace)
            connection.request("GET", self.path)
            answer = connection.getresponse()
            self._answer(answer.status, answer.headers.get_content_type(), answer.read())
        except OSError as error:
            problem = {"status": "error", "error": f"Prometheus in {self.namespace}: {error}"}
            self._answer(502, "application/json", json.dumps(problem).encode())
        finally:
            connection.close()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: the terminal belongs to the demo."""


def settings() -> dict[str, Any]:
    """What the page has to know. The files are read anew, so that one being worked on is seen by a reload."""
    files = sorted(DASHBOARDS.glob("*.json"))
    return {
        "scrape_seconds": SCRAPE_SECONDS,
        "dashboards": [json.loads(file.read_text(encoding="utf-8")) for file in files],
    }
