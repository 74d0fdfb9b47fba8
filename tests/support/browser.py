"""A headless Chromium that a test drives by the DevTools protocol over a pipe.

with Browser(folder) as browser:
    browser.open("http://…")
    browser.press("Enter")
    browser.wait("document.title == 'Thank you!'")
"""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Keys' codes, where they are not the character's own.
CODES = {"Enter": 13, " ": 32, "ArrowUp": 38, "ArrowDown": 40, "ArrowRight": 39, "End": 35, "Escape": 27}
LIMIT = 60  # seconds after which a page that does not become what a test waits for is a failure
# Settles as soon as an expression is true, which is looked at again with every picture of the page.
UNTIL = """new Promise(done => {{
  const end = performance.now() + {limit} * 1000;
  const look = () => ({true}) ? done(true) : performance.now() > end ? done(false) : requestAnimationFrame(look);
  look();
}})"""


class Browser:
    """A browser with one page.

    Args:
        folder: an empty folder for its profile.

    Attributes:
        complaints: what the page's scripts and its security policy complained about.
    """

    def __init__(self, folder: Path) -> None:
        self.complaints: list[str] = []
        self._number, self._session = 0, ""
        self._folder = folder

    def __enter__(self) -> "Browser":
        commands, answers = os.pipe(), os.pipe()

        def pipes_as_3_and_4() -> None:
            ends = os.dup(commands[0]), os.dup(answers[1])
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            [str(PROGRAM), *options, f"--user-data-dir={self._folder}", "--no-first-run", "about:blank"],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=pipes_as_3_and_4,
        )
        os.close(commands[0])
        os.close(answers[1])
        self._commands, self._answers = os.fdopen(commands[1], "wb"), os.fdopen(answers[0], "rb")
        self._read = b""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()
        self._answers.close()

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of ``method``; raise RuntimeError with the browser's reason if it fails."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._receive()
            self._note(answer)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """Return the value of the JavaScript ``expression``, awaited, as if the user had clicked."""
        result = self(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Return as soon as ``expression`` is true of a page that is loaded, this one or a later one.

        Raises:
            AssertionError: it does not become true within LIMIT seconds.
        """
        looked = UNTIL.format(limit=LIMIT, true=f"document.readyState == 'complete' && ({expression})")
        while True:
            try:
                assert self.evaluate(looked), f"{expression}: is not true of {self.evaluate('document.body.innerText')}"
            except RuntimeError as error:
                if "navigated" not in str(error) and "context" not in str(error):
                    raise
            else:
                return

    def open(self, url: str) -> None:
        """Load ``url``."""
        self("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)})")

    def press(self, keys: str) -> None:
        """Press the key named ``keys``, such as "Enter", or each character of it."""
        for key in [keys] if keys in CODES else keys:
            code = CODES.get(key, ord(key[0]))
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            self("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, text=text)
            self("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            more = os.read(self._answers.fileno(), 1 << 16)
            if not more:
                raise RuntimeError(f"the browser has ended with status {self._process.wait()}")
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(message["params"]["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.complaints.append(str(message["params"]["entry"]))
