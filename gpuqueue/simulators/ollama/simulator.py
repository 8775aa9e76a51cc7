"""Combines the simulated Ollama: its servers, card, control endpoints and outages; knows no endpoint of Ollama's."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType

from gpuqueue.simulators.card import OutOfMemory, SimulatedCard
from gpuqueue.simulators.ollama.api import Api
from gpuqueue.simulators.ollama.faults import Faults
from gpuqueue.simulators.ollama.go_json import encode
from gpuqueue.simulators.ollama.models import DEFAULT_MODELS, ModelSpec, by_tagged_name
from gpuqueue.simulators.ollama.scheduler import Scheduler
from gpuqueue.simulators.ollama.server import JSON_UTF8, Exchange, HttpServer

DEFAULT_MAX_LOADED = 3
DEFAULT_MAX_QUEUE = 512
_SERVED_LENGTH = 10_000


@dataclass(frozen=True, slots=True)
class Served:
    """One request of Ollama's API as it was served.

    body: the JSON that was received, None if it was not JSON. status: 0 if the client left before an answer.
    client_left: the client (or the server, in an outage) was gone before the exchange was over.
    request: its name in the card's record, "" if it needed no model. output_tokens: how many were generated, thinking included.
    """

    method: str
    path: str
    body: object
    status: int
    client_left: bool
    request: str = ""
    output_tokens: int = 0


class _WrongControl(Exception):
    """A control request is wrong; the message says how."""


class OllamaSimulator:
    """An Ollama server that computes on a `SimulatedCard`, over real HTTP.

    card: created with `speed` unless given; a given card has its own speed.
    models: the models it has, instead of gemma4:e4b and nomic-embed-text.
    port, control_port: 0 takes a free one, which stays the same through outages.
    max_loaded, max_queue, num_parallel: OLLAMA_MAX_LOADED_MODELS, OLLAMA_MAX_QUEUE and OLLAMA_NUM_PARALLEL.
    Every simulated duration is divided by the speed: loads, tokens, keep_alive, memory release. Reported durations and
    `expires_at` are in real time, as a client would measure them.
    """

    def __init__(
        self,
        card: SimulatedCard | None = None,
        models: Iterable[ModelSpec] | Mapping[str, ModelSpec] = DEFAULT_MODELS,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        control_port: int = 0,
        speed: float = 1.0,
        max_loaded: int = DEFAULT_MAX_LOADED,
        max_queue: int = DEFAULT_MAX_QUEUE,
        num_parallel: int = 1,
        seed: int = 0,
    ) -> None:
        if card is not None and speed not in (1.0, card.speed):
            raise ValueError(f"the card's speed is {card.speed}; give speed={speed} to the card instead")
        counts = {"max_loaded": max_loaded, "max_queue": max_queue, "num_parallel": num_parallel}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, not {count}")
        self.card = card if card is not None else SimulatedCard(speed=speed, seed=seed)
        self.faults = Faults()
        self._served: deque[Served] = deque(maxlen=_SERVED_LENGTH)
        self._models = by_tagged_name(models.values() if isinstance(models, Mapping) else models)
        self._scheduler = Scheduler(self.card, self.faults, **counts, seed=seed)
        self._api = Api(self.card, self._models, self._scheduler, self.faults)
        self._host = host
        self._port = port
        self._control_port = control_port
        self._server: HttpServer | None = None
        self._control_server: HttpServer | None = None
        self._outage_lock = threading.Lock()
        self._return_timer: threading.Timer | None = None

    @property
    def url(self) -> str:
        """Where Ollama answers, e.g. http://127.0.0.1:40123; the control endpoints answer there too."""
        return self._url_of(self._server)

    @property
    def control_url(self) -> str:
        """Where the control endpoints (`/simulator/…`) answer, also during an outage."""
        return self._url_of(self._control_server)

    @property
    def served(self) -> tuple[Served, ...]:
        """The finished requests of Ollama's API, the oldest first; at most the last 10,000."""
        return tuple(self._served)

    @property
    def pending_count(self) -> int:
        """How many requests wait in Ollama's own queue for a load, dead ones included."""
        return self._scheduler.pending_count()

    def start(self) -> OllamaSimulator:
        """Listen and serve, in threads of this process. A simulator can be started only once.

        Raises: OSError if a port is not available.
        """
        if self._server is not None:
            raise RuntimeError("this simulator was already started; create a new one")
        server = HttpServer(self._handle, host=self._host, port=self._port, name="ollama")
        control_server = HttpServer(self._handle_control, host=self._host, port=self._control_port, name="ollama-control")
        try:
            server.start()
            control_server.start()
        except OSError:
            server.stop()
            control_server.stop()
            raise
        self._server, self._control_server = server, control_server
        self._scheduler.start()
        return self

    def stop(self) -> None:
        """Break every connection, release the memory and end the threads. Safe to call twice."""
        self._cancel_return()
        if self._server is None or self._control_server is None:
            return
        self._server.go_away()
        self._scheduler.die()
        self._scheduler.stop()
        self._server.stop()
        self._control_server.stop()

    def go_away(self, for_s: float | None = None) -> None:
        """Make Ollama unavailable: connections break and are refused, every runner dies, the memory is released later.

        for_s: **real** seconds until it is back on the same port, whatever the speed; with None, until `come_back`.
        """
        self._cancel_return()
        if self._server is not None:
            self._server.go_away()
            self._scheduler.die()
        if for_s is not None:
            with self._outage_lock:
                self._return_timer = threading.Timer(for_s, self.come_back)
                self._return_timer.daemon = True
                self._return_timer.start()

    def come_back(self) -> None:
        """Make Ollama available again on the same port, with nothing loaded; does nothing if it is available."""
        self._cancel_return()
        if self._server is not None:
            self._server.come_back()

    def __enter__(self) -> OllamaSimulator:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def _url_of(self, server: HttpServer | None) -> str:
        if server is None:
            raise RuntimeError("the simulator has no address before start()")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{server.port}"

    def _cancel_return(self) -> None:
        with self._outage_lock:
            timer, self._return_timer = self._return_timer, None
        if timer is not None:
            timer.cancel()

    def _handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/simulator/"):
            self._handle_control(exchange)
            return
        try:
            self._api.handle(exchange)
        finally:
            self._served.append(
                Served(
                    exchange.method,
                    exchange.path,
                    _json_or_none(exchange.body),
                    exchange.status,
                    exchange.gone.is_set(),
                    exchange.request,
                    exchange.output_token_count,
                )
            )

    def _handle_control(self, exchange: Exchange) -> None:
        try:
            answer = self._control(exchange)
        except (_WrongControl, ValueError, OutOfMemory) as wrong:
            exchange.send(400, JSON_UTF8, encode({"error": str(wrong)}))
            return
        if answer is None:
            exchange.send(404, JSON_UTF8, encode({"error": f"unknown endpoint {exchange.method} {exchange.path}"}))
            return
        exchange.send(200, JSON_UTF8, encode(answer))
        if exchange.path == "/simulator/outage" and exchange.method == "POST":
            # After the answer: the connection it goes through may break.
            for_s = _number(_control_body(exchange), "for_s")
            self.go_away(for_s)

    def _control(self, exchange: Exchange) -> Mapping[str, object] | None:
        match exchange.method, exchange.path:
            case "GET", "/simulator/card":
                return self._card_answer()
            case "POST", "/simulator/card":
                self._change_card(_control_body(exchange))
                return self._card_answer()
            case "POST", "/simulator/faults":
                self._add_fault(_control_body(exchange))
            case "DELETE", "/simulator/faults":
                self.faults.clear()
            case "GET", "/simulator/faults":
                pass
            case "POST", "/simulator/outage":
                for_s = _number(_control_body(exchange), "for_s")
                if for_s is not None and for_s < 0:
                    raise _WrongControl(f"for_s must be 0 or more real seconds, or null, not {for_s}")
                return {"away": True, "for_s": for_s}
            case "DELETE", "/simulator/outage":
                self.come_back()
                return {"away": False}
            case _:
                return None
        return {"faults": self.faults.waiting()}

    def _card_answer(self) -> dict[str, object]:
        reading = asdict(self.card.reading())
        return {
            **reading,
            "returning_bytes": self.card.returning_bytes,
            "report": self.card.report(),
            "control_url": self.control_url,
        }

    def _change_card(self, body: Mapping[str, object]) -> None:
        unknown = set(body) - {"take_bytes", "give_bytes", "lost", "temperature_c"}
        if unknown:
            known = "take_bytes, give_bytes, lost, temperature_c"
            raise _WrongControl(f"unknown field {', '.join(sorted(unknown))}. Fields: {known}")
        if "lost" in body:
            self.card.lost = body["lost"] is True
        if "temperature_c" in body:
            temperature = _number(body, "temperature_c")
            self.card.temperature_c = None if temperature is None else int(temperature)
        take, give = _number(body, "take_bytes"), _number(body, "give_bytes")
        if take is not None:
            self.card.take(int(take))
        if give is not None:
            self.card.give(int(give))

    def _add_fault(self, body: Mapping[str, object]) -> None:
        unknown = set(body) - {"kind", "model", "count", "after_tokens"}
        if unknown:
            raise _WrongControl(f"unknown field {', '.join(sorted(unknown))}. Fields: kind, model, count, after_tokens")
        model, count, after_tokens = body.get("model"), _number(body, "count"), _number(body, "after_tokens")
        self.faults.add(
            str(body.get("kind", "")),
            model=None if model is None else str(model),
            count=1 if "count" not in body else None if count is None else int(count),
            after_tokens=None if after_tokens is None else int(after_tokens),
        )


def _json_or_none(body: bytes) -> object:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None


def _control_body(exchange: Exchange) -> Mapping[str, object]:
    body = _json_or_none(exchange.body) if exchange.body else {}
    if not isinstance(body, dict):
        raise _WrongControl("the body must be a JSON object")
    return body


def _number(body: Mapping[str, object], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _WrongControl(f"{name} must be a number, not {json.dumps(value)}")
    return value
