"""Renders conversations as the prompts that models of a family get, and reads such prompts back; answers nothing.

`gemma4` closes the assistant's last message, opens a new turn and trims the texts; `chatml` closes it as most templates do;
`qwen3vl` leaves it open, so that it is continued; `qwen35` does too, without the empty thoughts that it puts before an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Renderer = Literal["chatml", "gemma4", "qwen3vl", "qwen35"]
Messages = Sequence[Mapping[str, object]]

_THINK = "<|think|>\n"
_NO_THOUGHTS = "<think>\n\n</think>\n\n"
_GEMMA4_TURN = re.compile(r"<\|turn>(system|user|model|tool)\n(.*?)<turn\|>\n", re.DOTALL)
_CHATML_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)


class Conversation(NamedTuple):
    """What a prompt says: the messages, and the beginning of the answer to them."""

    messages: Messages
    begun: str


def rendered(renderer: Renderer, messages: Messages, *, thinks: bool) -> str:
    """Return the prompt of a conversation."""
    said = [(str(message.get("role", "")), str(message.get("content") or "")) for message in messages]
    return _gemma4(said, thinks) if renderer == "gemma4" else _chatml(renderer, said, thinks)


def read_back(prompt: str) -> Conversation | None:
    """Return the conversation that a prompt was rendered from, None if it was not."""
    if prompt.startswith("<bos><|turn>"):
        return _read(_GEMMA4_TURN, "<|turn>model\n", prompt, len("<bos>"))
    if prompt.startswith("<|im_start|>"):
        return _read(_CHATML_TURN, "<|im_start|>assistant\n", prompt, 0)
    return None


def _gemma4(said: Sequence[tuple[str, str]], thinks: bool) -> str:
    parts = ["<bos>"]
    has_system = bool(said) and said[0][0] == "system"
    if has_system or thinks:
        words = said[0][1].strip() if has_system else ""
        parts.append(f"<|turn>system\n{_THINK if thinks else ''}{words}<turn|>\n")
    turns = said[1:] if has_system else said
    before = ""
    for place, (role, content) in enumerate(turns):
        after = turns[place + 1][0] if place + 1 < len(turns) else ""
        is_same_turn = role == before == "assistant"
        opening = "" if is_same_turn else f"<|turn>{'model' if role == 'assistant' else role}\n"
        parts.append(opening + content.strip() + ("" if role == after == "assistant" else "<turn|>\n"))
        before = role
    return "".join([*parts, "<|turn>model\n"])


def _chatml(renderer: Renderer, said: Sequence[tuple[str, str]], thinks: bool) -> str:
    parts = []
    for place, (role, content) in enumerate(said):
        stays_open = renderer != "chatml" and role == "assistant" and place == len(said) - 1
        parts.append(f"<|im_start|>{role}\n{content}" + ("" if stays_open else "<|im_end|>\n"))
        if stays_open:
            return "".join(parts)
    thoughts = "" if renderer != "qwen35" else "<think>\n" if thinks else _NO_THOUGHTS
    return "".join([*parts, f"<|im_start|>assistant\n{thoughts}"])


def _read(turn: re.Pattern[str], opening: str, prompt: str, at: int) -> Conversation | None:
    messages = []
    while found := turn.match(prompt, at):
        role, content = found[1], found[2].removeprefix(_THINK)
        if content or role != "system":
            messages.append({"role": "assistant" if role == "model" else role, "content": content})
        at = found.end()
    if not messages or not prompt.startswith(opening, at):
        return None
    return Conversation(messages, prompt[at + len(opening) :].removeprefix(_NO_THOUGHTS).removeprefix("<think>\n"))
