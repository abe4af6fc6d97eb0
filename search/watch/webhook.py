"""``[notify] webhook``: messages as JSON POSTs, in this program's own shape or in the shape of a chat service."""

from __future__ import annotations

import json
import time
import urllib.request
from functools import partial
from typing import assert_never
from urllib.error import HTTPError
from urllib.parse import urlsplit

from search.console import Say
from search.watch.messenger import Message, Messenger, UndeliveredError
from studies.notify import Notify, WebhookFormat

TIMEOUT_SECONDS = 5
"""Longest wait for a server to accept the connection, and longest wait for its answer."""

DISCORD_LENGTH = 2000
"""Largest number of characters of a message in Discord."""


def open_webhook(notify: Notify, say: Say) -> Messenger:
    """A messenger that posts to the webhook of ``notify``, which must have one."""
    assert notify.webhook is not None
    host = urlsplit(notify.webhook).hostname or ""
    return Messenger("webhook", host, partial(post, notify.webhook, notify.format), say)


def body_of(message: Message, form: WebhookFormat) -> Message:
    """The JSON body for a receiver.

    Sources: docs.slack.dev/messaging/formatting-message-text (escapes, mrkdwn); discord.com/developers/docs/resources/
    webhook (content, allowed_mentions); learn.microsoft.com, "Create incoming webhooks with Workflows for Microsoft
    Teams" (a message whose attachment is an Adaptive Card; Workflows take no other cards).
    """
    text = str(message["text"])
    match form:
        case "json":
            return message
        case "slack":
            escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return {"text": escaped, "mrkdwn": False}
        case "discord":
            return {"content": text[:DISCORD_LENGTH], "allowed_mentions": {"parse": []}}
        case "teams":
            card: Message = {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.2",
                "body": [{"type": "TextBlock", "text": text, "wrap": True}],
            }
            kind = "application/vnd.microsoft.card.adaptive"
            return {"type": "message", "attachments": [{"contentType": kind, "contentUrl": None, "content": card}]}
        case _:
            assert_never(form)


def post(address: str, form: WebhookFormat, message: Message) -> None:
    """Post one message.

    Raises:
        UndeliveredError: the server does not accept the message.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "featherweight"}
    began = time.monotonic()
    try:
        request = urllib.request.Request(address, json.dumps(body_of(message, form)).encode(), headers)
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_SECONDS) as answer:
            answer.read(1024)
    except Exception as error:
        late = time.monotonic() - began >= TIMEOUT_SECONDS
        raise UndeliveredError(f"no answer within {TIMEOUT_SECONDS} s" if late else _reason(error)) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Turns a redirect into an error: a redirected POST would arrive as a GET without its message."""

    def redirect_request(self, *_: object) -> None:
        return None


def _reason(error: Exception) -> str:
    """An error in words, without the address, which some errors contain."""
    if isinstance(error, HTTPError):
        return f"it answers {error.code}"
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or type(cause).__name__
