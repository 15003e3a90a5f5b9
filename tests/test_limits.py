"""Laws of the limits on one visitor: never more than the rate in any window, nobody pays for another, what is refused costs nothing."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from demo_server import free_port, nano_pipeline
from hypothesis import given
from hypothesis import strategies as st

from demo import limits
from demo.app import create_demo, launch_options
from demo.limits import (
    EVENTS,
    WAITING,
    LimitError,
    RateLimit,
    Refusal,
    VisitorLimits,
    _trouble,
    visitor,
    visitor_limits,
    within,
)


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 2), st.floats(0, 7)), max_size=40))
def test_no_window_holds_more_than_the_rate_and_a_wait_is_exact(requests: int, moves: list[tuple[int, float]]) -> None:
    now, served = 0.0, {}
    rate = RateLimit(requests, 10.0, lambda: now)
    for name, pause in moves:
        now += pause
        recent = [moment for moment in served.get(name, []) if now - moment < 10.0]
        wait = rate.wait(str(name))
        assert (wait == 0.0) == (len(recent) < requests)
        if wait == 0.0:
            served.setdefault(name, []).append(now)
        else:
            assert wait == pytest.approx(10.0 - (now - recent[-requests]))


def test_visitors_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_VISITORS", 3)
    rate = RateLimit(1, 10.0, lambda: 0.0)
    assert [rate.wait(name) for name in "abcd"] == [0.0] * 4 and len(rate._times) == 3
    assert rate.wait("d") == 10.0 and rate.wait("a") == 0.0


def scope(client: str, forwarded: str = "") -> dict:
    return {"type": "http", "client": (client, 5), "headers": [(b"x-forwarded-for", forwarded.encode())] if forwarded else []}


@pytest.mark.parametrize(("client", "forwarded", "proxies", "name"), [
    ("1.2.3.4", "", 0, "1.2.3.4"), ("1.2.3.4", "6.6.6.6", 0, "1.2.3.4"), ("10.0.0.1", "6.6.6.6, 1.2.3.4", 1, "1.2.3.4"),
    ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.9", 2, "1.2.3.4"), ("10.0.0.1", "", 1, "10.0.0.1"), ("10.0.0.1", "no address", 1, "no address"),
    ("2001:db8::1", "", 0, "2001:db8::/64"), ("::ffff:1.2.3.4", "", 0, "1.2.3.4"),
    ("10.0.0.1", "1.2.3.4:5555", 1, "1.2.3.4"), ("10.0.0.1", "[2001:db8::1]:80", 1, "2001:db8::/64"), ("2001:db8::ffff:1", "", 0, "2001:db8::/64"),
])
def test_a_visitor_cannot_choose_a_name(client: str, forwarded: str, proxies: int, name: str) -> None:
    assert visitor(scope(client, forwarded), proxies) == name


def test_a_drawing_that_takes_too_long_is_stopped_and_closed() -> None:
    now, closed = 0.0, []

    def drawing() -> Iterator[int]:
        nonlocal now
        try:
            for step in range(9):
                now += 1.0
                yield step
        finally:
            closed.append(True)

    seen = []
    with pytest.raises(LimitError, match="longer than 3 seconds"):
        for step in within(3, drawing(), lambda: now):
            seen.append(step)
    assert seen == [0, 1, 2, 3] and closed == [True]
    assert list(within(99, drawing(), lambda: now)) == list(range(9))
    stopped = within(99, drawing(), lambda: now)
    next(stopped)
    stopped.close()
    assert closed == [True] * 3


def test_a_server_with_limits_refuses_with_a_sentence_and_serves_the_others(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = create_demo(nano_pipeline())
    page.launch(**launch_options("127.0.0.1", free_port()), app_kwargs={"middleware": visitor_limits(2, 60.0, proxies=1)}, prevent_thread_lock=True)
    try:
        ask = {"data": ["red apple", "", 1, 1, 1, 1.0]}
        url = f"{page.local_url}gradio_api/call/generate"
        mine, other = {"x-forwarded-for": "1.1.1.1"}, {"x-forwarded-for": "2.2.2.2"}
        replies = [httpx.post(url, json=ask, headers=mine) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert "requests in 60 seconds" in replies[2].json()["detail"] and 0 < int(replies[2].headers["retry-after"]) <= 60
        reply = httpx.post(url, json=ask, headers=other)
        assert "event: complete" in httpx.get(f"{url}/{reply.json()['event_id']}", timeout=60).text
        assert httpx.post(url, content=b'{"data": ["' + b"x" * 2**20 + b'"]}', headers=other).status_code == 413
        assert httpx.post(url, content=iter([b"{}"]), headers=other).status_code == 411
        assert httpx.post(f"{page.local_url}gradio_api/run/generate", json=ask, headers=other).status_code >= 400  # past the queue
        address = {"data": [{"deep": [{"path": "https://example.com/x.png", "meta": {"_type": "gradio.FileData"}}]}, "", 1, 1, 1, 1.0]}
        fetch = httpx.post(url, json=address, headers={"x-forwarded-for": "3.3.3.3"})
        assert fetch.status_code == 400 and "upload it first" in fetch.json()["detail"]
        assert httpx.post(url, content=b"[" * 100_000, headers={"x-forwarded-for": "4.4.4.4"}).status_code in (400, 422)
        for body in (b'{"data": Infinity}', b'{"data": [1e999]}', b'{"data": [[NaN]]}'):
            assert httpx.post(url, content=body, headers={"x-forwarded-for": "5.5.5.5", "content-type": "application/json"}).status_code in (400, 429)
        assert httpx.post(f"{page.local_url}gradio_api/upload", files={"files": ("", b"x")}).json()["detail"] == "The upload holds no file."
        kept = httpx.post(f"{page.local_url}gradio_api/upload", files={"files": ("a.png", b"x")})
        assert kept.status_code == 200 and kept.json()[0].endswith("a.png")
        assert httpx.get(page.local_url, headers=mine).status_code == 200
        assert httpx.get(f"{page.local_url}gradio_api/deep_link?session_hash=x", headers=mine).status_code == 404
    finally:
        page.close()


def test_one_visitor_takes_a_quarter_of_the_queue(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one drawing goes on, whose end nobody waits for: more of the same visitor are refused, another one's is taken."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    slow, going = nano_pipeline(), threading.Event()
    stream = slow.stream
    monkeypatch.setattr(slow, "stream", lambda *args, **kwargs: (going.wait(60), (yield from stream(*args, **kwargs)))[1])
    page = create_demo(slow)
    page.launch(**launch_options("127.0.0.1", free_port()), app_kwargs={"middleware": visitor_limits(100, 60.0, proxies=1)}, prevent_thread_lock=True)
    try:
        ask, url = {"data": ["red apple", "", 1, 1, 1, 1.0]}, f"{page.local_url}gradio_api/call/generate"
        replies = []
        for _ in range(WAITING + 4):
            replies.append(httpx.post(url, json=ask, headers={"x-forwarded-for": "1.1.1.1"}))
            time.sleep(0.1)  # the first leaves the queue when it begins
        served = [reply.status_code for reply in replies]
        assert served == sorted(served) and set(served) == {200, 429} and WAITING <= served.count(200) <= WAITING + 1
        assert "of your requests are waiting" in replies[-1].json()["detail"]
        other = httpx.post(url, json=ask, headers={"x-forwarded-for": "2.2.2.2"})
        going.set()
        assert "event: complete" in httpx.get(f"{url}/{other.json()['event_id']}", timeout=60).text
        assert httpx.post(url, json=ask, headers={"x-forwarded-for": "1.1.1.1"}).status_code == 200
    finally:
        going.set()
        page.close()


@pytest.mark.parametrize(("body", "passes"), [
    (rb'{"data": ["red \ud83c\udf4e", 1]}', True), ('{"data": ["تفاحة 🍎"]}'.encode(), True), (b"no JSON", True),
    (rb'{"data": ["\ud800"]}', False), (rb'{"data": [{"deep": ["a", "b\udfffc"]}]}', False), (rb'{"data": [{"\ud83c": 1}]}', False),
    (rb'{"data": "\ud800"}', False), (rb'{"data": [], "session_hash": "\ud800"}', False), (b'["\xed\xa0\x80"]', False),
])
def test_text_that_cannot_be_written_is_refused_wherever_it_stands(body: bytes, passes: bool) -> None:
    reached, sent = [], []

    async def inside(_: dict, receive: Callable, __: Callable) -> None:
        reached.append((await receive())["body"])

    async def receive() -> dict:
        return {"type": "http.request", "body": body}

    async def send(message: dict) -> None:
        sent.append(message)

    asked = {**scope("1.1.1.1"), "method": "POST", "path": "/gradio_api/cancel", "headers": [(b"content-length", b"%d" % len(body))]}
    asyncio.run(VisitorLimits(inside, RateLimit())(asked, receive, send))
    assert reached == ([body] if passes else [])
    if not passes:
        assert sent[0]["status"] == 400 and json.loads(sent[1]["body"])["detail"] == "Text must be of whole characters; half of a surrogate pair is none."


def test_a_stop_is_never_counted() -> None:
    watch = VisitorLimits(None, RateLimit(1, 60.0))
    asked = {**scope("1.1.1.1"), "path": "/gradio_api/queue/join", "headers": [(b"content-length", b"5")]}
    watch.check(asked)
    with pytest.raises(Refusal, match="More than 1 requests in 60 seconds"):
        watch.check(asked)
    watch.check({**asked, "path": "/gradio_api/cancel"})


def test_what_the_page_never_asks_for_is_not_there() -> None:
    watch = VisitorLimits(None, RateLimit())
    for path in ("component_server", "process_recording", "vibe-edit/", "stream/1"):
        with pytest.raises(Refusal, match="nothing here"):
            watch.check({**scope("1.1.1.1"), "path": f"/gradio_api/{path}", "headers": [(b"content-length", b"5")]})
    for path in ("upload", "cancel", "reset", "run/predict", "call/generate", "call/v2/generate", "queue/join"):
        watch.check({**scope("1.1.1.1"), "path": f"/gradio_api/{path}", "headers": [(b"content-length", b"5")]})


def test_a_picture_has_one_layer_of_paint() -> None:
    """gradio decodes every layer of an editor's value before an event sees it: forty of one small file would fill the memory."""
    layer = {"path": "/tmp/x.png"}
    assert _trouble({"data": [{"background": layer, "layers": [layer], "composite": None}]}) == ""
    assert "one layer" in _trouble({"data": [{"background": layer, "layers": [layer] * 2, "composite": None}]})


def test_the_pages_small_events_have_a_limit_of_their_own() -> None:
    watch = VisitorLimits(None, RateLimit(1, 60.0))
    asked = {**scope("1.1.1.1"), "path": "/gradio_api/run/predict", "headers": [(b"content-length", b"5")]}
    for _ in range(EVENTS):
        watch.check(asked)
    watch.check({**asked, "path": "/gradio_api/queue/join"})
    with pytest.raises(Refusal, match=f"More than {EVENTS} requests"):
        watch.check(asked)


def test_a_length_beside_a_body_in_pieces_is_none() -> None:
    """Servers read such a body to its last piece, whatever length was told (RFC 9112, section 6.3)."""
    both = {**scope("1.1.1.1"), "path": "/gradio_api/cancel", "headers": [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")]}
    with pytest.raises(Refusal, match="Content-Length"):
        VisitorLimits(None, RateLimit()).check(both)
