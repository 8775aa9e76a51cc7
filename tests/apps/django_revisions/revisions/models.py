"""Owns the revisions: each a visitor's text and the job that revises it, stored in one transaction."""

from django.db import connection, models, transaction
from django.urls import reverse

from gpuqueue import JobHandle, State
from gpuqueue.integrations.django import queue

MODEL = "gemma4:e4b"
SYSTEM = "Revise the text: correct its mistakes and make it clear. Answer with the revised text alone."


class Revision(models.Model):
    """One text to revise; `revised` is empty until somebody looks at the finished job."""

    visitor = models.CharField(max_length=32)
    text = models.TextField(max_length=8000)
    revised = models.TextField(blank=True)
    job_id = models.PositiveBigIntegerField(unique=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"revision {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("revisions:show", args=[self.pk])

    @classmethod
    def ask(cls, visitor: str, text: str) -> "Revision":
        """Store a revision and its job: both, or neither."""
        with transaction.atomic():
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
            job = queue().ollama.chat(MODEL, messages=messages, queue="ai-realtime", job={"connection": connection})
            return cls.objects.create(visitor=visitor, text=text, job_id=job.id)

    @property
    def job(self) -> JobHandle:
        """Find the job. Raises: UnknownJob once it was pruned, a week after its end."""
        return queue().job(self.job_id)

    def keep_answer(self) -> None:
        """Copy a completed job's answer into this row, which stays when the job is pruned. Raises: UnknownJob."""
        if not self.revised and self.job.state == State.COMPLETED:
            self.revised = self.job.result()["text"]
            self.save(update_fields=["revised"])
