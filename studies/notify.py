"""[notify] and [track] of a study file: messages to people, and records for other programs."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from trainer.values import FrozenModel


def _read_webhook(value: object) -> object:
    """Check the address without showing it in an error: it is a secret, because anyone who has it can post."""
    if value is not None:
        address = urlsplit(value) if isinstance(value, str) else None
        if address is None or address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("is not an address to post to; write one that begins with https:// or http://")
    return value


def _read_urls(value: object) -> object:
    """Check the form of the addresses without showing them."""
    if not isinstance(value, list | tuple) or not all(isinstance(url, str) and "://" in url for url in value):
        raise ValueError('is not a list of addresses; write ["SERVICE://...", ...], each in apprise\'s form')
    return value


WebhookFormat: TypeAlias = Literal["json", "slack", "discord", "teams"]
"""Shape of a webhook's JSON."""


class Notify(FrozenModel):
    """Messages on a new best, when a search stops, and when it is finished. May be changed between two launches of a
    study. The database does not have these settings, because addresses are secrets.
    """

    webhook: Annotated[str | None, BeforeValidator(_read_webhook)] = Field(None, repr=False)
    """Address that gets a JSON POST. Default: none."""
    format: WebhookFormat = "json"
    """Shape of the POST. json: all values of the event. slack, discord: the message of an incoming webhook. teams: an
    Adaptive Card, for a webhook of Workflows."""
    urls: Annotated[tuple[str, ...], BeforeValidator(_read_urls)] = Field((), repr=False)
    """Addresses of chats and other services, as apprise writes them, for example ["mailto://..."]. Needs the extra
    notify."""

    @model_validator(mode="after")
    def _format_is_of_a_webhook(self) -> Self:
        if self.format != "json" and self.webhook is None:
            raise ValueError(f'format = "{self.format}" needs webhook, an address; name it, or leave format out')
        return self


class Track(FrozenModel):
    """Records for other programs. May be changed between two launches of a study."""

    tensorboard: bool = False
    """true: the search writes event files for TensorBoard to RUNS/studies/STUDY/tensorboard. Needs the extra
    tensorboard."""
