"""What one visitor may ask of a server that all share: so many requests a minute, so large a body, so long a drawing, no fetching.

Middleware around the whole app, so that no event can be forgotten, and for drawings a wrapper of the event's generator:

    page.launch(..., app_kwargs={"middleware": visitor_limits(proxies=1)})
    yield from within(120, moments)
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS, SECONDS = 30, 60.0  # a visitor may begin so many in so long
WAITING = 4  # of them may stand in the queue at once, an eighth of it, or one visitor's minute of requests could fill an hour
EVENTS = 10  # of the page's own small events, such as a slider's, for each of them
MAX_JSON_BYTES = 2**20
MAX_UPLOAD_BYTES = 12 * 2**20  # on the form; gradio's own `max_file_size` is on each file in it
MAX_VISITORS = 10_000  # remembered at once
_QUEUE = ("/queue/join", "/call/")  # gradio's paths to its queue
_WORK = (*_QUEUE, "/upload")  # and all that make the server work
_EVENTS = ("/run/", "/api/")  # and those of events beside the queue, which never draw (`api_open` is off)
_FREE = ("/cancel", "/reset")  # the page's others; what else gradio would answer is not asked for here, and costs memory or disk
_PORT = re.compile(r"^\[([^\]]+)\](?::\d+)?$|^([\d.]+):\d+$")  # some proxies tell it: [::1]:80, 1.2.3.4:80
Item = TypeVar("Item")


class LimitError(ValueError):
    """A request that takes more than its share; the message says what is allowed."""


class RateLimit:
    """At most `requests` in any `seconds` for each name; memory for `MAX_VISITORS` names."""

    def __init__(self, requests: int = REQUESTS, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests, self.seconds, self._clock = requests, seconds, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # the name that was served longest ago comes first

    def wait(self, name: str) -> float:
        """0.0, and the request is counted; or the seconds until the next one of `name` will be served."""
        now = self._clock()
        times = self._times.setdefault(name, deque())
        while times and now - times[0] >= self.seconds:
            times.popleft()
        if len(times) >= self.requests:
            return self.seconds - (now - times[0])
        times.append(now)
        self._times.move_to_end(name)
        if len(self._times) > MAX_VISITORS:
            self._times.popitem(last=False)
        return 0.0


class Refusal(Exception):
    """A request that is not let through: its status, a sentence, and headers of the answer."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class VisitorLimits:
    """ASGI middleware: 404 for what the page never asks for, 429 above the rate or with too much waiting already, 413 for a body that
    is too large, 411 for one that does not say how large it is, 400 for a file given by its address (gradio would fetch it, whatever its size), several layers of paint, a
    number that is not finite, text that UTF-8 cannot hold, and an upload without a file.

    proxies: how many trusted proxies stand before the server (a Space has one). With none the X-Forwarded-For header is a
    visitor's own word and is not read.
    """

    def __init__(self, app: ASGIApp, rate: RateLimit, proxies: int = 0, upload_bytes: int = MAX_UPLOAD_BYTES, most_waiting: int = WAITING) -> None:
        self.app, self.rate, self.proxies, self.upload_bytes, self.most_waiting = app, rate, proxies, upload_bytes, most_waiting
        self.events = RateLimit(EVENTS * rate.requests, rate.seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/deep_link"):  # it would keep a visitor's whole session on the disk
            return await _answer(send, Refusal(404, "There is nothing here."))
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        upload = _is_upload(scope["path"])
        try:
            self.check(scope)
            await self.app(scope, receive if upload else await _read_json(receive), send)
        except Refusal as refusal:
            await _answer(send, refusal)
        except TypeError:
            if not upload:
                raise
            await _answer(send, Refusal(400, "The upload holds no file."))  # gradio trips over a form field in its place

    def check(self, scope: Scope) -> None:
        """Raise Refusal for a request that is too large or too soon; the others are counted."""
        path, told = scope["path"], dict(scope["headers"]).get(b"content-length", b"")
        if not any(part in path for part in (*_WORK, *_EVENTS, *_FREE)):
            raise Refusal(404, "There is nothing here.")
        most = self.upload_bytes if _is_upload(path) else MAX_JSON_BYTES
        if not told.isdigit() or b"transfer-encoding" in dict(scope["headers"]):  # together the second counts, and says no length
            raise Refusal(411, "Say how large the request is (Content-Length).")
        if int(told[:20]) > most:
            raise Refusal(413, f"The request is too large; use at most {most // 2**20} MiB.")
        for limit, paths in ((self.rate, _WORK), (self.events, _EVENTS)):
            seconds = math.ceil(limit.wait(visitor(scope, self.proxies))) if any(part in path for part in paths) else 0
            if seconds:
                rate = f"{limit.requests} requests in {limit.seconds:g} seconds"
                raise Refusal(429, f"More than {rate} are not served; try again in {seconds} s.", **{"retry-after": str(seconds)})
        if any(part in path for part in _QUEUE) and self.waiting(scope) >= self.most_waiting:
            raise Refusal(429, f"{self.most_waiting} of your requests are waiting already; let one of them come first.", **{"retry-after": "10"})

    def waiting(self, scope: Scope) -> int:
        """How many requests of the same visitor stand in gradio's queue."""
        asks = visitor(scope, self.proxies)
        app = scope.get("app")
        queues = app.get_blocks()._queue.event_queue_per_concurrency_id.values() if hasattr(app, "get_blocks") else ()
        return sum(visitor(event.request.scope, self.proxies) == asks for queue in queues for event in queue.queue)


def _is_upload(path: str) -> bool:
    """Whether a form with files is asked for, and not an event that calls itself so."""
    return path.endswith("/upload") and not any(part in path for part in (*_QUEUE, *_EVENTS))


async def _read_json(receive: Receive) -> Receive:
    """The same request to be received again, after a look at its body; Refusal when that is not for gradio."""
    messages, body, more = [], b"", True
    while more:
        messages.append(message := await receive())
        body += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        trouble = _trouble(json.loads(body))
    except RecursionError:
        trouble = "The request is nested too deeply."
    except ValueError:
        trouble = ""  # no JSON: the app says so itself
    if trouble:
        raise Refusal(400, trouble)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return again


def _trouble(value: Any) -> str:
    """What a JSON value holds that gradio would fetch or decode without end, or that no file, answer or error message could tell again; "" for nothing."""
    if isinstance(value, str):
        return "" if _encodable(value) else "Text must be of whole characters; half of a surrogate pair is none."
    if isinstance(value, float) and not math.isfinite(value):
        return "Numbers must be finite."
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and path.lower().startswith(("http:", "https:")):
            return "A file cannot be given by its address; upload it first."
        layers = value.get("layers")
        if isinstance(layers, list) and len(layers) > 1:  # gradio would decode each of them before anybody looks
            return "A picture has one layer of paint."
        value = [*value, *value.values()]
    return next(filter(None, map(_trouble, value)), "") if isinstance(value, list) else ""


def _encodable(text: str) -> bool:
    """Whether UTF-8 holds it. JSON can name half of a surrogate pair, and Python keeps it, but nothing can write it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def _answer(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"detail": str(refusal), "error": str(refusal)}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **refusal.headers}
    await send({"type": "http.response.start", "status": refusal.status, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": body})


def visitor_limits(requests: int = REQUESTS, seconds: float = SECONDS, proxies: int = 0, upload_bytes: int = MAX_UPLOAD_BYTES,
                   most_waiting: int = WAITING) -> list[Middleware]:
    """The middleware for `launch(app_kwargs={"middleware": ...})`."""
    return [Middleware(VisitorLimits, rate=RateLimit(requests, seconds), proxies=proxies, upload_bytes=upload_bytes, most_waiting=most_waiting)]


def visitor(scope: Scope, proxies: int = 0) -> str:
    """Who asks: the address that the outermost trusted proxy saw, or the connection's own; of IPv6 the /64, which is one home."""
    address = (scope.get("client") or ("unknown", 0))[0]
    if proxies > 0:
        forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for").decode("latin-1")
        hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
        address = hops[-min(proxies, len(hops))] if hops else address
    try:
        known = ipaddress.ip_address(_PORT.sub(lambda told: told[1] or told[2], address))
    except ValueError:
        return address[:64]
    known = getattr(known, "ipv4_mapped", None) or known  # ::ffff:1.2.3.4, from a socket for both families
    return str(ipaddress.ip_network((known, 64), strict=False)) if known.version == 6 else str(known)


def within(seconds: float, moments: Iterator[Item], clock: Callable[[], float] = time.monotonic) -> Iterator[Item]:
    """`moments` as they come; LimitError instead of the first one that is begun after `seconds`. `moments` is closed in any case."""
    begun, stream = clock(), iter(moments)
    try:
        while True:
            if clock() - begun > seconds:
                raise LimitError(f"The drawing took longer than {seconds:g} seconds and was stopped; use fewer steps or iterations.")
            try:
                yield next(stream)
            except StopIteration:
                return
    finally:
        close: Any = getattr(stream, "close", None)
        if close is not None:
            close()
