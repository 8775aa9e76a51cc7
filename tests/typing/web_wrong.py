"""Uses gpuqueue wrongly in Flask and FastAPI; a test checks that each `# E:` is reported on its line, and nothing else is."""

from gpuqueue import GPUQueue
from gpuqueue.integrations import sse
from gpuqueue.integrations.fastapi import event_response, lifespan
from gpuqueue.integrations.flask import FlaskGPUQueue

queue = FlaskGPUQueue()
gq = GPUQueue("application.db")


@queue.task(queue="mail")
def add(a: int, b: int = 2) -> int:
    return a + b


@queue.task(max_atempts=3)  # E: Unexpected keyword argument "max_atempts"  # E: Untyped decorator
def misspelled() -> None: ...


add.enqueue()  # E: Missing positional argument "a" in call to "enqueue" of "Task"
add.enqueue(a="1")  # E: Argument "a" to "enqueue" of "Task" has incompatible type "str"; expected "int"
add.using(delay="5m").enqueue(a=1, c=3)  # E: Unexpected keyword argument "c" for "enqueue" of "Task"
number: str = add(1)  # E: Incompatible types in assignment (expression has type "int", variable has type "str")
queue.init_app("shop")  # E: Argument 1 to "init_app" of "FlaskGPUQueue" has incompatible type "str"; expected "Flask"
queue.events("7")  # E: Argument 1 to "events" of "FlaskGPUQueue" has incompatible type "str"
queue.get().jobs(limit="10")  # E: Argument "limit" to "jobs" of "GPUQueue" has incompatible type "str"; expected "int"
lifespan(gq, wroker=True)  # E: Unexpected keyword argument "wroker" for "lifespan"
lifespan(gq, worker="yes")  # E: Argument "worker" to "lifespan" has incompatible type "str"
event_response(7, None)  # E: Argument 1 to "event_response" has incompatible type "int"  # E: Argument 2
for piece in sse.astream(gq.job(1)):  # E: has no attribute "__iter__"
    print(piece)
