"""Open pages in headless Chromium through its DevTools protocol, over two pipes; needs nothing but the browser."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT = 60  # seconds for a page to load


class Browser:
    """A running browser with one page.

    Attributes:
        requests: addresses that were requested for the page, apart from its own and those that hold their data; not
            what its policy has refused.
        problems: errors and warnings in its console, among them what the policy has refused.
    """

    def __init__(self, folder: Path) -> None:
        """Start it with a profile in ``folder``; skip the test where there is none."""
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed")
        command_end, self._commands = os.pipe()
        self._answers, answer_end = os.pipe()
        # The protocol reads from descriptor 3 and writes to 4.
        ends = f'exec "$@" 3<&{command_end} 4>&{answer_end}'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["bash", "-c", ends, "bash", program, *flags, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(command_end, answer_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_end)
        os.close(answer_end)
        self._buffer, self._number, self._session = b"", 0, ""
        self._loaded = False
        self._requests: dict[str, str] = {}
        self.problems: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(self, page: Path, width: int = 1280, dark: bool = False) -> None:
        """Load a file in a window of a given width in pixels and color scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._requests, self.problems, self._loaded = {}, [], False
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self._loaded:
            self._receive()
        # Scripts that the page itself has started are finished when they have drawn.
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")

    @property
    def requests(self) -> list[str]:
        return list(self._requests.values())

    def run(self, script: str):
        """Return the value of a JavaScript expression in the page, awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + TIMEOUT
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)

    def screenshot(self, path: Path, full: bool = True) -> None:
        """Save a PNG of the page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=full, **self._clip(full))["data"]
        path.write_bytes(base64.b64decode(data))

    def _clip(self, full: bool) -> dict:
        if not full:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def call(self, method: str, **parameters):
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self._buffer:
            data = os.read(self._answers, 1 << 20)
            assert data, f"the browser has ended with status {self._process.wait()}"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        method, values = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent" and values["type"] != "Document":
            address = values["request"]["url"]
            if not address.startswith(("data:", "blob:")):
                self._requests[values["requestId"]] = address
        elif method == "Network.loadingFailed" and values.get("blockedReason") == "csp":
            self._requests.pop(values["requestId"], None)
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("warning", "error"):
            self.problems.append(values["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("warning", "error"):
            self.problems.append(" ".join(str(argument.get("value")) for argument in values["args"]))
        return message

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        try:
            self.call("Browser.close")
        finally:
            for end in (self._commands, self._answers):
                os.close(end)
            self._process.wait()
