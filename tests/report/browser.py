"""Debian's chromium, headless, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.programs import program

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --disable-dev-shm-usage "
    "--hide-scrollbars --remote-debugging-port=0"
)


class Browser:
    """One tab. Collects console errors and requests from the moment that a page is opened."""

    def __init__(self) -> None:
        import websocket

        chromium = program("chromium", "chromium")
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [chromium, *FLAGS.split(), f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = Path(self._folder.name, "DevToolsActivePort")
        deadline = time.monotonic() + 60
        while not port.exists() or len(port.read_text().splitlines()) < 2:
            assert self._process.poll() is None, "chromium ended at once"
            assert time.monotonic() < deadline, "chromium did not start within 60 s"
            time.sleep(0.05)
        number, path = port.read_text().splitlines()[:2]
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{number}{path}", suppress_origin=True, timeout=60
        )
        self._last, self._session = 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, note the events that come in, return the answer."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, details: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(details["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.errors.append(str(details["args"]))
        elif event == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(details["entry"]))

    def open(self, path: Path, *, width: int = 1400, dark: bool = False) -> None:
        """Load a file at a width, in a colour scheme, and wait until it is drawn."""
        self.requests, self.errors = [], []
        self.resize(width, dark)
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + 60
        while self.value("location.href + document.readyState") != path.as_uri() + "complete":
            assert time.monotonic() < deadline, f"{path} did not load within 60 s"
            time.sleep(0.02)

    def resize(self, width: int, dark: bool = False, height: int = 900) -> None:
        """Change the window and the system's colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, script: str) -> Any:
        """What an expression is in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key, as from a keyboard."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text
            )

    def until(self, script: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + 60
        while not self.value(script):
            assert time.monotonic() < deadline, f"not within 60 s: {script}"
            time.sleep(0.05)

    def draw(self) -> int:
        """Wait until every chart that is not folded away is drawn; return how many are.

        A chart is drawn when it comes near the window, so the window is made as high as the page.
        """
        width, height = self.value("[innerWidth, document.documentElement.scrollHeight]")
        dark = self.value("matchMedia('(prefers-color-scheme: dark)').matches")
        self.resize(width, dark, height=min(height + 1000, 60000))
        waiting = (
            "[...document.querySelectorAll('.chart')].some(c => c.checkVisibility() && !c.dataset.drawn)"
        )
        self.until(f"!{waiting}")
        self.resize(width, dark)
        assert self.value("document.querySelectorAll('.chart[data-drawn=failed]').length") == 0
        return self.value("document.querySelectorAll('.chart[data-drawn] svg').length")

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self.value("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 12000), "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the program."""
        try:
            self._session = ""
            self.call("Browser.close")
        finally:
            self._socket.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._folder.cleanup()
