"""The dashboard behind the proxies of docs/deploying.md, whose recipes are run as they stand there."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from needed import program
from shown import Search

ROOT = Path(__file__).parents[3]
COMMAND = Path(sys.executable).with_name("search")
NAME = "box.example.org"
PATIENCE_SECONDS = 60


def recipe(language: str) -> str:
    """The only block of a language in the page."""
    text = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert isinstance(found, str)
    return found


def nginx(folder: Path, tls_port: int, port: int) -> list[str]:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject]
    subprocess.run(made, check=True, capture_output=True)
    server = recipe("nginx").replace("listen 443", f"listen 127.0.0.1:{tls_port}").replace(":8080", f":{port}")
    server = server.replace(f"/etc/ssl/{NAME}.pem", str(certificate)).replace(f"/etc/ssl/{NAME}.key", str(key))
    kept = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{name}_temp_path {folder / name};\n" for name in kept)
    user = "user root;\n" if os.getuid() == 0 else ""  # the folder is its owner's alone
    head = f"{user}daemon off;\npid {folder / 'pid'};\nerror_log stderr;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{head}http {{\naccess_log off;\n{places}{server}}}\n")
    return [program("nginx"), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def caddy(folder: Path, tls_port: int, port: int) -> list[str]:
    head = f"{{\nadmin off\nskip_install_trust\nauto_https disable_redirects\nhttps_port {tls_port}\n}}\n"
    site = recipe("caddy").replace(f"{NAME} {{", f"{NAME} {{\ntls internal").replace(":8080", f":{port}")
    (folder / "Caddyfile").write_text(head + site)
    return [program("caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


class Browser:
    """Asks the proxy for a page by the name it is known by."""

    def __init__(self, tls_port: int) -> None:
        self.tls_port = tls_port
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE  # made for this test

    def ask(self, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPSConnection(NAME, self.tls_port)
        connection.sock = self._shake_hands()
        connection.request(method, path, headers={"Connection": "close", **headers})
        response = connection.getresponse()
        response.read()
        connection.close()
        return response

    def _shake_hands(self) -> ssl.SSLSocket:
        """A proxy that listens may not have made its certificate yet."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            raw = socket.create_connection(("127.0.0.1", self.tls_port), PATIENCE_SECONDS)
            try:
                return self._context.wrap_socket(raw, server_hostname=NAME)
            except ssl.SSLError:
                raw.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_for(process: subprocess.Popen[str], port: int) -> None:
    while True:
        assert process.poll() is None, "the proxy has ended"
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS).close()
        except ConnectionRefusedError:
            continue
        return


@pytest.mark.slow
@pytest.mark.parametrize("configure", [nginx, caddy])
def test_the_recipe_of_a_proxy_shows_and_edits_studies_for_those_with_the_token(
    search: Search, tmp_path: Path, configure: Callable[[Path, int, int], list[str]]
) -> None:
    program(configure.__name__)
    tls_port = free_port()
    origin = f"https://{NAME}:{tls_port}"
    options = ["--port", "0", "--url", origin, "--allow-edits", "--storage", search.url]
    with ExitStack() as stack:
        dashboard = stack.enter_context(running([str(COMMAND), "dashboard", *options]))
        assert dashboard.stdout is not None
        line = dashboard.stdout.readline().strip()
        token = line.removeprefix(f"{origin}/?token=")
        assert len(token) == 43, line
        (port,) = {connection.laddr.port for connection in psutil.Process(dashboard.pid).net_connections("inet")}
        command = configure(tmp_path, tls_port, port)
        wait_for(stack.enter_context(running(command, HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path))), tls_port)
        browser = Browser(tls_port)

        assert browser.ask("/api/studies").status == 401
        assert browser.ask("/api/studies/1", "DELETE").status == 401
        entered = browser.ask(f"/?token={token}")
        assert (entered.status, entered.headers["Location"]) == (303, "/")
        cookie, _, attributes = entered.headers["Set-Cookie"].partition("; ")
        assert "Secure" in attributes
        assert browser.ask("/", Cookie=cookie).headers["Location"] == f"{origin}/dashboard"
        assert browser.ask("/dashboard", Cookie=cookie).status == 200
        for other in ("http://evil.example", f"http://{NAME}:{tls_port}", "https://127.0.0.1"):
            assert browser.ask("/api/studies/1", "DELETE", Cookie=cookie, Origin=other).status == 403
        assert browser.ask("/api/studies/1", "DELETE", Cookie=cookie, Origin=origin).status == 204


@pytest.mark.slow
def test_a_dashboard_of_this_machine_alone_is_shown_to_nobody_through_a_proxy(search: Search, tmp_path: Path) -> None:
    program("nginx")
    tls_port, port = free_port(), free_port()
    with ExitStack() as stack:
        options = ["--port", str(port), "--storage", search.url]
        dashboard = stack.enter_context(running([str(COMMAND), "dashboard", *options]))
        assert dashboard.stdout is not None
        assert dashboard.stdout.readline().strip() == f"http://127.0.0.1:{port}/"
        nginx(tmp_path, tls_port, port)
        careless = tmp_path / "nginx.conf"  # Host is then 127.0.0.1
        careless.write_text(careless.read_text().replace("proxy_set_header Host $host;", ""))
        wait_for(stack.enter_context(running([program("nginx"), "-c", str(careless), "-e", "stderr"])), tls_port)
        assert Browser(tls_port).ask("/api/studies").status == 401
