"""Collects the messages of source text: what stands in errors, holds, findings, logs, questions, output and help.

Every text that reads like a sentence is collected, whatever it is given to, except what is left out here by name.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.contract.message_forms import Choice, Hole, Message, Parts, shown, words

# --- what is no message ---

LEFT_OUT_FILES = {  # what they are; only the UsageErrors in them are collected
    "gpuqueue/config/initial.py": "the configuration that init writes",
    "gpuqueue/cli/plugin_template.py": "the files of a new plugin",
    "gpuqueue/domain/transitions.py": "the page of the states",
    "gpuqueue/simulators/ollama/answers.py": "Ollama's own words, as are those that follow",
    "gpuqueue/simulators/ollama/api.py": "",
    "gpuqueue/simulators/ollama/generation.py": "",
    "gpuqueue/simulators/ollama/go_json.py": "",
    "gpuqueue/simulators/ollama/options.py": "",
    "gpuqueue/simulators/ollama/scheduler.py": "",
    "gpuqueue/simulators/ollama/server.py": "",
}
LEFT_OUT_CALLS = re.compile(  # what is given to them is compared, looked up or run, and shown to nobody
    r"execute|executemany|compile|search|match|fullmatch|startswith|endswith|removeprefix|removesuffix|partition|rpartition"
    r"|split|strip|getattr|hasattr|get|setdefault|pop|cast|import_module|connect|create_engine|mkstemp|Path|with_name"
    r"|Thread|ThreadPoolExecutor|text|Index|update|urlsplit|EventKind|Transition|write_text"
)
LEFT_OUT = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|PRAGMA|SAVEPOINT|RELEASE|ROLLBACK|BEGIN|AFTER|CASE|CAST|AND|CREATE)\b.*"  # SQL
    r"|⟨?⟨?WHERE .*|\w+ (IN \(|NOT IN |IS NOT |IS NULL|DESC|<> |!= ).*|(state|id|queue|waiting_for) = .*|⟨?demand_\w+ .*"
    r"|\{[^}]*\} (AND|ORDER) .*|coalesce\(.*|⟨.*⟩ ORDER BY .*|id, queue, task, .*|\{column\} [-+] 1"
    r"|(bold|dim|reverse|italic)( \w+)+"  # styles
    r"|(application|text)/\S+; charset=\S+|no-cache, no-transform|204 No Content|Bearer .*"  # HTTP
    r"|%\(asctime\)s.*|import json, sys;.*|event: \{name\}\n.*|id: \{event_id\}\n|retry: \S+"
    r"|\{\"result\": .*|[-+]@all .*|ACL SETUSER .*"
    r"|\[.*\] and \w+ = .*"  # TOML, Lua
    r"|(?:\{gpu\})?\[[\w.\"{}]+\]\n.*|[\w.]+ = (\S+|\{.*\}|\[.*\])|database = .*|vram = .*|\nlocal term.*"
    r"|page (up|down)|/.*|<\w+.*>|gpuqueue: what to ring .*|The async twin of .*",  # keys, paths, names, docstrings
    re.DOTALL,
)

# --- what kind a message is of ---

HOLDS = {"Hold", "Wait", "Limits", "Explanation", "CleanUp"}
FINDINGS = {"Check", "Discrepancy", "Finding", "Problem", "_Promise", "Difference", "ModelHealth"}
QUESTIONS = {"confirm", "prompt", "may_go_on"}
OUTPUTS = {"echo", "print", "say", "note", "error_line", "message_user", "write", "secho"}
HELPS = {"command", "group", "option", "argument", "add_argument", "ArgumentParser", "Spec", "AppGroup"}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
FOREIGN_ERRORS = {
    "ImproperlyConfigured",
    "CommandError",
    "InvalidTask",
    "SuspiciousOperation",
    "OperationalError",
    "ArgumentTypeError",
}
KEPT_ERRORS = {"JobErrorRecord", "TaskError"}
COUNTING = {"counted", "_number", "_many", "_counted"}  # "3 jobs": given a number and what is counted
SHOWN_AS_GIVEN = {
    "format_size",
    "format_duration",
    "clock",
    "str",
    "repr",
    "quote",
    "shown_url",
    "iso",
    "sorted",
    "one_line",
    "int",
}
BY_FILE = {  # the kind of a sentence that is given to nothing which tells
    "gpuqueue/decisions/discrepancies.py": "finding",
    "gpuqueue/decisions": "hold",
    "gpuqueue/domain/endpoints.py": "hold",
    "gpuqueue/domain/explanation.py": "hold",
    "gpuqueue/cli/checks.py": "finding",
    "gpuqueue/cli/doctor.py": "finding",
    "gpuqueue/cli": "output",
    "gpuqueue/store/sqlite/integrity.py": "finding",
    "gpuqueue/domain/errors.py": "error",
    "gpuqueue/domain/units.py": "error",
    "gpuqueue/config": "error",
    "gpuqueue/executors": "error",
    "gpuqueue/testing": "error",
    "gpuqueue/worker": "log",
    "gpuqueue/devices": "hold",
    "gpuqueue/integrations/django/installed.py": "finding",
    "gpuqueue/integrations/django/management": "help",
    "gpuqueue/integrations/in_process.py": "log",
    "gpuqueue/integrations/django/admin.py": "page",
    "gpuqueue/integrations/django/pages": "page",
    "plugins/gpuqueue-openai": "error",
    "plugins/gpuqueue-prometheus/gpuqueue_prometheus/findings.py": "finding",
    "plugins/gpuqueue-prometheus/gpuqueue_prometheus/health.py": "finding",
    "plugins/gpuqueue-prometheus/gpuqueue_prometheus/server.py": "log",
    "plugins/gpuqueue-redis-mirror/gpuqueue_redis_mirror/service.py": "log",
    "plugins/gpuqueue-redis-mirror": "output",
}


# --- reading the source ---


def collected(files: dict[str, str]) -> Iterator[Message]:
    """Yield the messages of these files: path and source."""
    trees = {path: ast.parse(source) for path, source in files.items()}
    errors = _error_classes(trees.values())
    files_ = [_File(path, tree, errors) for path, tree in trees.items()]
    makers: dict[str, list[Maker]] = {}
    for file in files_:
        for maker in file.makers():
            makers.setdefault(maker.name, []).append(maker)
    for file in files_:
        yield from file.messages(makers)


def _error_classes(trees: Iterable[ast.Module]) -> set[str]:
    """Return the names of all classes of errors: of Python, of Django, and those that the source defines."""
    known = FOREIGN_ERRORS | {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while True:
        more = {node.name for node in classes if any(_last_name(base) in known for base in node.bases)} - known
        if not more:
            return known
        known |= more


@dataclass(frozen=True)
class Maker:
    """A function that makes an error of a text it is given, as `table.error` does: its class, and what stands around the text."""

    name: str
    error: str
    before: Parts = ()
    after: Parts = ()


def _last_name(node: ast.AST | None) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_text(node: ast.AST) -> bool:
    """Say whether an expression is a text that is made here, at least in part."""
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return is_text(left) or is_text(right)
        case ast.BinOp(left=left, op=ast.Mod()):
            return is_text(left)
        case ast.IfExp(body=body, orelse=other):
            return is_text(body) or is_text(other)
        case ast.BoolOp(values=values):
            return any(map(is_text, values))
    return False


def is_prose(parts: Parts) -> bool:
    """Say whether people would read this: two words, one of them not filled in."""
    if len(parts) == 1 and isinstance(parts[0], Choice):
        return any(map(is_prose, parts[0].texts))
    text = shown(parts)
    said = words(parts)
    return bool(re.search(r"[a-z]{2}", said)) and len(text.split()) > 1 and not LEFT_OUT.fullmatch(text)


Sink = tuple[str, str, list[ast.expr]]  # the kind, the name, and what may be its texts


class _File:
    def __init__(self, path: str, tree: ast.Module, errors: set[str]) -> None:
        self._path = path
        self._tree = tree
        self._errors = errors
        self._makers: dict[str, list[Maker]] = {}
        self._parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self._functions = self._of_one_line()
        self._reached: set[ast.AST] = set()  # the texts of which the one that is being read is made
        self._filled_from: dict[ast.AST, ast.AST] = {}
        self._put_around: set[ast.AST] = set()  # shown with each text that makers are given

    def makers(self) -> Iterator[Maker]:
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.FunctionDef) or (error := _last_name(node.returns)) not in self._errors:
                continue
            match node.body[-1]:
                case ast.Return(value=ast.Call(args=[ast.JoinedStr() as text, *_])):
                    parts = self._parts(text)
                    around = [Hole(argument.arg) for argument in node.args.args if Hole(argument.arg) in parts]
                    if len(node.body) == 1 + bool(ast.get_docstring(node)) and len(around) == 1:
                        at = parts.index(around[0])
                        self._put_around.add(text)
                        yield Maker(node.name, error, parts[:at], parts[at + 1 :])
                        continue
            yield Maker(node.name, error)

    def messages(self, makers: dict[str, list[Maker]]) -> Iterator[Message]:
        self._makers = makers
        found: list[tuple[ast.AST, Message]] = []
        read: set[ast.AST] = set()
        put_elsewhere: set[ast.AST] = set()

        def add(node: ast.AST, kind: str, name: str, around: Maker | None = None) -> bool:
            self._reached = set()
            parts = self._parts(node)
            if not is_prose(parts):
                return False
            if around is not None:
                parts = (*around.before, *parts, *around.after)
            found.append((node, Message(kind, name, self._path, parts)))
            read.update(self._reached)
            put_elsewhere.update(self._reached - set(ast.walk(node)) - {self._filled_from.get(node)})
            return True

        for call in ast.walk(self._tree):
            sink = self._sink(call)
            if sink is None or self._is_left_out(call, *sink[:2]):
                continue
            kind, name, arguments = sink
            around = self._maker(call) if kind == "error" and name in self._errors else None
            for argument in arguments:
                if argument not in self._put_around and (is_text(argument) or isinstance(argument, ast.Name | ast.Call)):
                    added = add(argument, kind, name, around)
                    if kind in ("finding", "hold") and (added or self._subject(call) is not None):
                        name = f"{name.removesuffix(' →')} →".strip()  # what comes second says what to do
        for node in ast.walk(self._tree):
            if not is_text(node) or is_text(self._parents.get(node, node)):
                continue
            if (
                node not in read | self._put_around
                and not self._is_docstring(node)
                and not self._is_left_out(node, *self._around(node))
            ):
                add(node, *self._around(node))
        told = [(node, message) for node, message in found if node not in put_elsewhere]
        told += self._helps()
        told.sort(key=lambda item: (item[0].lineno, item[0].col_offset))
        yield from (message for _, message in told)

    def _maker(self, call: ast.AST) -> Maker | None:
        """Return the function that makes an error of a text; of several with one name the one that puts least around it."""
        name = _last_name(call.func) if isinstance(call, ast.Call) else ""
        return min(self._makers.get(name, ()), key=lambda maker: len(maker.before), default=None)

    # --- where a text goes ---

    def _sink(self, node: ast.AST) -> Sink | None:
        """Return what a call or a statement tells people, and of which kind it is."""
        if isinstance(node, ast.Assert) and node.msg is not None:
            return "error", "AssertionError", [node.msg]
        if not isinstance(node, ast.Call):
            return None
        name = _last_name(node.func)
        receiver = _last_name(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        if (receiver in ("logger", "_logger", "log") and name in LEVELS) or receiver == "warnings":
            return "log", name, [self._filled_in(node.args)] if node.args else []
        if name in ("tell", "_say") and len(node.args) >= 3:
            level, event = node.args[1:3] if name == "tell" else node.args[:2]
            return (
                "log",
                f"{ast.unparse(level).lower()} {self._word(event)}".removeprefix("level ").removeprefix("logging."),
                given[2:],
            )
        if receiver == "checks" and name in ("Error", "Warning", "Info"):
            return "finding", name.lower(), given
        if name in self._errors or name in KEPT_ERRORS:
            return "error", name, given
        if name == "__init__" and (owner := self._enclosing(node, ast.ClassDef)) and owner.name in self._errors:
            return "error", owner.name, given
        if receiver == "pytest" and name in ("fail", "skip"):
            return "error", f"pytest.{name}", given
        if name == "error" and receiver == "parser":
            return "error", "argparse", given
        if (maker := self._maker(node)) is not None:
            return "error", maker.error, given
        if name in HOLDS:
            return "hold", self._word(node.args[0]) if node.args and name in ("Hold", "Wait") else name, given
        if name in FINDINGS:
            subject = self._subject(node)
            if subject is None:
                return "finding", "", given
            level = f"{ast.unparse(node.args[0]).lower()} " if name == "Check" else ""
            return "finding", level + self._word(subject), given[node.args.index(subject) + 1 :]
        if name in QUESTIONS:
            return "question", "", given
        if name in OUTPUTS:
            return "output", "", given
        if name in HELPS:
            return "help", "", given
        return None

    def _subject(self, call: ast.Call) -> ast.expr | None:
        """Return what a finding is about; it is printed before what is found."""
        match call:
            case ast.Call(func=ast.Name(id="Check"), args=[ast.Name(), subject, _, *_]):
                return subject
            case ast.Call(func=ast.Name(id="Problem"), args=[subject, _, *_]):
                return subject
        return None

    def _around(self, node: ast.AST) -> tuple[str, str]:
        """Return the kind of the message of which this text is a part, by the call or else by the file it stands in."""
        above: ast.AST | None = node
        while above is not None and not isinstance(above, ast.stmt):
            above = self._parents.get(above)
            if isinstance(above, ast.Call) and (sink := self._sink(above)):
                return sink[0], sink[1]
        if isinstance(above, ast.Raise):
            return "error", ""
        if (
            isinstance(above, ast.Return)
            and (error := _last_name(getattr(self._function(node), "returns", None))) in self._errors
        ):
            return "error", error
        path = self._path
        while path and path not in BY_FILE:
            path = path.rpartition("/")[0]
        return BY_FILE.get(path, "other"), ""

    def _is_left_out(self, node: ast.AST, kind: str, name: str) -> bool:
        if self._path in LEFT_OUT_FILES and (kind, name) != ("error", "UsageError"):
            return True
        above: ast.AST | None = node
        while above is not None and not isinstance(above, ast.stmt):
            inside, above = above, self._parents.get(above)
            if isinstance(above, ast.Call) and inside is not above.func and LEFT_OUT_CALLS.fullmatch(_last_name(above.func)):
                return True
            if isinstance(above, ast.Call) and inside is self._subject(above):
                return True
            if isinstance(above, ast.Compare | ast.Subscript | ast.MatchValue) and is_text(inside):
                return True
            if isinstance(above, ast.keyword) and above.arg in ("prog", "metavar", "style", "what"):
                return above.arg != "what" and is_text(inside)
        return False

    def _is_docstring(self, node: ast.AST) -> bool:
        return isinstance(self._parents.get(node), ast.Expr)

    def _helps(self) -> Iterator[tuple[ast.AST, Message]]:
        """Yield the docstrings of commands, a paragraph each, without the keys of --json."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(item, ast.Call) and _last_name(item.func) in ("command", "group") for item in node.decorator_list
            ):
                for paragraph in (ast.get_docstring(node) or "").replace("\b\n", "").split("\n\n"):
                    if paragraph.strip() and not paragraph.startswith("Keys"):
                        yield node, Message("help", node.name, self._path, (paragraph.strip(),))

    # --- what a text is made of ---

    def _parts(self, node: ast.AST, depth: int = 0) -> Parts:
        """Return the parts of a text, with what is put into it from nearby."""
        if is_text(node):
            self._reached |= {node, self._filled_from.get(node, node)}
        match node:
            case ast.Constant(value=str(text)):
                return (text,)
            case ast.JoinedStr(values=values):
                return tuple(part for value in values for part in self._parts(value, depth))
            case ast.FormattedValue(value=value):
                return self._parts(value, depth)
            case ast.BinOp(left=left, op=ast.Add(), right=right) if is_text(node):
                return (*self._parts(left, depth), *self._parts(right, depth))
            case ast.BinOp(left=left, op=ast.Mod(), right=right) if is_text(left):
                return self._parts(left, depth)
            case ast.IfExp(body=body, orelse=other) if is_text(node):
                return _choice(self._parts(body, depth), self._parts(other, depth))
            case ast.BoolOp(op=op, values=values) if is_text(node):
                others = [
                    (Hole(_named(value)),) if isinstance(value, ast.Name) else self._parts(value, depth) for value in values
                ]
                return _choice(*others) if isinstance(op, ast.Or) else _choice(others[-1], ())
            case ast.Name() if depth < 4:
                return self._assigned(node, depth) or (Hole(_named(node)),)
            case ast.Call(func=func, args=[_, ast.Constant(value=str(counted)) as told]) if _last_name(func) in COUNTING:
                self._reached.add(told)
                return (Hole("n"), f" {counted}", Choice((("s",), ())))
            case ast.Call(func=func) if (value := self._functions.get(_last_name(func))) is not None and depth < 4:
                return self._parts(value, depth + 1)
        return (Hole(_named(node)),)

    def _assigned(self, name: ast.Name, depth: int) -> Parts:
        """Return what a name stands for, where that is a text: what was last given to it before, in any branch."""
        function = self._function(name)
        given: list[ast.expr] = []
        places = [function] if function is not None else []
        for place in [*places, self._tree]:
            before = sorted(self._assignments(place, name), key=lambda item: item[0].lineno, reverse=True)
            if not before:
                if place is function and name.id in {
                    argument.arg for argument in ast.walk(place) if isinstance(argument, ast.arg)
                }:
                    return ()
                continue
            for statement, value in before:
                if value is None:
                    return ()
                given.append(value)
                if self._comes_always_before(statement, name) or place is self._tree:
                    break
            break
        if not any(map(is_text, given)):
            return ()
        return _choice(*(self._parts(value, depth + 1) for value in reversed(given)))

    def _assignments(self, place: ast.AST, name: ast.Name) -> Iterator[tuple[ast.stmt, ast.expr | None]]:
        """Yield each statement that gives the name a value before it is used; None is a value that cannot be followed."""
        statements = place.body if isinstance(place, ast.Module) else ast.walk(place)
        for node in statements:
            if isinstance(node, ast.stmt) and not isinstance(place, ast.Module) and node.lineno >= name.lineno:
                continue
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name.id)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name.id), value=value)
                ):
                    yield node, value
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
                    yield from (
                        (node, value)
                        for target, value in zip(targets, values, strict=True)
                        if isinstance(target, ast.Name) and target.id == name.id
                    )
                case ast.AugAssign(target=ast.Name(id=name.id)):
                    yield node, None

    def _comes_always_before(self, statement: ast.stmt, use: ast.AST) -> bool:
        block = self._parents[statement]
        inside: ast.AST | None = use
        while inside is not None and self._parents.get(inside) is not block:
            inside = self._parents.get(inside)
        return any(
            isinstance(lines, list) and statement in lines and inside in lines
            for lines in (value for _, value in ast.iter_fields(block))
        )

    def _of_one_line(self) -> dict[str, ast.expr]:
        """Return the functions of this file that do nothing but make a text, with it."""
        found = {}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return):
                lines = node.body[1:] if ast.get_docstring(node) else node.body
                value = node.body[-1].value
                if len(lines) == 1 and value is not None and is_text(value) and not node.decorator_list:
                    found[node.name] = value
        return found

    def _filled_in(self, arguments: list[ast.expr]) -> ast.expr:
        """Return the text of a line of log with its arguments in the places of %s."""
        if not (isinstance(arguments[0], ast.Constant) and isinstance(arguments[0].value, str) and len(arguments) > 1):
            return arguments[0]
        text = arguments[0]
        values: list[ast.expr] = []
        rest = arguments[1:]
        for index, piece in enumerate(re.split(r"%(?:\d*[sdr]|g)", text.value)):
            if index:
                value = rest.pop(0) if rest else ast.Name("value")
                values.append(ast.FormattedValue(value, -1))
            values.append(ast.Constant(piece))
        joined = ast.copy_location(ast.JoinedStr(values), text)
        self._parents[joined] = self._parents[text]
        self._filled_from[joined] = text
        return joined

    def _enclosing(self, node: ast.AST, *kinds: type) -> ast.AST | None:
        above: ast.AST | None = node
        while above is not None and not isinstance(above, kinds):
            above = self._parents.get(above)
        return above

    def _function(self, node: ast.AST) -> ast.AST | None:
        return self._enclosing(node, ast.FunctionDef, ast.AsyncFunctionDef)

    def _word(self, node: ast.AST) -> str:
        return shown(self._parts(node)) if is_text(node) else f"{{{_named(node)}}}"


def _choice(*texts: Parts) -> Parts:
    different = tuple(dict.fromkeys(texts))
    return different[0] if len(different) == 1 else (Choice(different),)


LONGEST_NAME = 28


def _named(node: ast.AST) -> str:
    """Return a short name of what is filled in."""
    if isinstance(node, ast.Call):
        function = _last_name(node.func)
        if function in SHOWN_AS_GIVEN and node.args:
            return _named(node.args[0])
        if function == "join" and node.args:
            return _named(node.args[0])
        if function == "did_you_mean":
            return "did you mean?"
        source = ast.unparse(node)
        return source if len(source) <= LONGEST_NAME else function.strip("_") or "value"
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return "list"
    if isinstance(node, ast.Attribute) and node.attr == "__name__":
        return "class"
    source = re.sub(r"\bself\.|\b_(?=[a-z])", "", ast.unparse(node))
    if len(source) <= LONGEST_NAME:
        return source
    return _last_name(node) or "value"
