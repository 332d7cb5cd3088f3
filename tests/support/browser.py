"""Drives Chromium as a user would, over the pipe of its DevTools protocol: opens pages, asks them, takes pictures."""

from __future__ import annotations

import base64
import json
import os
import queue
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.process import Process
from tests.support.tools import require

FLAGS = [
    "--headless",
    "--no-sandbox",  # the tests may run as root, where Chromium's sandbox does not
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    # It shall talk to nobody but the test and the relay.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--allow-loopback-in-peer-connection",
]
PATIENCE = 60.0  # seconds for what takes a loaded machine a few

Event = dict[str, Any]


class Browser:
    """One Chromium with one page. Commands wait for their answers; events are kept."""

    def __init__(self, directory: Path, *flags: str) -> None:
        """`directory` is for its profile; `flags` are added to `FLAGS`."""
        self.events: list[Event] = []
        self._answers: dict[int, queue.SimpleQueue[Event]] = {}
        self._count = 0
        self._session: str | None = None
        # It reads commands from descriptor 3 and writes to 4, each message with a NUL behind it.
        commands, self._commands = os.pipe()
        self._messages, messages = os.pipe()
        for end in (commands, messages):
            os.set_inheritable(end, True)
        words = [
            require("chromium"),
            *FLAGS,
            "--remote-debugging-pipe",
            f"--user-data-dir={directory / 'profile'}",
            *flags,
        ]
        home = {"HOME": str(directory), "XDG_RUNTIME_DIR": str(directory), "DBUS_SESSION_BUS_ADDRESS": os.devnull}
        # Descriptors are given out from the lowest up, so that neither redirection hides what the other one needs.
        script = f"exec {shlex.join(words)} 3<&{commands} 4>&{messages}"
        self._process = Process(["bash", "-c", script], directory, home, keep=(commands, messages))
        os.close(commands)
        os.close(messages)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> Any:
        """Send a command of the protocol; its result."""
        self._count += 1
        answer = self._answers[self._count] = queue.SimpleQueue()
        message: Event = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        try:
            got = answer.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"no answer to {method}; Chromium printed:\n{self._process.output}") from None
        assert "error" not in got, got
        return got["result"]

    def open(self, url: str, width: int = 1200, height: int = 1000, *, phone: bool = False, dark: bool = False) -> None:
        """Load a page in a window of that size, and on a phone with a screen of twice as many pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", features=scheme)
        loaded = len(self.of("Page.loadEventFired"))
        result = self.command("Page.navigate", url=url)
        assert not result.get("errorText"), result
        self.wait_for(lambda: len(self.of("Page.loadEventFired")) > loaded, f"{url} was loaded")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, waited for if it is a promise."""
        result = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of an expression once that is true; the page is asked ten times a second."""
        return self.wait_for(lambda: self.evaluate(expression), expression)

    def wait_for(self, ask: Callable[[], Any], what: str = "") -> Any:
        """What `ask` gives once that is true."""
        pause, deadline = threading.Event(), time.monotonic() + PATIENCE
        while not (value := ask()):
            assert time.monotonic() < deadline, f"it never came to be: {what}"
            pause.wait(0.1)
        return value

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Save what is seen, or the whole page, as a PNG."""
        data = self.command("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def of(self, method: str) -> list[Event]:
        """The parameters of all events of one kind so far."""
        return [event["params"] for event in list(self.events) if event.get("method") == method]

    def complaints(self) -> list[str]:
        """What the page's console says is wrong, violations of its policy and failed requests among it."""
        entries = [each["entry"] for each in self.of("Log.entryAdded")]
        texts = [entry["text"] for entry in entries if entry["level"] in ("error", "warning")]
        return texts + [json.dumps(each["exceptionDetails"]) for each in self.of("Runtime.exceptionThrown")]

    def close(self) -> None:
        """End it, and whatever it started."""
        self._process.kill()
        self._reader.join(PATIENCE)
        os.close(self._commands)
        os.close(self._messages)

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._messages, 65536):
            *whole, rest = (rest + piece).split(b"\0")
            for text in whole:
                message = json.loads(text)
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                else:
                    self.events.append(message)
