"""Shows the output and the log of one job as they arrive."""

from __future__ import annotations

import re
from collections import deque
from datetime import datetime

from rich.cells import cell_len, chop_cells
from rich.text import Text

from gpuqueue.cli.rendering import STATE_COLORS, folded
from gpuqueue.cli.top_picture import framed, told
from gpuqueue.cli.top_words import fitted, length, one_line, percent
from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.job import FINISHED, WAITING, Job, LogLine

KEPT_CHARACTERS = 200_000  # of the output; twice as many before it is cut
KEPT_LINES = 2000  # of the log
CUT = "… (older output is left out)\n"
KEYS = "j k scroll  c cancel  q back"


class Following:
    """The output and the log of one job, read piece by piece, and the part of them that is shown."""

    def __init__(self, gq: GPUQueue, job_id: int) -> None:
        self._gq = gq
        self.job_id = job_id
        self._chunk = self._line = self._lease = 0
        self._text = ""
        self._begins_anew = False
        self._fold: _Fold | None = None
        self._log: deque[LogLine] = deque(maxlen=KEPT_LINES)
        self._reasons: list[str] = []
        self._above = 0  # lines below the lowest one shown
        self.job: Job = gq.job(job_id).record
        self.read()

    def read(self) -> None:
        """Read what is new. Raises: UnknownJob, StoreError."""
        with self._gq.store.snapshot() as reads:
            self.job = reads.job(self.job_id)
            chunks = reads.chunks(self.job_id, self._chunk)
            lines = reads.logs(self.job_id, self._line)
        for seq, lease, text in chunks:
            self._chunk = seq
            if self._lease and lease != self._lease:
                self._text, self._fold, self._begins_anew = "", None, True
            self._lease = lease
            self._append(text)
        for line in lines:
            self._line = line.seq
            self._log.append(line)
        self._reasons = self._gq.explain(self.job_id).lines() if self.job.state in WAITING else []

    def _append(self, text: str) -> None:
        self._text += text
        if len(self._text) > 2 * KEPT_CHARACTERS:
            self._text, self._fold = CUT + self._text[-KEPT_CHARACTERS:], None
        elif self._fold is not None:
            self._fold.add(text)

    def scroll(self, lines: int) -> None:
        """Scroll this many lines back, or forward if negative."""
        self._above = max(0, self._above + lines)

    def picture(self, message: Text | None, *, width: int, height: int, now: datetime) -> list[Text]:
        """Draw the job's state, its log and the end of its output."""
        head = [*self._head(width, now), Text()] if height > 6 else self._head(width, now)[:1]
        foot = [Text(KEYS, "dim")] if message is None else told(message, width, 3 if height > 6 else 1)
        room = max(0, height - len(head) - len(foot))
        has_output = bool(self._text)
        log_room = min(len(self._log), room if not has_output else max(1, room // 3)) if self._log else 0
        body = [Text(line, "yellow") for reason in self._reasons for line in folded(one_line(reason), width, hang=4).split("\n")]
        body = body[:room]
        room -= len(body)
        if has_output:
            log_room = min(log_room, room)
            body += self._log_part(log_room, width, 0)
            body += self._output_part(room - log_room, width)
        else:
            body += self._log_part(room, width, self._above)
        if not body:
            body = [Text("no output and no log lines", "dim")]
        return framed([*head, *body], foot, width=width, height=height)

    def _head(self, width: int, now: datetime) -> list[Text]:
        job = self.job
        title = Text.assemble((f"job {job.id} ", "bold"), one_line(f"{job.queue}: {job.task} {job.expected_model}"))
        state = Text(str(job.state), STATE_COLORS.get(job.state, ""))
        if job.state in FINISHED:
            if job.error is not None:
                state.append(f": {one_line(job.error.message)}")
            elif job.finished_at and job.started_at:
                state.append(f" in {length((job.finished_at - job.started_at).total_seconds())}")
            return [title, state]
        state.append(f", attempt {job.attempt} of {job.max_attempts}")
        if job.cancel_requested:
            state.append(", asked to stop")
        if job.started_at and job.state not in WAITING:
            state.append(f", for {length((now - job.started_at).total_seconds())}")
        if job.progress is not None and job.state not in WAITING:
            state.append(f", {percent(job.progress)}% {one_line(job.progress_note)}".rstrip())
        if job.output_tokens and job.state not in WAITING:
            state.append(f", {job.output_tokens} tokens")
        if self._begins_anew:
            state.append(", the output started again")
        return [title, state]

    def _log_part(self, room: int, width: int, above: int) -> list[Text]:
        last = len(self._log) - min(above, max(0, len(self._log) - room))
        lines = list(self._log)[max(0, last - room) : last] if room > 0 else []
        return [Text(fitted(f"{line.at.astimezone():%H:%M:%S}  {one_line(line.message)}", width), "dim") for line in lines]

    def _output_part(self, room: int, width: int) -> list[Text]:
        if self._fold is None or self._fold.width != width:
            self._fold = _Fold(width)
            self._fold.add(self._text)
        lines = self._fold.lines
        self._above = min(self._above, max(0, len(lines) - room))
        last = len(lines) - self._above
        return [Text(line) for line in lines[max(0, last - room) : last]] if room > 0 else []


class _Fold:
    """A text folded between words as it grows: only its last line changes."""

    def __init__(self, width: int) -> None:
        self.width = max(2, width)  # the widest character takes two columns
        self.lines = [""]

    def add(self, text: str) -> None:
        """Append a text; characters that would move the cursor become spaces."""
        for place, part in enumerate(text.split("\n")):
            if place:
                self.lines.append("")
            self._lengthen("".join(sign if sign.isprintable() else " " for sign in part.replace("\t", "    ")))

    def _lengthen(self, part: str) -> None:
        line = ""
        for word in re.findall(r"\s+|\S+", self.lines.pop() + part):
            if not word.isspace() and line.strip() and cell_len(line + word) > self.width:
                self.lines.append(line)
                line = ""
            line += word
            if cell_len(line) > self.width and not word.isspace():
                *full, line = chop_cells(line, self.width)
                self.lines += full
        self.lines.append(line)
