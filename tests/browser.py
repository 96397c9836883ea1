"""Pages in a real browser, driven over the DevTools protocol: what a script in the page answers, what the page said, and what it asked
for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REQUIRED = "IIDRIVE_BROWSER"
"""Set to `required` where a browser must be there: without one the tests then fail, elsewhere they skip."""

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--window-size=1200,700",
    "--remote-debugging-pipe",
)  # fmt: skip


@dataclass
class Tab:
    """An open page. `said` is what went wrong in it or was warned of, `requests` every address that it asked for."""

    process: subprocess.Popen[bytes]
    to: int
    back: int
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    session: str = ""
    count: int = 0
    rest: bytes = b""

    def call(self, method: str, **options: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": options, **({"sessionId": self.session} if self.session else {})}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 120
        while True:
            found = self._next(until)
            if found.get("id") == self.count:
                assert "error" not in found, found
                return found["result"]
            self._noted(found)

    def run(self, script: str) -> Any:
        """What an asynchronous function body returns in the page."""
        found = self.call("Runtime.evaluate", expression=f"(async () => {{{script}}})()", awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def _noted(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.said.append(json.dumps(told["exceptionDetails"])[:500])
        elif event.get("method") == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.said.append(told["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.said.append(" ".join(str(one.get("value", one.get("description"))) for one in told["args"]))

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert time.monotonic() < until, "the browser does not answer"
            assert self.process.poll() is None, "the browser has ended"
            if select.select([self.back], [], [], 1)[0]:
                self.rest += os.read(self.back, 1 << 20)
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)


@contextlib.contextmanager
def opened(page: Path | str, tmp_path: Path) -> Iterator[Tab]:
    """A page, by its file or its address, in a headless browser of its own. Skips without a browser, or fails where one is required."""
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        message = f"no browser: none of {', '.join(_NAMES)} is installed"
        pytest.fail(message) if os.environ.get(REQUIRED) == "required" else pytest.skip(message)
    (there, to), (back, here) = os.pipe(), os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (there, here)]

    def ends() -> None:  # the protocol reads from 3 and writes to 4
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    command = [path, *_FLAGS, f"--user-data-dir={tmp_path / 'browser'}", "about:blank"]
    with open(tmp_path / "browser.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=ends, close_fds=False)
    for end in (there, here, *high):
        os.close(end)
    tab = Tab(process, to, back)
    try:
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Network", "Log", "Page"):
            tab.call(f"{domain}.enable")
        tab.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        tab.run("while (document.readyState !== 'complete') await new Promise(done => setTimeout(done, 20));")
        yield tab
    finally:
        process.kill()
        process.wait()
        os.close(to)
        os.close(back)
