"""`search dashboard`: optuna-dashboard in the browser. search/watch/front.py decides which requests pass.

Without options, the dashboard is read-only and reachable from this machine only. Requests from elsewhere, requests
through a proxy, and changes need a token. Changes are possible from this machine and through a proxy with TLS.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from waitress import wasyncore

from search.errors import UsageError
from search.paths import Runs
from search.watch.front import LOOPBACK_HOSTS, DashboardGate, build_app
from search.watch.server import DashboardServer

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8080

MIN_TOKEN_CHARACTERS = 16

NICENESS = 10
"""Niceness of a launch's dashboard, so that drawing a page of 2,000 trials takes no CPU time from training."""


def serve_dashboard(
    storage_url: str,
    *,
    host: str = LOOPBACK,
    port: int = DEFAULT_PORT,
    allow_hosts: Collection[str] = (),
    url: str | None = None,
    token_file: Path | None = None,
    edits: bool = False,
    runs: Runs | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the dashboard of a storage until Ctrl-C or SIGTERM; call it in the main thread.

    Many parameters: the options of ``search dashboard``.

    Args:
        storage_url: the database, which need not exist yet.
        host: address to listen on.
        port: port to listen on; 0: any free port.
        allow_hosts: further host names that browsers may use for the dashboard.
        url: the dashboard's address behind a proxy with TLS, "https://HOST".
        token_file: file with the token that browsers must send. Without it, a token is generated if one is needed:
            with ``edits``, with ``url``, and if ``host`` or ``allow_hosts`` is not this machine.
        edits: whether browsers on this machine, or at ``url``, may change studies while no study is searched.
        runs: the runs folder, with the studies' artifacts.
        announce: called once with the address, when the port answers. The address contains a generated token, but
            never one from a file.

    Raises:
        UsageError: the address is not available, the token is too weak, ``url`` is not an https address, or edits
            from other machines are requested without ``url``.
        StorageError: ``storage_url`` is not a storage URL, or its driver is not installed.
    """
    named = [_host_name(name) for name in allow_hosts]
    beyond = [name for name in (_host_name(host), *named) if not _is_loopback(name)]
    origin = None if url is None else parse_origin(url)
    if edits and beyond and not origin:
        raise UsageError(
            f"--allow-edits is for this machine alone, not for {beyond[0]}; leave one of the two out, or put a proxy "
            "with TLS before it and name that with --url"
        )
    needed = edits or beyond or origin
    token = read_token(token_file) if token_file else secrets.token_urlsafe(32) if needed else None
    names = LOOPBACK_HOSTS.union(named, [_reachable_name(host)], [_host_of(origin)] if origin else [])
    app = build_app(storage_url, runs=runs, allowed_hosts=names, token=token, edits=edits, origin=origin)
    listener = listen(host, port)
    shown = named[0] if named else _reachable_name(host)
    address = f"{origin or f'http://{shown}:{listener.getsockname()[1]}'}/"
    if token_file:
        address += f"?token=TOKEN, with the token in {token_file}"
    elif token:
        address += f"?token={token}"
    _serve(app, listener, edits=edits, announce=lambda: announce(address))


def parse_origin(url: str) -> str:
    """The address of a proxy as browsers send it in the Origin header: "https://box.example.org", with a port if not
    443.

    Raises:
        UsageError: the address has another scheme, a path, or no host name.
    """
    if "@" in url.rpartition("://")[2].partition("/")[0]:  # it may be a password, so it is not repeated
        raise UsageError("--url has a user or a password before the host name; write it without, as https://HOST")
    try:
        parts = urlsplit(url)
        name, port = _host_name(parts.hostname or ""), parts.port
    except (UsageError, ValueError):
        cure = "write --url https://box.example.org"
        if not url.isascii():
            cure = "write its name as browsers send it, in the form that begins with xn--"
        raise UsageError(f"--url {url} is not the address of a host; {cure}") from None
    if parts.scheme != "https":
        raise UsageError(f"--url {url}: browsers must reach the proxy by https; without TLS use --allow-host {name}")
    if url.partition("://")[2].partition("/")[2] or parts.query or parts.fragment:
        raise UsageError(
            f"--url {url}: the dashboard needs a host name of its own and works under no path; "
            f"write --url https://{name}"
        )
    return f"https://{name}" + (f":{port}" if port not in (None, 443) else "")


def _host_of(origin: str) -> str:
    return re.sub(r":\d+$", "", origin.removeprefix("https://"))


def read_token(file: Path) -> str:
    """The token in a file.

    Raises:
        UsageError: the file has no token, or its token is easy to guess, or has characters that URLs or cookies change.
    """
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"--token-file {file} cannot be read ({reason}); make one: openssl rand -hex 32") from None
    if not re.fullmatch(rf"[A-Za-z0-9._~-]{{{MIN_TOKEN_CHARACTERS},}}", token):
        raise UsageError(
            f"--token-file {file} must hold at least {MIN_TOKEN_CHARACTERS} letters, digits and -._~ in one line; "
            "make one: openssl rand -hex 32"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on this address.

    Raises:
        UsageError: the port or the address is not available.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} does not exist; choose one from 1 to 65535 with --port")
    # The socket is bound here, because waitress does not end its threads if the port is taken.
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except PermissionError:
        raise UsageError(f"port {port} is reserved for the system; choose one above 1023 with --port") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} is taken; choose another with --port") from None
        raise UsageError(f"--host {host} is not an address of this machine; 0.0.0.0 stands for all of them") from None


@contextlib.contextmanager
def dashboard_beside(storage_url: str, runs: Runs, *, port: int = DEFAULT_PORT) -> Iterator[str]:
    """Serve the dashboard in a separate process while the block runs. Yields its address on 127.0.0.1.

    If ``port`` is taken, the next free one is used. The process has a lower priority than the search. It ends with the
    block, or when the search is killed. Its errors are in ``runs.dashboard_log``.

    Raises:
        StorageError: not a storage URL, or its driver is not installed.
    """
    build_app(storage_url)  # raises for a wrong URL here, and not only in the log
    runs.root.mkdir(parents=True, exist_ok=True)
    with _next_free(port) as listener, runs.dashboard_log.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "search.watch.dashboard"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the search; the dashboard shows its last epoch
        )
        # The URL may contain a password, and every user can read command lines.
        order = {"storage": storage_url, "runs": str(runs.root), "listener": listener.fileno()}
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
            stdin.write(json.dumps(order | {"parent": os.getpid()}).encode())
        address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/"
        listener.close()  # otherwise browsers would wait for an answer after the process has ended
        try:
            yield address
        finally:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def main() -> None:
    """The process that ``dashboard_beside`` starts. It reads its arguments from standard input."""
    order = json.load(sys.stdin)
    os.nice(NICENESS)
    threading.Thread(target=_end_with, args=(order["parent"],), daemon=True).start()
    app = build_app(order["storage"], runs=Runs(Path(order["runs"])))
    _serve(app, socket.socket(fileno=order["listener"]), edits=False, announce=lambda: None)


def _end_with(parent: int) -> None:
    # Standard input does not show it: the parent closes it as soon as the arguments are written.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def _serve(app: DashboardGate, listener: socket.socket, *, edits: bool, announce: Callable[[], None]) -> None:
    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    # Waitress warns when many requests arrive at once. Each page that is opened sends many, so the warning is useless.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    # What the database refuses is in the answer; a traceback for each request would fill the terminal.
    logging.getLogger("optuna_dashboard._bottle_util").addFilter(app.hears)
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    connections: dict[int, wasyncore.dispatcher] = {}
    port = str(listener.getsockname()[1])
    server = DashboardServer(app, listener, connections, lambda cookies: edits and app.has_cookie(cookies, port))
    try:
        announce()
        server.run()  # returns on KeyboardInterrupt
    except KeyboardInterrupt:  # the loop had not begun
        pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        wasyncore.close_all(connections)  # with the listener; after server.close(), browsers would still wait


def _next_free(port: int) -> socket.socket:
    for candidate in range(port, port + 100):
        with contextlib.suppress(OSError):
            return socket.create_server((LOOPBACK, candidate))
    return socket.create_server((LOOPBACK, 0))


def _host_name(name: str) -> str:
    """A host name as browsers send it: in lower case, an IPv6 address in brackets."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name.strip("[]"))
        return f"[{address}]" if address.version == 6 else str(address)
    if not name.isascii():
        raise UsageError(
            f"{name!r} is not a host name as browsers send it; write its form of a to z, which begins with xn--"
        )
    if not re.fullmatch(r"[a-z0-9._-]+", name.lower()):
        raise UsageError(f"{name!r} is not a host name; write one without scheme and port, such as box.example.org")
    return name.lower()


def _is_loopback(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    return name == "localhost"


def _reachable_name(host: str) -> str:
    """A name under which browsers reach the address; this machine's name if the address means all interfaces."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            return socket.gethostname().lower()
    return _host_name(host)


if __name__ == "__main__":
    main()
