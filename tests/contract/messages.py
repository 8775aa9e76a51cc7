"""Collects every message that the product can print into messages.txt, and says which of them a printed line can be.

`python -m tests.contract.messages` writes the file anew. A test, or a page, asks with `messages_like(line)`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.contract.message_forms import BEFORE, Hole, Message
from tests.contract.message_sources import collected

ROOT = Path(__file__).parents[2]
MESSAGES = ROOT / "tests" / "contract" / "messages.txt"
COMMAND = "uv run python -m tests.contract.messages"
COLUMNS = 130

KINDS = {
    "error": "Errors: raised, or kept with a job",
    "hold": "Why a job waits: holds, explanations and their advice",
    "finding": "What doctor, gpu, db check and Django's checks find, and what to do",
    "log": "The log",
    "question": "Questions",
    "output": "Output of the command line",
    "help": "Help: commands, options, metrics",
    "page": "Pages of Django's admin",
    "other": "Everything else, most of it parts of the above",
}


def messages_like(line: str, *kinds: str) -> list[Message]:
    """Return the messages, of all or these kinds, that this printed line can be; what is filled in may be anything."""
    said = {line, BEFORE.sub("", line, count=1)}
    return [message for message in messages() if (not kinds or message.kind in kinds) and any(map(message.regex.fullmatch, said))]


def sources() -> list[Path]:
    plugins = [path for path in (ROOT / "plugins").glob("*/gpuqueue_*/**/*.py")]
    return sorted([*(ROOT / "gpuqueue").rglob("*.py"), *plugins, *(ROOT / "plugins").glob("*/gpuqueue_*.py")])


@cache
def messages() -> tuple[Message, ...]:
    """Return all messages, by file and in the order of the source; each once for its kind."""
    trees = {str(path.relative_to(ROOT)): path.read_text() for path in sources()}
    found = [*collected(trees), *_of_templates()]
    found.sort(key=lambda message: list(KINDS).index(message.kind))  # stable: the order of the files stays
    once: dict[tuple[str, str], Message] = {}
    for message in found:
        once.setdefault((message.kind, message.text), message)
    return tuple(once.values())


TAG = re.compile(r"\{#.*?#\}|\{% *(?:url|include|extends|load|csrf_token)\b.*?%\}", re.DOTALL)
BREAK = re.compile(
    r"</?(?:p|div|h\d|li|ul|td|th|tr|table|thead|tbody|label|button|form|a|option|select|input|title)\b[^<>]*>"
    r"|\{% *(?:block|endblock)\b.*?%\}"
)


def _of_templates() -> Iterator[Message]:
    """Yield what the pages say, a paragraph, a cell or a button each; their conditions are left out, all branches are shown."""
    for path in sorted((ROOT / "gpuqueue").rglob("*.html")):
        text = TAG.sub("", path.read_text())
        text = re.sub(r"\{\{ *([\w.]+)[^}]*\}\}", r"{\1}", text)
        for piece in re.split(r"\n\n", BREAK.sub("\n\n", re.sub(r"=\"[^\"<>]*\"", "", text))):
            said = " ".join(
                re.sub(r"<[^>]*>|&\w+;", "", re.sub(r"\{% *(?:if|elif|else|endif|for|endfor|with)\b.*?%\}", "⟨⟩", piece)).split()
            )
            said = re.sub(r"^(?:⟨⟩\s*)+|(?:\s*⟨⟩)+$", "", said).replace("⟨⟩", "…")
            if re.search(r"[a-z]{2}", re.sub(r"\{[^}]*\}", "", said)) and " " in said:
                parts = tuple(
                    Hole(part[1:-1]) if part.startswith("{") else part for part in re.split(r"(\{[\w.]+\})", said) if part
                )
                yield Message("page", "", str(path.relative_to(ROOT)), parts)


HEAD = f"""\
Every message that gpuqueue and its plugins can print, to be read in one sitting. {{words in braces}} are filled in,
⟨one|another⟩ are alternatives (⟨one|⟩: or nothing), ⏎ is a new line, and → is what to do. This file is generated:
{COMMAND}
"""


def page() -> str:
    """Return messages.txt."""
    parts = [HEAD]
    by_kind = {kind: [message for message in messages() if message.kind == kind] for kind in KINDS}
    parts.append("".join(f"{len(found):5}  {KINDS[kind]}\n" for kind, found in by_kind.items()))
    for kind, found in by_kind.items():
        parts.append(f"\n{'=' * COLUMNS}\n{KINDS[kind]}\n{'=' * COLUMNS}\n")
        path = ""
        for message in found:
            if message.path != path:
                path = message.path
                parts.append(f"\n{path}\n")
            parts.append(_entry(message) + "\n")
    return "".join(parts)


def _entry(message: Message) -> str:
    named = f"{message.name}: " if message.name and not message.name.endswith("→") else "→ " if message.name else ""
    text = named + message.text.strip().replace("\n", " ⏎ ")
    return textwrap.fill(
        text, COLUMNS, initial_indent="  ", subsequent_indent="      ", break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    MESSAGES.write_text(page())
