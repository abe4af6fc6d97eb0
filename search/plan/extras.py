"""Checks the optional packages (extras) that a study needs, and turns the addresses of [notify] into services of
apprise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from studies import StudySpec
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from apprise import Apprise


def check_extras(spec: StudySpec) -> None:
    """Check that the extras of a study are installed, before any work begins.

    Raises:
        ConfigError: an extra is missing, or apprise does not know the service of an address of [notify].
    """
    if spec.track.tensorboard:
        _check_installed("tensorboard", "track.tensorboard = true", "tensorboard")
    if spec.notify.urls:
        _check_installed("apprise", "notify.urls", "notify")
        services_of(spec.notify.urls)


def _check_installed(package: str, setting: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(f"{setting} needs the package {package}: pip install 'featherweight[{extra}]' first")


def services_of(urls: Sequence[str]) -> list[Apprise]:
    """A service for each address of [notify]. The addresses are secrets, so an error has only their positions.

    Raises:
        ConfigError: apprise does not know the service of an address.
    """
    from apprise import Apprise  # 0.3 s

    for name in ("apprise", "urllib3.connectionpool"):
        logging.getLogger(name).disabled = True  # their log lines contain addresses
    services = [Apprise() for _ in urls]
    for number, url in enumerate(urls):
        if not services[number].add(url):
            raise ConfigError(
                f"notify.urls.{number} is not an address that apprise understands; its form is SERVICE://..., see "
                "https://github.com/caronc/apprise/wiki"
            )
    return services
