"""A headless Chromium, driven by its own debugging protocol over a WebSocket; aiohttp speaks it."""

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

REQUIRED = "M3P_CHROMIUM"
"""Environment variable that .ci/run sets to "required": there the test must not be skipped."""
PATIENCE = 60.0


def find_chromium() -> str | None:
    """Return the program, None where none is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """One page of the browser."""

    def __init__(self, port: int) -> None:
        self._loop, self._numbers = asyncio.new_event_loop(), itertools.count(1)
        self._session: aiohttp.ClientSession
        self._loop.run_until_complete(self._connect(port))

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json") as reply:
            (page,) = [one for one in await reply.json(content_type=None) if one["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    def close(self) -> None:
        """Close the connection."""
        self._loop.run_until_complete(self._session.close())
        self._loop.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), PATIENCE))

    async def _call(self, method: str, parameters: dict[str, Any]) -> Any:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = json.loads(await self._socket.receive_str())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, waited for if it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        end = time.monotonic() + PATIENCE
        while not (found := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression}: {self.evaluate('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def key(self, name: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode={"Enter": 13}.get(name, 0))


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Tab]:
    """Start the browser with a new profile, and end it with all its processes."""
    words = [
        program, "--headless=new", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-extensions",
        "--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    if os.geteuid() == 0:
        words.insert(1, "--no-sandbox")  # which Chromium refuses to start for root
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        tab = Tab(_port(process, profile / "DevToolsActivePort"))
        yield tab
        tab.close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(process: "subprocess.Popen[bytes]", file: Path) -> int:
    """Wait until the browser has written its port."""
    end = time.monotonic() + PATIENCE
    while not (file.is_file() and file.read_text().count("\n")):
        assert process.poll() is None, f"Chromium ended with code {process.returncode}"
        assert time.monotonic() < end, "Chromium does not listen"
        time.sleep(0.05)
    return int(file.read_text().split("\n")[0])
