"""``[notify] urls``: messages through apprise, which supports over a hundred services."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from search.console import Say
from search.plan.extras import services_of
from search.watch.messenger import Message, Messenger, UndeliveredError

if TYPE_CHECKING:
    from apprise import Apprise


def open_services(urls: Sequence[str], say: Say) -> list[Messenger]:
    """A messenger for each address. Messages to the user name only the service, never the address."""
    if not urls:
        return []
    return [
        Messenger("notify.urls", url.partition(":")[0], partial(_notify, service), say)
        for url, service in zip(urls, services_of(urls), strict=True)
    ]


def _notify(service: Apprise, message: Message) -> None:
    if not service.notify(title=f"featherweight: {message['study']}", body=str(message["text"])):
        raise UndeliveredError("apprise could not deliver the message")
