"""Owns the parts of the README that are generated from the code; `python -m tests.contract.readme` writes them anew."""

from __future__ import annotations

import ast
from pathlib import Path

from gpuqueue import hookspecs
from gpuqueue.initial_config import initial_toml

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def first_sentence(docstring: str | None) -> str:
    """Return what a module owns, in one line."""
    text = " ".join((docstring or "").split("\n\n")[0].split())
    return text.removeprefix("Owns ").split(";")[0].rstrip(".")


def modules() -> str:
    lines = ["| module | owns |", "| --- | --- |"]
    for path in sorted((ROOT / "gpuqueue").rglob("*.py"), key=lambda path: (len(path.parts) > len(ROOT.parts) + 2, path)):
        name = path.relative_to(ROOT).as_posix()
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        if docstring and path.name not in ("__main__.py",) and name != "gpuqueue/__init__.py":
            lines.append(f"| `{name.removeprefix('gpuqueue/')}` | {first_sentence(docstring)} |")
    return "\n".join(lines)


def hooks() -> str:
    lines = ["| hook | |", "| --- | --- |"]
    for group in hookspecs.SPECIFICATIONS:
        for name, hook in vars(group).items():
            if not name.startswith("_"):
                lines.append(f"| `{name}` | {(hook.__doc__ or '').splitlines()[0]} |")
    return "\n".join(lines)


def configuration() -> str:
    text = initial_toml(timezone="Asia/Bangkok", budget="5GB", margin="3GB", model="gemma4:e4b", model_vram="4.5GB")
    return f"```toml\n{text.strip()}\n```"


def with_generated_parts(text: str) -> str:
    """Return the README with its generated parts made anew, each between its two markers."""
    for name, part in (("configuration", configuration()), ("hooks", hooks()), ("modules", modules())):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2] if end in rest else rest
        text = f"{before}{begin}\n{part}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(with_generated_parts(README.read_text()))
