"""Uses the public API wrongly; a test checks that each `# E:` is reported on its line, and nothing else is."""

from gpuqueue import GPUQueue, Wroker, current_job  # E: Module "gpuqueue" has no attribute "Wroker"; maybe "Worker"?
from gpuqueue.contract.hookspecs import QueueHoldDetails
from gpuqueue.testing import assert_enqueued, eager, enqueued, travel

gq = GPUQueue("application.db")


@gq.task
def add(a: int, b: int = 2) -> int:
    return a + b


@gq.task(queue="mail")
async def fetch(url: str) -> str:
    return url


# --- tasks ---


@gq.task(max_atempts=3)  # E: Unexpected keyword argument "max_atempts"  # E: Untyped decorator
def misspelled() -> None: ...


@gq.task(backoff=5)  # E: No overload variant of "task" of "GPUQueue" matches argument type "int"  # E: Untyped decorator
def impatient() -> None: ...


@gq.task(retry_on="ConnectionError")  # E: Argument "retry_on" to "task" of "GPUQueue" has incompatible type "str"
def named() -> None: ...


add("1")  # E: Argument 1 to "__call__" of "Task" has incompatible type "str"; expected "int"
number: int = fetch("x")  # E: Incompatible types in assignment (expression has type "Coroutine[Any, Any, str]"

# --- enqueueing ---

add.enqueue()  # E: Missing positional argument "a" in call to "enqueue" of "Task"
add.enqueue(a=1, c=3)  # E: Unexpected keyword argument "c" for "enqueue" of "Task"
add.enqueue(a="1")  # E: Argument "a" to "enqueue" of "Task" has incompatible type "str"; expected "int"
fetch.enqueue(uri="x")  # E: Unexpected keyword argument "uri"
add.using(dely="5m")  # E: Unexpected keyword argument "dely" for "using" of "Task"; did you mean "delay"?
add.using(priority="high")  # E: Argument "priority" to "using" of "Task" has incompatible type "str"
add.using(at="tomorrow")  # E: Argument "at" to "using" of "Task" has incompatible type "str"; expected "datetime | None"
add.using(delay="5m").enqueue(a="1")  # E: Argument "a" to "enqueue" of "Task" has incompatible type "str"; expected "int"
gq.enqueue("fetch", url="x")  # E: Unexpected keyword argument "url" for "enqueue" of "GPUQueue"
gq.enqueue("fetch", ["x"])  # E: Argument 2 to "enqueue" of "GPUQueue" has incompatible type "list[str]"
gq.enqueue_many([add])  # E: List item 0 has incompatible type "Task[[int, int], int]"
gq.queue("mail", concurency=1)  # E: Unexpected keyword argument "concurency"
gq.queue("mail", when_unavailable="refuse")  # E: incompatible type "Literal['refuse']"

# --- Ollama ---

gq.ollama.generate("gemma4:e4b", queue="ai-realtime")  # E: Missing named argument "prompt"
gq.ollama.generate("gemma4:e4b", prompt="Hello")  # E: Missing named argument "queue"
gq.ollama.generate("gemma4:e4b", prompt="Hello", queue="ai", sistem="x")  # E: Unexpected keyword argument "sistem"
gq.ollama.chat("gemma4:e4b", messages="Hello", queue="ai")  # E: Argument "messages" to "chat"
gq.ollama.embed("nomic", input="x", queue="ai", job={"dely": 3})  # E: Argument "job" to "embed" of "OllamaTasks"

# --- tests ---

eager("gq")  # E: Argument 1 to "eager" has incompatible type "str"; expected "GPUQueue"
eager(gq, True)  # E: Too many positional arguments for "eager"
assert_enqueued(7)  # E: Argument 1 to "assert_enqueued" has incompatible type "int"
assert_enqueued(add, a=1).reslt()  # E: "JobHandle" has no attribute "reslt"
print(enqueued(add).id)  # E: "list[JobHandle]" has no attribute "id"
travel(gq, None)  # E: Argument 2 to "travel" has incompatible type "None"


# --- jobs ---


async def wait() -> None:
    await add.enqueue(a=1)  # E: Incompatible types in "await" (actual type "JobHandle", expected type "Awaitable[Any]")
    await gq.job(1).cancel()  # E: Incompatible types in "await" (actual type "bool", expected type "Awaitable[Any]")
    await add.aenqueue(a="1")  # E: Argument "a" to "aenqueue" of "Task" has incompatible type "str"; expected "int"
    (await gq.ajob(1)).reslt()  # E: "JobHandle" has no attribute "reslt"
    await gq.apause()  # E: Too few arguments
    for piece in gq.job(1).astream():  # E: "AsyncIterator[Piece]" has no attribute "__iter__"
        print(piece)


gq.acounts().keys()  # E: "Coroutine[Any, Any, dict[str, dict[str, int]]]" has no attribute "keys"
gq.jobs(limit="10")  # E: Argument "limit" to "jobs" of "GPUQueue" has incompatible type "str"; expected "int"
gq.job("3")  # E: Argument 1 to "job" of "GPUQueue" has incompatible type "str"; expected "int"
current_job().progress("half")  # E: Argument 1 to "progress" of "CurrentJob" has incompatible type "str"; expected "float"
current_job().emit(b"x")  # E: Argument 1 to "emit" of "CurrentJob" has incompatible type "bytes"; expected "str"


def hot(details: QueueHoldDetails) -> None:
    print(details.queue.gpus, Wroker)  # E: "QueueSettings" has no attribute "gpus"
