"""Pictures on the web: addresses as written, servers asked with manners, no way from a catalog to private hosts."""

import email.utils
import http.server
import threading
import time

import pytest

from retailray import storage
from retailray.errors import ImageError

PICTURE = b"\x89PNG picture"


class Server(http.server.ThreadingHTTPServer):
    """Answers exact request lines only, and notes what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.at_once, self.most_at_once, self.lock = [], 0, 0, threading.Lock()
        self.base = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def times(self, path):
        return [at for line, at, _ in self.asked if line == path]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            server.asked.append((self.path, time.monotonic(), dict(self.headers)))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self.answer(len(server.times(self.path)))
        finally:
            with server.lock:
                server.at_once -= 1

    def answer(self, count):
        exact = ("/a%40b.png?sig=x%3Ay", "/k.png?X-Amz-Signature=ab%2Fcd%2B1%3D", "/sp%20ace.png", "/pl+us.png",
                 "/100%25.png", "/%E7%94%BB.png", "/plain.png")  # fmt: skip
        if self.path in exact:
            self.send(200, PICTURE)
        elif self.path.startswith("/slow/"):
            time.sleep(0.1)
            self.send(200, PICTURE)
        elif self.path == "/large":
            self.send(200, bytes(5_000_000))
        elif self.path == "/endless":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            except OSError:
                self.close_connection = True
        elif self.path == "/wait-seconds":
            self.send(200, PICTURE) if count > 1 else self.send(429, Retry_After="1")
        elif self.path == "/wait-date":
            until = email.utils.formatdate(time.time() + 2, usegmt=True)
            self.send(200, PICTURE) if count > 1 else self.send(503, Retry_After=until)
        elif self.path == "/wait-an-hour":
            self.send(429, Retry_After="3600")
        elif self.path == "/once-500":
            self.send(200, PICTURE) if count > 1 else self.send(500)
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "500")
            self.end_headers()
            self.wfile.write(bytes(50))
            self.close_connection = True
        elif self.path.startswith("/to/"):
            self.send(302, Location=self.path.removeprefix("/to/"))
        elif self.path == "/loop":
            self.send(301, Location="/loop")
        else:
            code = self.path.removeprefix("/code/")
            self.send(int(code) if code.isdigit() else 403)

    def send(self, code, body=b"", **headers):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    with Server() as running:
        yield running
        running.shutdown()


def fetch(server, *paths, **access):
    access.setdefault("allowed", (server.base,))
    found = storage.fetch_many([f"{server.base}{path}" for path in paths], storage.Access(**access))
    return [one.code if isinstance(one, ImageError) else one for one in found]


@pytest.mark.parametrize(
    "path",
    ["/a%40b.png?sig=x%3Ay", "/k.png?X-Amz-Signature=ab%2Fcd%2B1%3D", "/sp ace.png", "/sp%20ace.png", "/pl+us.png",
     "/100%.png", "/画.png", "/plain.png#part"],
)  # fmt: skip
def test_an_address_is_sent_as_it_is_written(server, path):
    """Kind of fault: an address is decoded and encoded again, and its signature holds no longer."""
    assert fetch(server, path) == [PICTURE]


def test_answers_have_their_codes(server):
    found = fetch(server, "/code/404", "/code/410", "/code/401", "/code/403", "/code/418")
    assert found == ["not_found", "not_found", "access_denied", "access_denied", "fetch_failed"]
    assert len(server.asked) == 5, "what will not change is not asked again"


def test_servers_are_told_who_asks_and_get_the_headers_of_the_settings(server):
    assert fetch(server, "/plain.png", headers=(("Authorization", "Bearer secret"),)) == [PICTURE]
    [(_, _, headers)] = server.asked
    assert headers["User-Agent"].startswith("retailray/")
    assert headers["Authorization"] == "Bearer secret"


def test_headers_stay_with_the_host_they_are_for(server):
    """Kind of fault: a redirect, or another host of the catalog, gets a secret that is meant for one host."""
    with Server() as other:
        allowed, headers = (f"{server.base}/", other.base), (("Authorization", "Bearer secret"),)
        assert fetch(server, f"/to/{other.base}/plain.png", allowed=allowed, headers=headers) == [PICTURE]
        assert "Authorization" not in other.asked[0][2]
        other.shutdown()


@pytest.mark.slow
def test_busy_servers_are_given_the_time_they_ask_for(server, monkeypatch):
    monkeypatch.setattr("retailray.storage.http.DEADLINE_S", 20)
    started = time.monotonic()
    found = fetch(server, "/wait-seconds", "/wait-date", "/once-500", "/wait-an-hour", "/short")
    assert found == [PICTURE, PICTURE, PICTURE, "fetch_failed", "fetch_failed"]
    first, second = server.times("/wait-seconds")
    assert second - first >= 1
    assert len(server.times("/wait-an-hour")) == 1, "the deadline is over before"
    assert len(server.times("/short")) > 1
    assert time.monotonic() - started < 20


def test_a_host_is_asked_for_a_few_pictures_at_once(server):
    assert fetch(server, *(f"/slow/{number}" for number in range(60))) == [PICTURE] * 60
    assert server.most_at_once <= 8


def test_redirects_are_followed_where_they_may_lead(server):
    with Server() as other:
        assert fetch(server, "/to//plain.png", f"/to/{server.base}/plain.png") == [PICTURE] * 2
        assert fetch(server, "/loop") == ["fetch_failed"]
        # to a private host that nobody allowed, to a file, and to what a name stands for
        found = fetch(server, f"/to/{other.base}/plain.png", "/to/file:///etc/hostname", "/to/gopher://x/y",
                      f"/to/http://localhost:{other.server_port}/plain.png")  # fmt: skip
        assert found == ["not_allowed"] * 4
        assert not other.asked
        other.shutdown()


PRIVATE = ["127.0.0.1", "localhost", "LOCALHOST.", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "10.0.0.7",
           "169.254.169.254", "192.168.1.1", "100.64.0.1", "[fe80::1]", "[fd00::1]"]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_private_hosts_are_asked_only_where_that_is_allowed(server, host):
    """Kind of fault: a row of a catalog makes workers ask the cloud's metadata service, or Ray's dashboard."""
    address = f"http://{host}:{server.server_port}/plain.png"
    [found] = storage.fetch_many([address], storage.Access(allowed=("https://cdn.example.com",)))
    assert (found.code, "catalog.allow" in found.message) == ("not_allowed", True)
    assert not server.asked


def test_a_number_is_no_host(server):
    [found] = storage.fetch_many([f"http://2130706433:{server.server_port}/plain.png"])
    assert found.code in ("bad_address", "not_allowed")
    assert not server.asked


def test_what_is_allowed_on_a_private_host_ends_where_it_says(server):
    allowed = (f"{server.base}/slow",)
    assert fetch(server, "/slow/1", "/plain.png", "/slower.png", allowed=allowed) == [PICTURE] + ["not_allowed"] * 2


def test_no_more_is_read_than_the_limit(server):
    """Kind of fault: the size of what a server sends decides how much memory a task takes."""
    started = time.monotonic()
    found = fetch(server, "/large", "/endless", "/plain.png", max_bytes=3_000_000)
    assert found == ["too_many_bytes", "too_many_bytes", PICTURE]
    assert time.monotonic() - started < 30
    assert fetch(server, "/large", max_bytes=5_000_000) == [bytes(5_000_000)]
