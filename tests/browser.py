"""A headless Chromium that is spoken to through pipes (Chrome DevTools Protocol), without any library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """An open page: `run` evaluates JavaScript; `said` are console errors and exceptions."""

    def __init__(self, write: Any, read: Any) -> None:
        self._write, self._read, self._number, self.said = write, read, 0, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    _session: dict[str, str] = {}

    def ask(self, method: str, **values: Any) -> Any:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values, **self._session}
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (letter := self._read.read(1)) not in (b"\0", b""):
            text += letter
        found = json.loads(text)
        if found.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(found["params"])
        return found

    def open(self, path: Path) -> None:
        """Open a file and wait until it is there."""
        self.ask("Page.navigate", url=path.absolute().as_uri())
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            pass

    def run(self, script: str) -> Any:
        """Return the value of an expression, awaited."""
        done = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start a browser and open a page."""
    assert CHROMIUM is not None
    (asked, ask), (told, tell) = os.pipe(), os.pipe()
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", command, str(asked), str(tell), *words, "--remote-debugging-pipe"],
        pass_fds=(asked, tell), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(asked)
    os.close(tell)
    try:
        with open(ask, "wb") as write, open(told, "rb", buffering=0) as read:
            yield Page(write, read)
    finally:
        process.terminate()
        process.wait()
