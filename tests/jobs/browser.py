"""A headless Chromium, driven over its debugging pipe."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe"


class Browser:
    """One page. Raises AssertionError for errors of the page's script."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands, self._replies = commands, replies
        self._number, self._session, self._rest = 0, "", b""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def open(self, page: Path) -> None:
        self._call("Page.navigate", url=page.resolve().as_uri())
        self.run(
            "new Promise(done => document.readyState === 'complete' ? done()"
            " : addEventListener('load', done))"
        )

    def run(self, script: str) -> Any:
        """Returns the value of an expression; promises are awaited."""
        reply = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def press(self, key: str) -> None:
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Escape": 27}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                       windowsVirtualKeyCode=code)  # fmt: skip

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                result: dict[str, Any] = reply["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._replies, 65536)
            assert data, "the browser has ended"
            self._rest += data
        first, _, self._rest = self._rest.partition(b"\0")
        reply: dict[str, Any] = json.loads(first)
        return reply


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """profile: a folder for its files."""
    assert CHROMIUM is not None
    command_end, commands = os.pipe()
    replies, reply_end = os.pipe()
    line = f'exec "$0" {_FLAGS} "--user-data-dir=$1" 3<&{command_end} 4>&{reply_end}'
    process = subprocess.Popen(
        ["bash", "-c", line, CHROMIUM, str(profile)],
        pass_fds=(command_end, reply_end),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_end)
    os.close(reply_end)
    try:
        yield Browser(commands, replies)
    finally:
        os.close(commands)
        os.close(replies)
        process.terminate()
        process.wait(30)
