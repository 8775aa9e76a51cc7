"""Whatever happens to the queue, the server, its keys and the writers, in whatever order: the mirror ends as a fresh one."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import redis
from gpuqueue_redis_mirror import compare
from gpuqueue_redis_mirror.layout import Key
from gpuqueue_redis_mirror.service import Mirroring, identity
from gpuqueue_redis_mirror.settings import Settings
from gpuqueue_redis_mirror.source import Kept, Source
from gpuqueue_redis_mirror.target import Occupied, Superseded, Target
from gpuqueue_redis_mirror.workers import WorkerConnections

from gpuqueue import Discard, Snooze, Worker, current_job

SEEDS = range(100)
STEPS = 40
QUEUES = ("mail", "slow")
KEPT = {"keep_completed": 3, "keep_failed": 2}
TROUBLES = (redis.RedisError, OSError, Superseded, Occupied)


class Play:
    """A queue, a server, and writers of its mirror, of which the last is the one that may write."""

    def __init__(self, gq, server, seed):
        self.gq = gq
        self.server = server
        self.random = random.Random(seed)
        self.settings = Settings(server.url, **KEPT)
        self.writers = []
        self.jobs = []

        @gq.task(name="work", queue="mail", max_attempts=2)
        def work(how):
            current_job().log(f"does {how}")
            current_job().progress(0.25)
            if how == "discards":
                raise Discard("no")
            if how == "snoozes":
                raise Snooze("1h")
            if how == "fails":
                raise ValueError("fails")
            return {"how": how}

        self.work = work
        self.new_writer()

    @property
    def writer(self):
        return self.writers[-1]

    def new_writer(self):
        """Another worker takes the mirror over; the one before it was only stopped, and may go on."""
        target = Target(self.server.url, "bull", identity(self.gq))
        workers = WorkerConnections(self.server.url)
        self.writers.append(Mirroring(self.gq, target, workers, self.settings, term=len(self.writers) + 1))

    def close(self):
        for writer in self.writers:
            writer.close()

    # --- what happens to the queue ---

    def enqueue(self):
        for _ in range(self.random.randint(1, 4)):
            how = self.random.choice(["works", "works", "discards", "snoozes", "fails"])
            options = {"queue": self.random.choice(QUEUES), "priority": self.random.choice([0, 0, 3, -1, -2])}
            if self.random.random() < 0.3:
                options["delay"] = self.random.choice(["1h", "2h"])
            self.jobs.append(self.work.using(**options).enqueue(how=how))

    def run(self):
        Worker(self.gq, burst=True, threads=1).run()

    def cancel_or_retry(self):
        if self.jobs:
            job = self.random.choice(self.jobs)
            if job.refresh().state in ("discarded", "cancelled"):
                job.retry()
            else:
                job.cancel()

    def pause(self):
        self.gq.pause(self.random.choice(QUEUES))

    def resume(self):
        self.gq.resume(self.random.choice(QUEUES))

    # --- what happens to the mirror ---

    def write(self):
        self.writer.write_batch()

    def look(self):
        self.writer.look()

    def replay(self):
        """The writer dies between writing to the server and noting it: the next one writes the same again."""
        follower = self.writer.follower
        passed, follower.advance = follower.advance, lambda event_id: None
        try:
            self.writer.write_batch()
        finally:
            follower.advance = passed

    def stopped_writer(self):
        """The writer is stopped with a batch in its hands, and goes on when another one has taken over and written."""
        stopped, held = self.writer, {}

        def stop(changes, **rest):
            held.update(changes=changes, **rest)
            raise ConnectionError("it is stopped")

        stopped.begin()
        apply, stopped.target.apply = stopped.target.apply, stop
        with suppress(ConnectionError):
            stopped.write_batch()
        stopped.target.apply = apply
        self.new_writer()
        self.writer.begin()
        self.enqueue()
        self.run()
        self.writer.look()
        while self.writer.write_batch():
            pass
        if held:
            with pytest.raises(Superseded):
                apply(held.pop("changes"), **held)

    def begin(self):
        self.writer.begin()

    def flush(self):
        self.server.flush()

    def restart(self):
        self.server.restart(keep_data=self.random.random() < 0.5)

    def delete(self):
        with self.server.client() as client:
            keys = [key for key in client.keys("*") if not key.endswith(":events")]
            for key in self.random.sample(keys, min(3, len(keys))):
                client.delete(key)

    def write_foreign(self):
        with self.server.client() as client:
            queue = self.random.choice(QUEUES)
            for write in self.random.sample(
                [
                    lambda: client.set(f"bull:{queue}:wait", "text"),
                    lambda: client.delete(f"bull:{queue}:meta"),
                    lambda: client.hset(f"bull:{queue}:meta", "paused", "1"),
                    lambda: client.hset(f"bull:{queue}:999999", "name", "stray"),
                    lambda: client.lpush(f"bull:{queue}:12:logs", "stray"),
                    lambda: client.zadd(f"bull:{queue}:completed", {"999999": 1}),
                    lambda: client.hset("gpuqueue-mirror:bull:staging:x", "a", "b"),
                ],
                2,
            ):
                with suppress(redis.ResponseError):  # it is of another kind already
                    write()


OF_QUEUE = ("enqueue", "enqueue", "run", "cancel_or_retry", "pause", "resume")
OF_MIRROR = ("write", "write", "look", "replay", "new_writer", "stopped_writer", "begin")
OF_SERVER = ("flush", "restart")
OF_OTHERS = ("delete", "write_foreign")


def contents(server):
    """All keys that BullMQ would see, but for the events."""
    target = Target(server.url, "bull", "")
    try:
        return target.read(sorted(target.names(QUEUES)))
    finally:
        target.close()


@pytest.mark.sampled(14)
@pytest.mark.parametrize("seed", SEEDS)
def test_it_ends_as_a_fresh_one(seed, make_gpuqueue, redis_server, make_redis_server):
    gq = make_gpuqueue("[queues.mail]\n[queues.slow]\n")
    has_others = seed % 2 == 1  # who change keys, which only a comparison of everything finds
    play = Play(gq, redis_server, seed)
    try:
        for _ in range(STEPS):
            groups = [*6 * [OF_QUEUE], *6 * [OF_MIRROR], OF_SERVER, *([OF_OTHERS] if has_others else [])]
            group = play.random.choice(groups)
            with suppress(*TROUBLES):  # the service waits, and begins again
                getattr(play, play.random.choice(group))()
        play.writer.begin()
        play.writer.look()
        while play.writer.write_batch():
            pass
        if has_others:
            play.writer.mend()
        with gq.read() as reader:
            source = Source(gq, Kept(3, 2))
            left = list(compare.differences(reader, source, play.writer.target, source.held()))
        assert left == []
        fresh = make_redis_server()
        other = Play(gq, fresh, seed)
        other.writer.look()
        assert contents(redis_server) == contents(fresh)
        other.close()
    finally:
        play.close()


def test_a_listener_of_node_lives_through_all_of_it(make_gpuqueue, redis_server, listen):
    gq = make_gpuqueue("[queues.mail]\n[queues.slow]\n")
    listener = listen("mail")
    play = Play(gq, redis_server, seed=1)
    try:
        for _ in range(3 * STEPS):
            group = play.random.choice([*6 * [OF_QUEUE], *6 * [OF_MIRROR], OF_SERVER, OF_OTHERS])
            with suppress(*TROUBLES):
                getattr(play, play.random.choice(group))()
        assert listener.died_of is None
        play.writer.begin()
        play.writer.look()
        gq.resume("mail")
        job = play.work.enqueue(how="works")
        play.run()
        while play.writer.write_batch():
            pass
        heard = listener.wait_until_heard("completed", jobId=str(job.id))
        assert heard["returnvalue"] in ({"how": "works"}, '{"how":"works"}')
        assert listener.died_of is None
    finally:
        play.close()


@pytest.fixture
def play(make_gpuqueue, redis_server):
    play = Play(make_gpuqueue("[queues.mail]\n[queues.slow]\n"), redis_server, seed=0)
    play.writer.look()
    yield play
    play.close()


def differences(play):
    with play.gq.read() as reader:
        source = Source(play.gq, Kept(3, 2))
        return list(compare.differences(reader, source, play.writer.target, source.held()))


def test_what_came_and_was_left_out_again_within_one_batch_leaves_nothing(play):
    for _ in range(6):
        play.work.enqueue(how="works")
    play.run()
    play.writer.write_batch()
    play.writer.look()  # shows the queues that the worker brought
    assert differences(play) == []


def test_a_server_that_comes_back_with_what_it_had_saved_before_is_written_anew(play, redis_server):
    with redis_server.client() as client:
        client.save()
    play.work.enqueue(how="works")
    play.run()
    play.writer.write_batch()
    redis_server.kill()
    redis_server.start()
    assert differences(play) != []
    play.writer.look()
    assert differences(play) == []


def test_what_somebody_else_changed_is_put_right_also_while_events_keep_coming(play, redis_server):
    play.work.enqueue(how="works")
    play.writer.write_batch()
    with redis_server.client() as client:
        client.delete("bull:mail:meta")
        client.lpush("bull:mail:99", "stray")
        play.work.enqueue(how="works")  # not written yet
        assert play.writer.mend() > 0
        assert client.exists("bull:mail:meta") and not client.exists("bull:mail:99")
    play.writer.write_batch()
    assert differences(play) == []


def test_two_mirrors_on_one_server_leave_each_other_alone(play, redis_server):
    other = Target(redis_server.url, "other", "of another queue")

    def keys(prefix, meanwhile=lambda: None):
        for number in range(1500):
            if number == 1200:
                meanwhile()
            yield f"{prefix}:mail:{number}", Key("hash", {"name": "work"})

    def build_other():
        other.rebuild(keys("other"), cursor=1, queues=["mail"], term=1)

    assert play.writer.target.rebuild(keys("bull", build_other), cursor=1, queues=["mail"], term=9) == 1500
    with redis_server.client() as client:
        assert [len(client.keys(f"{prefix}:mail:*")) for prefix in ("bull", "other")] == [1500, 1500]
        assert client.keys("gpuqueue-mirror:*:staging:*") == []
    other.close()
