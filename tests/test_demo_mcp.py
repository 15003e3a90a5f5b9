"""The endpoints as tools for a language model, by the protocol's own client: the same pictures, and a sentence for bad input."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from demo_server import free_port, nano_pipeline
from PIL import Image
from test_demo_endpoints import is_sentence

from demo.app import check_mcp, create_demo, launch_options
from iris.pipeline import IRISPipeline


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, IRISPipeline]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        pipeline = nano_pipeline()
        page = create_demo(pipeline)
        page.launch(**launch_options("127.0.0.1", free_port(), mcp=True), prevent_thread_lock=True)
        yield f"{page.local_url}gradio_api/mcp/", pipeline
        page.close()


def ask(url: str, *calls: tuple[str, dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """One session: the tools by name, and the answer to each call of (name, arguments)."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk() -> tuple[dict[str, Any], list[Any]]:
        async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, [await session.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(talk())


def test_a_tool_draws_what_the_pipeline_draws(served: tuple[str, IRISPipeline]) -> None:
    url, pipeline = served
    tools, answers = ask(url, ("generate", {"prompt": "red apple", "seed": 3, "num_steps": 2, "num_iterations": 2, "guidance_scale": 1.0}))
    assert set(tools) == {"generate", "inspect", "compare_depths", "edit", "inpaint", "interpolate", "encode"}
    assert "up to 1000 characters" in tools["generate"].inputSchema["properties"]["prompt"]["description"]
    file, told = ast.literal_eval(answers[0].content[0].text)
    plain = pipeline("red apple", seed=3, num_steps=2, num_iterations=2, guidance_scale=1.0)
    with Image.open(httpx.get(file["url"]).raise_for_status() and file["path"]) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(plain.images[0]))
    assert told["seed"] == 3 and told["finished"] and told["iterations"] == plain.iterations[0]


@pytest.mark.parametrize("values", [{"prompt": ""}, {"prompt": "a", "seed": -1}, {"prompt": "a", "num_steps": 99}, {"prompt": "a", "num_iterations": "many"}])
def test_bad_input_is_an_error_of_one_sentence(served: tuple[str, IRISPipeline], values: dict[str, Any]) -> None:
    answer = ask(served[0], ("generate", values))[1][0]
    assert answer.isError and is_sentence(answer.content[0].text), answer.content[0].text


def test_no_tools_unless_asked_for_and_never_in_public(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch_options("127.0.0.1", None)["mcp_server"] is False  # None would let the environment decide
    with pytest.raises(SystemExit, match="your own"):
        check_mcp(wanted=True, public=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install"):
        check_mcp(wanted=True, public=False)
    check_mcp(wanted=False, public=True)
