"""Reads the fenced blocks of the README and of docs/, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
_STEP = re.compile(r"^```(\w+)\n(.*?)^```|^    (mediamill [^\n]*)$", flags=re.DOTALL | re.MULTILINE)
_CHOICE = re.compile(r"^(mediamill )(\w+(?:\|\w+)+) (.*)$")


@dataclass(frozen=True)
class Command:
    """A command of a page, as words. Redirections and comments are left out."""

    page: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """The command of mediamill; empty for other programs."""
        return self.words[1] if self.words[0] == "mediamill" and len(self.words) > 1 else ""

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced blocks of a language, in order."""
    found = _FENCED.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


def steps(page: Path) -> list[Command | str]:
    """Returns what a reader runs, in order: commands, and the text of Python blocks.

    Commands are those of bash blocks, and indented lines that begin with mediamill.
    """
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    listed: list[Command | str] = []
    for match in _STEP.finditer(text):
        language, block, indented = match.groups()
        if language == "python":
            listed.append(block)
        elif language in ("bash", None):
            lines = _logical_lines(block) if block else [indented]
            listed += [Command(name, words) for line in lines for words in _alternatives(line)]
    return listed


def commands(page: Path) -> list[Command]:
    """Returns the commands of a page."""
    return [step for step in steps(page) if isinstance(step, Command)]


def _alternatives(line: str) -> list[tuple[str, ...]]:
    """Returns the words of a line; `mediamill a|b NAME` is two commands, a comment none."""
    choice = _CHOICE.match(line)
    lines = [f"{choice[1]}{w} {choice[3]}" for w in choice[2].split("|")] if choice else [line]
    return [words for text in lines if (words := _words(text))]


def _logical_lines(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def _words(line: str) -> tuple[str, ...]:
    if line.startswith("export "):  # its value may be a whole pipeline
        return ("export",)
    words = shlex.split(line, comments=True)
    for sign in (">", ">>", "&", "2>&1"):
        if sign in words:
            words = words[: words.index(sign)]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words and words[0].startswith(".venv/bin/"):
        words[0] = words[0].removeprefix(".venv/bin/")
    return tuple(words)
