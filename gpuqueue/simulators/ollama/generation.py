"""Generates one answer: prompt, tokens, faults on the way, and the lines sent; routes and loads nothing."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpuqueue.simulators.card import GpuIsLost, SimulatedCard
from gpuqueue.simulators.ollama.faults import WHILE_GENERATING, Fault, Faults
from gpuqueue.simulators.ollama.go_json import encode, timestamp
from gpuqueue.simulators.ollama.scheduler import Call, Resident, Scheduler
from gpuqueue.simulators.ollama.server import JSON_UTF8, ClientGone, Exchange

NDJSON = "application/x-ndjson"
PREFILL_SPEEDUP = 20.0
RUNNER_CRASHED = "an error was encountered while running the model: CUDA error: an illegal memory access was encountered"


class RunnerFailed(Exception):
    """The runner refused or died while it had the request; the message is Ollama's."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class _Truncated(Exception):
    """The stream is to end without a done line."""


@dataclass(slots=True)
class Answer:
    """The answer to a generate or chat request.

    model: as the request named it. context: the earlier conversation's tokens, or None for no `context` in the answer.
    top_logprob_count: None without logprobs.
    """

    model: str
    chat: bool
    stream: bool
    prompt_token_count: int
    tokens: list[str]
    done_reason: str
    thinking: list[str] = field(default_factory=list)
    context: list[int] | None = None
    top_logprob_count: int | None = None

    def line(self, text: str, thinking: str, *, done: bool) -> dict[str, object]:
        """Return the fields that every line starts with."""
        thought = {"thinking": thinking} if thinking else {}
        said: dict[str, object] = {"response": text, **thought}
        if self.chat:
            said = {"message": {"role": "assistant", "content": text, **thought}}
        return {"model": self.model, "created_at": timestamp(time.time_ns()), **said, "done": done}

    def without_tokens(self, done_reason: str) -> dict[str, object]:
        """Return the whole answer to a request that only loads or unloads."""
        return {**self.line("", "", done=True), "done_reason": done_reason}

    def rendered(self, prompt: str) -> dict[str, object]:
        """Return the whole answer to a request that only renders its prompt."""
        shown: dict[str, object] = {"response": ""}
        if self.chat:
            shown = {"message": {"role": "", "content": ""}}
        line = {"model": self.model, "created_at": timestamp(time.time_ns()), **shown, "done": False}
        return {**line, "_debug_info": {"rendered_template": prompt}}

    def logprobs(self, tokens: list[str]) -> dict[str, object]:
        """Return the `logprobs` field for `tokens`, or nothing if the request did not ask for it."""
        if self.top_logprob_count is None or not tokens:
            return {}
        listed: list[dict[str, object]] = []
        for token in tokens:
            entry: dict[str, object] = {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
            others = [{"token": chr(122 - n), "logprob": -2 - n, "bytes": [122 - n]} for n in range(self.top_logprob_count - 1)]
            top = [dict(entry), *others] if self.top_logprob_count else []
            listed.append({**entry, **({"top_logprobs": top} if top else {})})
        return {"logprobs": listed}

    def context_tokens(self) -> list[int]:
        """Return the token numbers of this conversation, made up from the words."""
        return [*(self.context or []), *(zlib.crc32(token.encode()) % 250_000 for token in self.tokens)]


class Speaker:
    """Speaks answers through a resident's only slot, at the resident's speed."""

    def __init__(self, card: SimulatedCard, scheduler: Scheduler, faults: Faults) -> None:
        self._card = card
        self._scheduler = scheduler
        self._faults = faults

    def speak(self, exchange: Exchange, call: Call, resident: Resident, answer: Answer, started_ns: int) -> None:
        """Send the whole answer; a failure before the first chunk has its own status.

        started_ns: when the request arrived, on the monotonic clock.
        Raises: ClientGone.
        """
        load_ns = time.monotonic_ns() - started_ns
        fault = self._faults.take(WHILE_GENERATING, resident.spec.name)
        spoken = _Spoken(exchange, answer)
        try:
            with self._computing(call, resident, "generate"):
                prompt_ns, eval_ns = self._speak_tokens(exchange, call, resident, answer, fault, spoken)
        except RunnerFailed as failure:
            send_failure(exchange, failure, stream=answer.stream)
            return
        except _Truncated:
            spoken.end()
            return
        # Only now, when the card is idle again: the client may ask for another model as soon as it has the last line.
        spoken.finish(
            {
                "total_duration": time.monotonic_ns() - started_ns,
                "load_duration": load_ns,
                "prompt_eval_count": answer.prompt_token_count,
                "prompt_eval_duration": prompt_ns,
                "eval_count": len(answer.thinking) + len(answer.tokens),
                "eval_duration": eval_ns,
            }
        )

    def embed(self, exchange: Exchange, call: Call, resident: Resident, token_total: int, fault: Fault | None) -> None:
        """Embed `token_total` tokens.

        Raises: RunnerFailed, ClientGone.
        """
        with self._computing(call, resident, "embed"):
            self._meet_early(exchange, resident, fault)
            if fault is not None and fault.kind == "drop_connection":
                exchange.drop()
            exchange.pause(self._prefill_s(resident, token_total))

    def _computing(self, call: Call, resident: Resident, kind: str) -> _Computing:
        return _Computing(self._card, self._scheduler, call, resident, kind)

    def _prefill_s(self, resident: Resident, token_total: int) -> float:
        return self._card.real_seconds(token_total * resident.slowdown / (PREFILL_SPEEDUP * resident.spec.tokens_per_s))

    def _meet_early(self, exchange: Exchange, resident: Resident, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if kind == "hang":
            exchange.wait_until_gone()
        if kind == "context_exceeded":
            raise context_exceeded(resident.options.num_ctx + 1, resident.options.num_ctx)
        if kind == "crash_before_first_token" or resident.dead:
            self._crash(resident)

    def _crash(self, resident: Resident) -> None:
        self._scheduler.crash(resident)
        raise RunnerFailed(RUNNER_CRASHED)

    def _speak_tokens(
        self, exchange: Exchange, call: Call, resident: Resident, answer: Answer, fault: Fault | None, spoken: _Spoken
    ) -> tuple[int, int]:
        self._meet_early(exchange, resident, fault)
        began_ns = time.monotonic_ns()
        with self._card.part(resident.owner, request=call.request, kind="prompt"):
            exchange.pause(self._prefill_s(resident, answer.prompt_token_count))
        first_ns = time.monotonic_ns()
        steps = [(token, True) for token in answer.thinking] + [(token, False) for token in answer.tokens]
        stops_after = min(fault.after_tokens, len(steps)) if fault else -1
        due_s = time.monotonic()
        with self._card.part(resident.owner, request=call.request, kind="decode"):
            for place, (token, thinking) in enumerate(steps):
                if place == stops_after:
                    self._stop_midway(exchange, resident, fault)
                due_s += self._card.real_seconds(resident.slowdown / resident.spec.tokens_per_s)
                exchange.pause(due_s - time.monotonic())
                if self._card.lost or resident.dead:
                    self._crash(resident)
                exchange.output_token_count += 1
                spoken.say(token, thinking=thinking)
            if stops_after == len(steps):
                self._stop_midway(exchange, resident, fault)
        return first_ns - began_ns, time.monotonic_ns() - first_ns

    def _stop_midway(self, exchange: Exchange, resident: Resident, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if kind == "stall":
            exchange.wait_until_gone()
        if kind == "drop_connection":
            exchange.drop()
        if kind == "silent_truncation":
            raise _Truncated
        self._crash(resident)


class _Computing:
    """The block in which a request has its turn and the card computes for it; a lost card counts as a crashed runner."""

    def __init__(self, card: SimulatedCard, scheduler: Scheduler, call: Call, resident: Resident, kind: str) -> None:
        self._scheduler = scheduler
        self._resident = resident
        self._turn = scheduler.turn(resident, call)
        self._use = card.computing(resident.owner, request=call.request, kind=kind, together=resident.slots > 1)

    def __enter__(self) -> None:
        self._turn.__enter__()
        try:
            self._use.__enter__()
        except GpuIsLost:
            self._turn.__exit__(None, None, None)
            self._scheduler.crash(self._resident)
            raise RunnerFailed(RUNNER_CRASHED) from None

    def __exit__(self, *raised: object) -> None:
        self._use.__exit__(None, None, None)
        self._turn.__exit__(None, None, None)


class _Spoken:
    """What was said so far, sent at once as a stream or kept for one answer."""

    def __init__(self, exchange: Exchange, answer: Answer) -> None:
        self._exchange = exchange
        self._answer = answer
        self._said: list[str] = []
        self._thought: list[str] = []

    def say(self, token: str, *, thinking: bool) -> None:
        (self._thought if thinking else self._said).append(token)
        if self._answer.stream:
            line = self._answer.line("" if thinking else token, token if thinking else "", done=False)
            self._send_line({**line, **self._answer.logprobs([token])})

    def finish(self, numbers: Mapping[str, int]) -> None:
        answer = self._answer
        ending: dict[str, object] = {"done_reason": answer.done_reason}
        if answer.context is not None:
            ending["context"] = answer.context_tokens()
        # Ollama leaves a metric of zero out.
        ending.update({name: number for name, number in numbers.items() if number})
        if answer.stream:
            self._send_line({**answer.line("", "", done=True), **ending})
            self._exchange.end_stream(NDJSON)
        else:
            self._send_whole(done=True, ending=ending)

    def end(self) -> None:
        if self._answer.stream:
            self._exchange.end_stream(NDJSON)
        else:
            self._send_whole(done=False, ending={})

    def _send_whole(self, *, done: bool, ending: Mapping[str, object]) -> None:
        line = self._answer.line("".join(self._said), "".join(self._thought), done=done)
        self._exchange.send(200, JSON_UTF8, encode({**line, **ending, **self._answer.logprobs(self._thought + self._said)}))

    def _send_line(self, line: Mapping[str, object]) -> None:
        self._exchange.send_chunk(NDJSON, encode(line) + b"\n")


def context_exceeded(prompt_token_count: int, num_ctx: int) -> RunnerFailed:
    """Return the refusal of a prompt that is too long: the runner's JSON as a string inside Ollama's."""
    sizes = f"request ({prompt_token_count} tokens) exceeds the available context size ({num_ctx} tokens)"
    nested = {
        "error": {
            "code": 400,
            "message": f"{sizes}, try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": prompt_token_count,
            "n_ctx": num_ctx,
        }
    }
    return RunnerFailed(encode(nested).decode(), status=400)


def send_failure(exchange: Exchange, failure: RunnerFailed, *, stream: bool) -> None:
    """Send a runner's failure: as the last line of a stream that has started, else with its own status.

    Raises: ClientGone.
    """
    body = encode({"error": str(failure)})
    if exchange.answered:
        exchange.send_chunk(NDJSON, body + b"\n")
        exchange.end_stream(NDJSON)
    elif stream:
        # Ollama had prepared a stream already, so this error is chunked and lacks the charset.
        exchange.send(failure.status, "application/json", body, chunked=True)
    else:
        exchange.send(failure.status, JSON_UTF8, body)


__all__ = ["Answer", "ClientGone", "RunnerFailed", "Speaker", "context_exceeded", "send_failure"]
