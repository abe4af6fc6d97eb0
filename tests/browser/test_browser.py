"""A real search, watched in a real browser."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import pytest
from needed import missing
from tiny import tiny_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

COMMAND = Path(sys.executable).with_name("search")
PATIENCE_SECONDS = 150
NAMES_OF_THE_BROWSER = ("chromium", "chromium-browser", "google-chrome")
TOKEN = "d41d8cd98f00b204e9800998ecf8427e"

# Far more trials than anybody watches, and a worker that may stand still while nobody waits for one.
STUDY = tiny_study("watched", trials=500, epochs=2) + "\n[faults]\nhang_seconds = 900\n"
SOME_TRIALS = 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    executable = next(filter(None, map(shutil.which, NAMES_OF_THE_BROWSER)), None)
    if executable is None:
        missing("no Chromium on the PATH (Debian's package is called chromium)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page with cookies of its own, which fails a test whose scripts fail."""
    context = browser.new_context()
    context.set_default_timeout(1000 * PATIENCE_SECONDS)
    errors: list[Any] = []
    opened = context.new_page()
    opened.on("pageerror", lambda error: errors.append(error))  # playwright cannot hold a built-in method
    yield opened
    context.close()
    assert errors == []


class Watched(NamedTuple):
    process: subprocess.Popen[str]
    runs: Path
    address: str

    def detail(self) -> Any:
        """What the page is drawn from."""
        with urllib.request.urlopen(f"{self.address}api/studies/1", timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)

    def finished(self) -> int:
        return sum(trial["state"] == "Complete" for trial in self.detail()["trials"])

    @property
    def worker(self) -> psutil.Process:
        """It stands still but where a test needs it, and leaves the machine to the browser."""
        children = psutil.Process(self.process.pid).children()
        (worker,) = [child for child in children if "search.workers.worker" in child.cmdline()]
        return worker


@pytest.fixture(scope="module")
def watched(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A search that runs, with the dashboard that it started; at the end both stop."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "watched.toml").write_text(STUDY)
    with (folder / "err").open("w") as errors:
        process = subprocess.Popen(
            [COMMAND, "launch", "watched.toml", "--gpus", "cpu", "--dashboard"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("dashboard: http://127.0.0.1:"), (folder / "err").read_text()
        search = Watched(process, folder / "runs", line.split()[1])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (folder / "runs/search.db").exists() or _finished(search) < SOME_TRIALS:
            assert process.poll() is None, (folder / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        search.worker.suspend()
        yield search
        search.worker.resume()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 75, (folder / "err").read_text()
        with pytest.raises(OSError):  # noqa: PT011  # refused, whatever the sentence
            urllib.request.urlopen(line.split()[1], timeout=5)
    finally:
        process.kill()
        process.wait()


def _finished(search: Watched) -> int:
    try:
        return search.finished()
    except (OSError, KeyError):  # no study yet
        return 0


def test_a_running_search_is_seen_and_a_new_trial_appears(watched: Watched, page: Page) -> None:
    page.goto(watched.address)
    page.get_by_text("watched").first.click()
    page.get_by_text("Best Trial (number=").wait_for()
    shown = page.locator("body").inner_text()
    assert "Intermediate values" in shown
    assert "lr: 0.0" in shown, "the recipe of the best trial"

    page.goto(f"{watched.address}dashboard/studies/1/trials")
    counted = page.locator("body")
    count = "() => parseInt((document.body.innerText.match(/(\\d+) Trials/) || [0, 0])[1])"
    page.wait_for_function(f"({count})() > 0")
    before = page.evaluate(count)
    watched.worker.resume()
    page.wait_for_function(f"({count})() > {before}")
    watched.worker.suspend()
    assert "num_params" in counted.inner_text()
    assert watched.process.poll() is None, "the search must still be running"


@pytest.mark.slow
def test_the_note_and_the_figures_are_there_while_it_is_searched(watched: Watched, page: Page) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(watched.detail()["plotly_graph_objects"]) < 3:  # half a minute after its launch, where nothing else runs
        assert watched.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    page.goto(f"{watched.address}dashboard/studies/1/note")
    page.get_by_text("Best so far: ").wait_for()
    note = page.locator("body").inner_text()
    for words in (
        "The study is being searched.",
        "of 500 trials",
        "search export-best watched",
        "resnet10t",
        "no limit",
    ):
        assert words in note, words

    page.goto(f"{watched.address}dashboard/studies/1")
    for title in ("Accuracy against size", "Learning curves of the top 10", "Training time of trials"):
        page.get_by_text(title).first.wait_for()
    assert watched.process.poll() is None, "the search must still be running"


@pytest.mark.slow
def test_the_buttons_of_the_page_change_nothing(watched: Watched, page: Page) -> None:
    page.goto(watched.address)
    page.get_by_text("watched").first.wait_for()
    page.get_by_role("button", name="delete study").click()
    with page.expect_response(lambda response: response.request.method == "DELETE") as refused:
        page.get_by_role("button", name="yes").click()
    assert refused.value.status == 405
    page.get_by_text("Failed to delete study").wait_for()

    before = watched.finished()
    for method, path in (
        ("DELETE", "/api/studies/1"),
        ("POST", "/api/studies"),
        ("PUT", "/api/studies/1/note"),
        ("POST", "/api/studies/1/rename"),
        ("POST", "/api/trials/1/tell"),
        ("POST", "/api/artifacts/1"),
    ):
        script = "([method, path]) => fetch(path, {method, body: '{}'}).then(answer => answer.status)"
        assert page.evaluate(script, [method, path]) == 405, (method, path)
    page.reload()
    page.get_by_text("watched").first.wait_for()
    assert watched.finished() >= before
    assert watched.process.poll() is None


@pytest.mark.slow
def test_the_token_becomes_a_cookie_that_no_script_can_read(watched: Watched, page: Page, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    server = subprocess.Popen(
        [COMMAND, "dashboard", "--port", "0", "--token-file", token, "--runs", watched.runs],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split("?")[0]
        refused = page.goto(address)
        assert refused is not None
        assert refused.status == 401
        page.get_by_text("A token is needed").wait_for()
        page.goto(f"{address}?token={TOKEN}")
        page.get_by_text("watched").first.wait_for()
        assert TOKEN not in page.url
        assert TOKEN not in page.evaluate("document.cookie + document.documentElement.outerHTML + document.referrer")
        (cookie,) = page.context.cookies()
        assert (cookie["value"], cookie["httpOnly"], cookie["sameSite"]) == (TOKEN, True, "Strict")
    finally:
        server.terminate()
        server.communicate()
