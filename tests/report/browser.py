"""Headless Chromium, driven over its DevTools protocol through a pair of pipes: no port, no further package."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), "Escape": ("", 27), "ArrowLeft": ("", 37), "ArrowRight": ("", 39)}


class Browser:
    """One window; it keeps a page's console errors and the list of what it loaded."""

    def __init__(self, profile: Path, seconds: float = 60) -> None:
        self._seconds = seconds
        self._answers: dict[int, Any] = {}
        self._count = 0
        self._rest = b""
        self.errors: list[str] = []
        self.loaded: list[str] = []
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # Chromium reads commands from descriptor 3 and writes replies to 4.
        command = ["sh", "-c", f'exec "$@" 3</dev/fd/{to_read} 4>/dev/fd/{to_write}', "sh", str(CHROMIUM), *OPTIONS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._write)
        self._process.kill()
        self._process.wait(10)
        os.close(self._read)

    def send(self, method: str, **parameters: Any) -> Any:
        answer = self._ask(method, **parameters)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _ask(self, method: str, **parameters: Any) -> Any:
        """Chromium's reply, which may be an error."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self._seconds
        while self._count not in self._answers:
            self._receive(deadline)
        return self._answers.pop(self._count)

    def _receive(self, deadline: float) -> None:
        ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
        assert ready, "Chromium does not answer"
        received = os.read(self._read, 1 << 20)
        assert received, "Chromium has ended"
        *messages, self._rest = (self._rest + received).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif message["method"] == "Network.requestWillBeSent":
                self.loaded.append(message["params"]["request"]["url"])
            elif message["method"] == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", details).get("description", details["text"]))
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])

    def open(self, page: Path, fragment: str = "", width: int = 1280, height: int = 900) -> None:
        """Load ``page`` from the file system."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Page.navigate", url="about:blank")
        self.loaded.clear()
        self.errors.clear()
        self.send("Page.navigate", url=page.absolute().as_uri() + fragment)
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until ``condition`` is true. A page that is being left replies with an error."""
        deadline = time.monotonic() + self._seconds
        while True:
            answer = self._ask("Runtime.evaluate", expression=condition, returnByValue=True)
            if "result" in answer and answer["result"]["result"].get("value"):
                return
            assert time.monotonic() < deadline, f"never true: {condition}: {answer}; errors: {self.errors}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        text, code = KEYS.get(key, (key, ord(key[0])))
        pressed = {"key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **pressed)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def drag(self, selector: str, start: float, stop: float) -> None:
        """Press at the fraction ``start`` of an element's width, release at ``stop``."""
        left, top, width, height = self.evaluate(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const {left, top, width, height} = found.getBoundingClientRect(); return [left, top, width, height]; })()"
        )
        x, y = left + start * width, top + height / 2
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.send("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        x = left + stop * width
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left")
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def click(self, selector: str, share: float = 0.5) -> None:
        """Click at the fraction ``share`` of an element's width."""
        self.drag(selector, share, share)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        image = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(image["data"]))
