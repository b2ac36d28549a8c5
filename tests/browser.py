"""A page in headless Chromium, driven through its debugging pipe: no driver, no package.

with Browser(width=390, height=800, dark=True) as page:
    page.open(Path("report.html"))
    page.press("ArrowLeft")
    page.value("document.title"), page.errors
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT_S = 60  # for one answer
_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, "Enter": 13}


class Browser:
    """One tab.

    Attributes:
        errors: What the page wrote to the console as an error, and exceptions nobody caught.
    """

    def __init__(self, width: int, height: int, dark: bool = False) -> None:
        self.errors: list[str] = []
        self._size, self._dark = (width, height), dark
        self._count, self._rest = 0, b""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._session: str | None = None

    def __enter__(self) -> "Browser":
        ours, theirs = os.pipe(), os.pipe()  # we read theirs[0], they read ours[0]
        self._write, self._read = ours[1], theirs[0]
        # Chromium reads descriptor 3 and writes 4
        program = (
            f"exec {PROGRAM} --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
            f"--hide-scrollbars --user-data-dir={self._profile.name} --remote-debugging-pipe about:blank "
            f"3<&{ours[0]} 4>&{theirs[1]}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", program],
            pass_fds=(ours[0], theirs[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")
        width, height = self._size
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        with contextlib.suppress(OSError):
            self._profile.cleanup()

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self._send("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + LIMIT_S
        while not self.value("document.readyState === 'complete' && location.protocol === 'file:'"):
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression says, as plain values."""
        answer = self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as from a keyboard."""
        for kind in ("rawKeyDown", "keyUp"):
            code = {"key": key, "code": key, "windowsVirtualKeyCode": _CODES[key]}
            self._send("Input.dispatchKeyEvent", type=kind, **code)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """The page, or what of it is in the window, as a PNG."""
        answer = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        name, found = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.errors.append(str(found["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.errors.append(str(found["args"]))
        elif name == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(found["entry"]["text"]))

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + LIMIT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium has ended"
            self._rest += part
        first, self._rest = self._rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(first)
        return answer
