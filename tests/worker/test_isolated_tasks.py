"""Isolated tasks: a process of their own, what they may say from there, and how they are ended whatever they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from gpuqueue import GPUQueue, JobCancelled, JobFailed, UsageError
from gpuqueue.executors.processes import IDLE_S
from gpuqueue.store.sqlite.queries import timeline
from gpuqueue.testing.waiting import DEADLINE_S
from tests.executors import isolated_functions as functions
from tests.history import History
from tests.processes import LONGEST_S, started

GPU = '[gpu]\nbudget = "5GB"\ndevice = 1\n[queues.train]\ngpu = true\nbackend = "none"\n[queues.mail]\n'


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def isolated(gq):
    def register(function, **settings):
        return gq.task(name=function.__name__, isolate=True, **settings)(function)

    return register


def numbers(until, file: Path) -> list[int]:
    return [int(word) for word in until(lambda: file.exists() and file.read_text(), f"{file}").split()]


# --- what it can do ---


def test_arguments_and_result_go_to_another_process_and_back(isolated, gq, start_worker):
    where = isolated(functions.where)
    start_worker(gq)
    told = where.enqueue(text="é", number=1.5, list=[None, True, {"a": []}]).result(timeout_s=DEADLINE_S)
    assert told["arguments"] == {"text": "é", "number": 1.5, "list": [None, True, {"a": []}]}
    assert told["pid"] != os.getpid()
    assert told["parent"] == os.getpid()


def test_a_task_speaks_of_its_job_from_there(isolated, gq, start_worker):
    speak = isolated(functions.speak, queue="work", max_attempts=3, timeout="1h")
    start_worker(gq)
    job = speak.enqueue()
    assert job.result(timeout_s=DEADLINE_S) == f"{job.id} True"
    assert "".join(job.stream(timeout_s=DEADLINE_S)) == "once upon a time"
    assert [line.message for line in job.logs()] == ["attempt 1 of 3 of speak in work"]
    assert (job.refresh().progress, job.record.progress_note) == (0.5, "half")


def test_an_asynchronous_task_may_be_isolated_too(isolated, gq, start_worker):
    speak = isolated(functions.speak_later)
    start_worker(gq)
    job = speak.enqueue()
    assert job.result(timeout_s=DEADLINE_S) == job.id
    assert "".join(job.stream(timeout_s=DEADLINE_S)) == "later"


def test_large_arguments_and_results_pass(isolated, gq, start_worker):
    where = isolated(functions.where)
    start_worker(gq)
    text = "x" * 5_000_000
    assert where.enqueue(text=text).result(timeout_s=DEADLINE_S)["arguments"] == {"text": text}


def test_a_task_that_is_isolated_can_be_called_as_a_function(isolated):
    assert isolated(functions.where)(a=1)["pid"] == os.getpid()


def test_a_function_that_no_other_process_can_find_is_refused(gq):
    def local() -> None: ...

    with pytest.raises(UsageError, match=r"isolate=True.*Move .*local to the top level of its module"):
        gq.task(isolate=True)(local)


def test_a_function_of_a_notebook_cannot_be_isolated():
    code = "from gpuqueue import GPUQueue\ngq = GPUQueue('x.db')\ndef work(): ...\ngq.task(isolate=True)(work)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONGEST_S)
    assert "cannot import it from a notebook or an interpreter. Move work to a module" in ran.stderr


def test_a_method_of_a_worker_script_is_found_under_the_name_it_has_when_imported(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, sys\n"
        "from gpuqueue import GPUQueue, Worker\n"
        "gq = GPUQueue(sys.path[0] + '/jobs.db')\n"
        "@gq.task(isolate=True)\n"
        "def where() -> int:\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    job = where.enqueue()\n"
        "    Worker(gq, burst=True).run()\n"
        "    print(job.result(timeout_s=120) not in (0, os.getpid()))\n"
    )
    ran = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=LONGEST_S)
    assert (ran.stdout, ran.returncode) == ("True\n", 0), ran.stderr


# --- how it fails ---


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        ("error", "failed", "Odd: no such thing"),
        ("system exit", "failed", "SystemExit: good bye"),
        ("discard", "gone", "obsolete"),
        ("discard with an error", "discarded", "obsolete"),
        ("no text", "failed", "Mute"),
        ("half a character", "failed", "Odd: a name \\udc80 of a file"),
        ("long text", "failed", "Odd: xxx"),
        ("exit", "process_died", "the job's process exited with 3 before the task returned"),
        ("segfault", "process_died", "the job's process was killed by SIGSEGV"),
        ("kill", "process_died", "the job's process was killed by SIGKILL from outside; see dmesg"),
        ("not json", "result", "the result of job 1 must be JSON"),
        ("deep", "result", "is nested more deeply than the limit of 500 levels"),
        ("large", "result", "the result of job 1: 20 MB of JSON exceeds the limit"),
    ],
)
def test_the_job_says_how_it_ended_and_the_worker_lives(isolated, gq, start_worker, kind, code, said):
    fail, where = isolated(functions.fail), isolated(functions.where)
    start_worker(gq)
    job = fail.enqueue(kind=kind)
    with pytest.raises(JobFailed):
        job.result(timeout_s=DEADLINE_S)
    assert job.refresh().error.code == code
    assert said in job.error.message
    assert where.enqueue().result(timeout_s=DEADLINE_S)["arguments"] == {}


@pytest.mark.parametrize(("kind", "said"), [("exit", "exited with 3"), ("kill", "SIGKILL from outside"), ("segfault", "SIGSEGV")])
def test_its_death_is_noticed_while_a_helper_that_it_forked_lives(isolated, gq, start_worker, until, tmp_path, kind, said):
    fork = isolated(functions.fork)
    start_worker(gq)
    job = fork.enqueue(file=str(tmp_path / "who"), kind=kind)
    with pytest.raises(JobFailed, match=said):
        job.result(timeout_s=DEADLINE_S)
    until(lambda: not any(lives(pid) for pid in numbers(until, tmp_path / "who")), "the helper's end")


def test_a_process_that_lost_its_connection_is_killed_and_the_job_says_by_whom(isolated, gq, start_worker):
    close_everything = isolated(functions.close_everything)
    start_worker(gq)
    with pytest.raises(JobFailed, match="killed by gpuqueue: it had closed its connection to the worker"):
        close_everything.enqueue().result(timeout_s=DEADLINE_S)


def test_a_job_is_not_given_to_a_process_that_died_and_left_a_helper(isolated, gq, start_worker, until, tmp_path):
    fork, where = isolated(functions.fork), isolated(functions.where)
    start_worker(gq, threads=1)
    pid = fork.enqueue(file=str(tmp_path / "who"), kind="return").result(timeout_s=DEADLINE_S)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not lives(pid), "its end")
    assert where.enqueue().result(timeout_s=DEADLINE_S)["pid"] != pid


def test_what_a_thread_of_an_ended_job_says_is_not_the_next_jobs(isolated, gq, start_worker):
    leave, let = isolated(functions.leave_a_thread), isolated(functions.let_the_thread_speak)
    start_worker(gq, threads=1)
    pid = leave.enqueue().result(timeout_s=DEADLINE_S)
    job = let.enqueue()
    assert job.result(timeout_s=DEADLINE_S) == pid
    assert (job.logs(), job.refresh().progress) == ([], None)


def test_a_task_that_reports_all_the_time_may_run_longer_than_the_lease(make_queue, start_worker):
    gq = make_queue('[worker]\nlease = "2s"\n')
    speak = gq.task(name="speak_on", isolate=True, max_attempts=1)(functions.speak_on)
    start_worker(gq)
    assert speak.enqueue(times=250).result(timeout_s=DEADLINE_S) == 250


def test_a_traceback_from_there_is_kept(isolated, gq, start_worker):
    fail = isolated(functions.fail)
    start_worker(gq)
    job = fail.enqueue(kind="error")
    with pytest.raises(JobFailed):
        job.result(timeout_s=DEADLINE_S)
    assert 'raise Odd("no such thing")' in job.refresh().error.traceback


def test_rules_cover_errors_from_there_by_their_class_and_its_bases(isolated, gq, start_worker, until):
    fail = isolated(functions.fail, max_attempts=5, discard_on=LookupError)
    start_worker(gq)
    job = fail.enqueue(kind="error")
    with pytest.raises(JobFailed, match="no such thing"):
        job.result(timeout_s=DEADLINE_S)
    assert job.attempt == 1


@pytest.mark.parametrize(("kind", "outcome"), [("retry", "retried"), ("snooze", "snoozed")])
def test_verdicts_come_from_there(isolated, gq, start_worker, until, kind, outcome):
    fail = isolated(functions.fail, max_attempts=2)
    start_worker(gq)
    job = fail.enqueue(kind=kind)
    until(lambda: job.refresh().state == "retryable", "the verdict")
    with gq.store.engine.lent() as connection:
        (attempt,) = timeline(connection, job.id)
    assert (attempt["outcome"], job.attempt) == (outcome, 1 if kind == "retry" else 0)
    assert 3500 < (job.record.scheduled_at - job.started_at).total_seconds() < 3700


# --- how it is ended ---


@pytest.mark.parametrize("how", ["sleep", "ignore", "allocate", "hold the interpreter", "start another"])
def test_at_its_deadline_it_is_ended_whatever_it_does_and_the_job_says_why(isolated, gq, start_worker, until, tmp_path, how):
    limit = "20s" if how == "allocate" else "2s"  # a busy system takes a while to give so much memory
    hang, where = isolated(functions.hang, timeout=limit), isolated(functions.where)
    start_worker(gq)
    where.enqueue().result(timeout_s=DEADLINE_S)  # its process waits for more now: none of the limit goes into starting one
    job = hang.enqueue(file=str(tmp_path / "who"), how=how)
    pids = numbers(until, tmp_path / "who")
    assert all(lives(pid) for pid in pids)
    if how == "allocate":
        status = Path(f"/proc/{pids[0]}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) > 1_900_000  # kB
    with pytest.raises(JobFailed, match=f"ran longer than its timeout of {limit[:-1]} s"):
        job.result(timeout_s=DEADLINE_S)
    until(lambda: not any(lives(pid) for pid in pids), "its processes' end, which gives its memory back")
    assert where.enqueue().result(timeout_s=DEADLINE_S)["arguments"] == {}


def test_a_cancel_ends_it_at_once_and_lets_it_tidy_up(isolated, gq, start_worker, until, tmp_path):
    wait = isolated(functions.tidy_up)
    start_worker(gq)
    job = wait.enqueue(file=str(tmp_path / "who"))
    (pid,) = numbers(until, tmp_path / "who")
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout_s=DEADLINE_S)
    until(lambda: not lives(pid), "its end")
    assert (tmp_path / "who.end").read_text() == "cancelled: True"


def test_a_shutdown_gives_the_job_back_unspent_and_leaves_no_process(isolated, gq, start_worker, until, tmp_path):
    hang = isolated(functions.hang)
    worker = start_worker(gq)
    job = hang.enqueue(file=str(tmp_path / "who"), how="ignore")
    (pid,) = numbers(until, tmp_path / "who")
    worker.stop(grace_s=0)
    assert (job.refresh().state, job.attempt) == ("available", 0)
    assert not lives(pid)


def test_no_process_outlives_a_worker_that_was_killed(tmp_path, until, make_queue):
    gq = make_queue()
    history = History(gq)
    for how in ("sleep", "hold the interpreter", "start another"):
        file = tmp_path / how.replace(" ", "-")
        gq.task(name="hang", isolate=True)(functions.hang).enqueue(file=str(file), how=how)
    code = (
        "import sys; from gpuqueue import GPUQueue, Worker; from tests.executors import isolated_functions\n"
        "gq = GPUQueue(sys.argv[1])\n"
        "gq.task(name='hang', isolate=True)(isolated_functions.hang)\n"
        "Worker(gq).run()"
    )
    root = Path(functions.__file__).parents[2]
    with started([sys.executable, "-c", code, str(gq.database)], cwd=root) as worker:
        pids = [pid for how in ("sleep", "hold-the-interpreter", "start-another") for pid in numbers(until, tmp_path / how)]
        worker.kill()
        # The grandchild of the third is not in the worker's group: it ends with the child that started it.
        until(lambda: not any(lives(pid) for pid in pids), "the end of all")
    history.check(unfinished=[1, 2, 3])


def test_no_process_outlives_the_lease_of_a_worker_that_was_stopped(tmp_path, until, make_queue):
    gq = make_queue()
    history = History(gq)
    job = gq.task(name="hang", isolate=True)(functions.hang).enqueue(file=str(tmp_path / "who"), how="sleep")
    code = (
        "import sys; from gpuqueue import Config, GPUQueue, Worker; from tests.executors import isolated_functions\n"
        "gq = GPUQueue(config=Config.default(sys.argv[1], environ={'GPUQUEUE_WORKER_LEASE': '1500ms'}))\n"
        "gq.task(name='hang', isolate=True)(isolated_functions.hang)\n"
        "Worker(gq).run()"
    )
    root = Path(functions.__file__).parents[2]
    with started([sys.executable, "-c", code, str(gq.database)], cwd=root) as worker:
        (pid,) = numbers(until, tmp_path / "who")
        worker.send_signal(signal.SIGSTOP)
        until(lambda: not lives(pid), "the child's end while its worker is stopped")
        worker.send_signal(signal.SIGCONT)
        until(lambda: job.refresh().record.lease > 1, "the job's next lease")
    with gq.store.engine.lent() as connection:
        first = timeline(connection, job.id)[0]
    assert (first["outcome"], job.attempt) == ("released", 1)
    assert "killed by gpuqueue: its worker was suspended for more than 1.2 s" in first["error"].message
    history.check(unfinished=[job.id])


# --- the processes ---


def test_a_process_runs_several_jobs_one_after_another_until_it_grows(isolated, gq, start_worker):
    remember = isolated(functions.remember)
    start_worker(gq, threads=1)
    pids = [remember.enqueue(size=size).result(timeout_s=DEADLINE_S) for size in (10, 10, 10, 200_000_000, 10)]
    assert pids[0] == pids[1] == pids[2] == pids[3]
    assert pids[4] != pids[3]


def test_that_a_process_grows_is_seen_however_large_its_worker_is(isolated, gq, start_worker):
    ballast = bytearray(b"\1") * 400_000_000
    remember = isolated(functions.remember)
    start_worker(gq, threads=1)
    pids = [remember.enqueue(size=size).result(timeout_s=DEADLINE_S) for size in (200_000_000, 10)]
    assert len(ballast) == 400_000_000
    assert pids[0] != pids[1]


def test_an_idle_process_is_ended_after_a_while(isolated, gq, start_worker, until, monkeypatch):
    monkeypatch.setattr("gpuqueue.executors.processes.IDLE_S", IDLE_S / 1000)
    remember = isolated(functions.remember)
    start_worker(gq)
    pid = remember.enqueue(size=10).result(timeout_s=DEADLINE_S)
    until(lambda: not lives(pid), "its end")


def test_a_job_on_a_device_has_a_process_of_its_own_which_sees_that_device_alone(make_queue, start_worker, until):
    gq = make_queue(GPU)
    where = gq.task(name="where", queue="train", isolate=True)(functions.where)
    start_worker(gq)
    told = [where.enqueue().result(timeout_s=DEADLINE_S) for _ in range(2)]
    assert told[0]["environment"] == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert told[0]["pid"] != told[1]["pid"]
    until(lambda: not any(lives(one["pid"]) for one in told), "their ends, which free what they held on the device")
    elsewhere = where.using(queue="mail").enqueue().result(timeout_s=DEADLINE_S)
    assert elsewhere["environment"]["CUDA_VISIBLE_DEVICES"] == ""


def test_a_device_with_a_uuid_is_shown_by_it(make_queue, start_worker):
    gq = make_queue(GPU.replace("device = 1", 'device = "GPU-5e1c0a52"'))
    where = gq.task(name="where", queue="train", isolate=True)(functions.where)
    start_worker(gq)
    assert where.enqueue().result(timeout_s=DEADLINE_S)["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-5e1c0a52"


def test_a_guardian_that_was_killed_is_replaced(isolated, gq, start_worker, until, tmp_path):
    hang, where = isolated(functions.hang), isolated(functions.where)
    start_worker(gq)
    hang.enqueue(file=str(tmp_path / "who"), how="sleep")
    numbers(until, tmp_path / "who")

    def guardians() -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_mine = f"PPid:\t{os.getpid()}\n" in (folder / "status").read_text()
                if is_mine and "guardian.py" in (folder / "cmdline").read_text() and lives(int(folder.name)):
                    found.append(int(folder.name))
        return found

    (first,) = guardians()
    os.kill(first, signal.SIGKILL)
    until(lambda: not lives(first), "its end")
    assert where.enqueue().result(timeout_s=DEADLINE_S)["arguments"] == {}
    (second,) = guardians()
    assert second != first


SCRIPT = """
from gpuqueue import GPUQueue, Worker

gq = GPUQueue("jobs.db")


@gq.task(isolate=True)
def work() -> str:
    return "done"


with Worker(gq):
    print(work.enqueue().result(timeout_s=120))
"""


def test_a_script_that_starts_its_worker_as_it_is_imported_is_told_how_to_write_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    told = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST_S)
    assert told.returncode == 1
    assert 'Start the worker under `if __name__ == "__main__":`' in told.stderr.splitlines()[-1]
    with GPUQueue(tmp_path / "jobs.db") as gq:
        assert [job.id for job in gq.jobs()] == [1], "no child enqueued another"
    guarded = SCRIPT.replace("with Worker(gq):\n    print", 'if __name__ == "__main__":\n  with Worker(gq):\n    print')
    (tmp_path / "script.py").write_text(guarded)
    run = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST_S)
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")
