"""Plays the demo act by act and gathers the evidence; draws nothing and judges nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from gpuqueue.cli.demo import tasks
from gpuqueue.cli.demo.evidence import Evidence, Outage
from gpuqueue.cli.demo.recorder import BATCH, DISTRIBUTION, REALTIME, REMINDERS, Recorder, Replay
from gpuqueue.cli.demo.stage import Stage
from gpuqueue.client.handle import JobHandle
from gpuqueue.decisions.evaluation import decide_holds
from gpuqueue.domain.errors import JobError
from gpuqueue.domain.job import State
from gpuqueue.simulators.ollama import NOMIC_EMBED_TEXT, expected_answer, expected_embedding

PAUSE_S = 2.0
AWAY_S = 1.5  # at least
LONGEST_AWAY_S = 8.0  # if nothing is postponed, which breaks a rule
EMBEDDED = "A note on fire doors, to be found again by its meaning."


@dataclass(frozen=True, slots=True)
class Size:
    """How much work the demo creates; `*_tokens` is the length of an answer."""

    batch_count: int
    kept_for_outage_count: int
    realtime_tokens: int
    batch_tokens: int


SIMULATED = Size(batch_count=10, kept_for_outage_count=4, realtime_tokens=150, batch_tokens=500)
REAL = Size(batch_count=4, kept_for_outage_count=0, realtime_tokens=32, batch_tokens=96)


class Scenario:
    """One run of the scenario; `act` is called at the start of each act. Raises: DemoFailed if it cannot continue."""

    def __init__(self, stage: Stage, recorder: Recorder, act: Callable[[str], None]) -> None:
        self._stage = stage
        self._gq = stage.gq
        self._recorder = recorder
        self._act = act
        self._size = SIMULATED if stage.is_simulated else REAL
        self._handles: list[JobHandle] = []
        self._prompts: dict[int, tuple[str, int]] = {}  # job: what it was asked, and for how many tokens
        self._texts: dict[int, str] = {}
        self._rfa: list[tuple[int, int, str]] = []  # job, request for approval, task
        self._embedding: JobHandle | None = None
        self._first_piece_s: list[float] = []
        self._mixed_up: list[str] = []
        self._expected_failed_count = 0
        self._window_answer = ""
        self._paused: tuple[datetime, datetime] | None = None
        self._outage: Outage | None = None

    def play(self) -> None:
        """Play all acts, until every job has ended."""
        self._act("a worker process starts")
        self._stage.start_worker()
        self._recorder.until(lambda _: bool(self._gq.workers()), "the worker process registers")
        self._working_hours()
        self._arrivals()
        if self._stage.simulator is not None:
            self._outage = self._go_away_and_come_back()
        self._act("the remaining jobs run")
        self._recorder.until(lambda seen: self._all_ended(seen, self._handles), "every job ends")
        self._recorder.until(lambda _: self._card_is_free(), "the last job's memory is released")
        self._check_answers()
        self._check_files()

    # --- the acts ---

    def _working_hours(self) -> None:
        self._act("working hours: ai-batch is paused, realtime requests are answered")
        self._window_answer = self._ask_window()
        began = self._gq.now()
        until = began + timedelta(seconds=PAUSE_S)
        self._gq.pause(BATCH, reason="working hours 09:00-18:00, in the demo's time", until=until, by="demo")
        self._paused = (began, until)
        for number in range(1, self._size.batch_count + 1):
            self._ask(BATCH, f"Revise paragraph {number} of the specification for clarity.", self._size.batch_tokens)
            if number == self._size.batch_count // 2 and self._stage.embedding_model is not None:
                self._embedding = self._gq.ollama.embed(self._stage.embedding_model, input=EMBEDDED, queue=BATCH)
                self._handles.append(self._embedding)
        for rfa_id in range(1, 4):
            self._rfa_jobs(rfa_id)
        self._realtime("Revise this sentence while batch is paused.")
        self._recorder.until(lambda _: self._gq.now() >= until, "the pause ends")

    def _arrivals(self) -> None:
        self._act("realtime requests arrive while batch runs")
        for arrival in range(2):
            self._recorder.until(self._batch_works, "a batch job runs")
            self._realtime(f"Revise sentence {arrival + 1}; a person is waiting for it.")
        self._recorder.until(self._batch_works, "a batch job runs")
        self._realtime("Revise the title; a person is waiting.", "Revise the summary; another person is waiting.")
        self._rfa_jobs(4)

    def _go_away_and_come_back(self) -> Outage:
        simulator = self._stage.simulator
        assert simulator is not None
        kept = self._size.kept_for_outage_count
        self._recorder.until(
            lambda seen: sum(not job.has_ended for job in seen.of(BATCH)) <= kept and self._batch_works(seen),
            f"all but {kept} batch jobs end",
        )
        self._act("the GPU becomes unavailable in the middle of a batch job")
        postponed_before = _postponed(self._recorder.replay)
        away_at_s = time.monotonic()
        simulator.go_away()
        asked_at_s = time.monotonic()
        answer = self._refused("Revise this while the GPU is unavailable.")
        answered_after_s = time.monotonic() - asked_at_s
        rfa = self._rfa_jobs(5)
        self._recorder.until(lambda seen: self._all_ended(seen, rfa), "the RFA jobs end during the outage")
        self._recorder.until(
            lambda seen: time.monotonic() >= away_at_s + (AWAY_S if _postponed(seen) > postponed_before else LONGEST_AWAY_S),
            "a batch job is postponed",
        )
        rfa_completed_count = sum(handle.refresh().state == State.COMPLETED for handle in rfa)

        self._act("the GPU is available again")
        back_at, back_at_s = self._gq.now(), time.monotonic()
        simulator.come_back()
        self._recorder.until(lambda seen: _started_after(seen, back_at), "batch runs again")
        recovered_after_s = time.monotonic() - back_at_s
        self._recorder.until(lambda seen: self._all_ended(seen, self._handles), "the batch jobs end after the outage")
        postponed = [job for job in self._recorder.replay.of(BATCH) if job.postponed_count]
        return Outage(
            realtime_answer=answer,
            answered_after_s=answered_after_s,
            batch_snoozed_count=_postponed(self._recorder.replay) - postponed_before,
            attempts_spent_count=sum(job.attempt - 1 for job in postponed),
            rfa_completed_count=rfa_completed_count,
            recovered=all(job.state == State.COMPLETED for job in postponed),
            recovered_after_s=recovered_after_s,
        )

    # --- requests ---

    def _ask(self, queue: str, prompt: str, token_count: int) -> JobHandle:
        options = {"num_predict": token_count}
        handle = self._gq.ollama.generate(self._stage.model, prompt=prompt, queue=queue, options=options)
        self._handles.append(handle)
        self._prompts[handle.id] = (prompt, token_count)
        return handle

    def _realtime(self, *prompts: str) -> None:
        """Ask, and read the answers as they come, as a person's browser would."""
        asked = [(self._ask(REALTIME, prompt, self._size.realtime_tokens), time.monotonic()) for prompt in prompts]
        for handle, asked_at_s in asked:
            pieces: list[str] = []
            try:
                for piece in handle.stream(timeout_s=self._recorder.left_s):
                    if not pieces:
                        self._first_piece_s.append(time.monotonic() - asked_at_s)
                    pieces.append(piece)
            except (JobError, TimeoutError) as error:
                self._mixed_up.append(f"job {handle.id} was not answered ({error})")
            self._texts[handle.id] = "".join(pieces)

    def _refused(self, prompt: str) -> str:
        """Ask while the GPU is unavailable; returns what the caller is told."""
        handle = self._ask(REALTIME, prompt, self._size.realtime_tokens)
        self._expected_failed_count += 1
        try:
            handle.result(timeout_s=min(10.0, self._recorder.left_s))
        except (JobError, TimeoutError) as error:
            return str(error)
        return "an answer, although the GPU is unavailable"

    def _rfa_jobs(self, rfa_id: int) -> list[JobHandle]:
        folder = str(self._stage.rfa_folder)
        handles = []
        for task in (self._stage.rfa_tasks.send_reminder, self._stage.rfa_tasks.distribute):
            handle = task.enqueue(rfa_id=rfa_id, folder=folder)
            handles.append(handle)
            self._rfa.append((handle.id, rfa_id, task.name.rpartition(".")[2]))
        self._handles += handles
        return handles

    def _ask_window(self) -> str:
        """Ask the policies about noon, because the demo's evening does not last until the window opens."""
        view = self._gq.view()
        zone = ZoneInfo(view.queues[BATCH].settings.timezone)
        noon = view.now.astimezone(zone).replace(hour=12, minute=0, second=0, microsecond=0)
        for hold in decide_holds(replace(view, now=noon), self._gq.plugins)[BATCH]:
            if hold.plugin == "windows" and hold.until is not None:
                return f"at noon its window holds it until {hold.until.astimezone(zone):%H:%M}"
        return ""

    # --- conditions ---

    def _batch_works(self, seen: Replay) -> bool:
        return any(seen.jobs[job_id].queue == BATCH for job_id in seen.running) or not any(
            not job.has_ended for job in seen.of(BATCH)
        )

    def _all_ended(self, seen: Replay, handles: list[JobHandle]) -> bool:
        return all(handle.id in seen.jobs and seen.jobs[handle.id].has_ended for handle in handles)

    def _card_is_free(self) -> bool:
        return not any(device.reservations for device in self._gq.view().devices.values())

    # --- results ---

    def _check_answers(self) -> None:
        for job_id, (prompt, token_count) in self._prompts.items():
            if self._recorder.replay.jobs[job_id].state != State.COMPLETED:
                continue
            text = str(self._gq.job(job_id).result(timeout_s=self._recorder.left_s)["text"])
            right = text == expected_answer(self._stage.spec, prompt, token_count) if self._stage.is_simulated else bool(text)
            if not right or self._texts.get(job_id, text) != text:
                self._mixed_up.append(f"the answer of job {job_id}")
        if self._embedding is not None:
            vectors = self._embedding.result(timeout_s=self._recorder.left_s)["embeddings"]
            if self._stage.is_simulated and vectors != [expected_embedding(NOMIC_EMBED_TEXT, EMBEDDED)]:
                self._mixed_up.append(f"the embedding of job {self._embedding.id}")

    def _check_files(self) -> None:
        for _, rfa_id, task in self._rfa:
            for name, content in tasks.expected_files(rfa_id, task).items():
                file = self._stage.rfa_folder / name
                if not file.exists() or file.read_text(encoding="utf-8") != content:
                    self._mixed_up.append(f"the file {name}")

    def evidence(self) -> Evidence:
        """Gather what was measured; call it after the recorder has stopped."""
        seen, watched = self._recorder.replay, self._recorder.watched
        simulator = self._stage.simulator
        report = simulator.card.report() if simulator is not None else {}
        jobs = [seen.jobs[handle.id] for handle in self._handles if handle.id in seen.jobs]
        paused_from, paused_until = self._paused or (self._gq.now(), self._gq.now())
        in_pause = [job for job in jobs if job.started_at is not None and paused_from <= job.started_at < paused_until]
        file_count = sum(len(tasks.expected_files(rfa_id, task)) for _, rfa_id, task in self._rfa)
        return Evidence(
            enqueued_count=len(self._handles),
            completed_count=sum(job.state == State.COMPLETED for job in jobs),
            failed_count=sum(job.has_ended and job.state != State.COMPLETED for job in jobs),
            expected_failed_count=self._expected_failed_count,
            mixed_up=tuple(self._mixed_up),
            checked_count=len(self._prompts) - self._expected_failed_count + (self._embedding is not None) + file_count,
            realtime_waits_s=[job.wait_s for job in seen.of(REALTIME) if job.wait_s is not None],
            first_piece_s=self._first_piece_s,
            batch_completed_count=seen.count(BATCH, State.COMPLETED),
            batch_beside_realtime_count=seen.batch_beside_realtime_count,
            hold_counts=dict(seen.hold_counts),
            paused_s=(paused_until - paused_from).total_seconds(),
            started_in_pause_count=sum(job.queue == BATCH for job in in_pause),
            realtime_in_pause_count=sum(job.queue == REALTIME for job in in_pause),
            window_answer=self._window_answer,
            most_running=dict(seen.most_running),
            overlap_count=int(report["overlaps"]) if report else seen.gpu_overlap_count,
            peak_bytes=int(report["peak_bytes"]) if report else watched.loaded_peak_bytes,
            budget_bytes=self._stage.device.budget_bytes,
            load_count=int(report["loads"]) if report else watched.load_count,
            unload_count=int(report["unloads"]) if report else None,
            left_bytes=sum(item.used_bytes for item in simulator.card.processes()) if simulator is not None else None,
            spill_count=int(report.get("spills", 0)),
            model_peak_count=watched.model_peak_count,
            reading_count=watched.reading_count,
            needs_readings=simulator is not None,
            rfa_waits_s=[job.wait_s for job in seen.of(REMINDERS, DISTRIBUTION) if job.wait_s is not None],
            rfa_on_gpu_count=seen.rfa_on_gpu_count,
            rfa_file_count=file_count,
            outage=self._outage,
            overlaps_by="in the card's own record" if report else "by the jobs' leases",
        )


def _postponed(seen: Replay) -> int:
    return sum(job.postponed_count for job in seen.of(BATCH))


def _started_after(seen: Replay, moment: datetime) -> bool:
    return any(job.last_started_at is not None and job.last_started_at > moment for job in seen.of(BATCH))
