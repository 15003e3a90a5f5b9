"""The demo as a process of its own that notes every attempt to reach another machine: for test_reliability_server.py.

    python reliability_server.py NOTES MODEL PORT     or     python reliability_server.py NOTES -m iris.training ARGUMENTS
"""

from __future__ import annotations

import ipaddress
import runpy
import sys
from typing import Any


def watch(notes: str) -> None:
    """From now on, write a line to `notes` for each address or name that is not this machine's own, and refuse it."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else "localhost"  # a path is a socket on this machine
        elif event == "socket.getaddrinfo":
            host = arguments[0]
        else:
            return
        host = host.decode() if isinstance(host, bytes) else host
        if host in (None, "", "localhost", "0.0.0.0") or _is_loopback(host):
            return
        with open(notes, "a") as file:
            file.write(f"{event} {host}\n")
        raise OSError("no network here")

    sys.addaudithook(hook)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    watch(sys.argv[1])
    if sys.argv[2] == "-m":
        sys.argv = sys.argv[3:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        from demo import app
        from demo.limits import visitor_limits

        options = app.launch_options
        # All visitors of a test have one address: the limits stay, but for the rate.
        app.launch_options = lambda *place, **more: {**options(*place, **more), "app_kwargs": {"middleware": visitor_limits(requests=10**9, most_waiting=10**9)}}
        app.main(["--model", sys.argv[2], "--port", sys.argv[3]])
