"""Owns how these tests take memory on a card, through the driver's own library or through PyTorch; computes nothing."""

from __future__ import annotations

import ctypes
import importlib
import uuid
from typing import Any

LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: this process sees no card


class NoCard(Exception):
    """This process sees no card."""


class Cuda:
    """CUDA's driver API in this process, as far as it is needed here.

    Every argument has its C type: ctypes would pass a number as an int of 32 bits. Raises: NoCard; RuntimeError with the
    call that failed and the driver's own words.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._call("cuInit", ctypes.c_uint(0))

    def uuids(self) -> list[str]:
        """Return the UUIDs of the cards that this process sees, worded as NVML words them."""
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        found = []
        for ordinal in range(count.value):
            identity = (ctypes.c_ubyte * 16)()
            self._call("cuDeviceGetUuid", ctypes.byref(identity), self._device(ordinal))
            found.append(f"GPU-{uuid.UUID(bytes=bytes(identity))}")
        return found

    def take(self, size_bytes: int) -> None:
        """Take memory on the first card, for as long as this process lives."""
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device(0))
        self._call("cuCtxSetCurrent", context)
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))

    def _device(self, ordinal: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
        return device

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status == _NO_DEVICE:
            raise NoCard
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            raise RuntimeError(f"{name} failed with {status}: {(text.value or b'an unknown error').decode()}")


def take(size_bytes: int, how: str) -> Any:
    """Take memory on the first card that this process sees, with the "driver" or with "PyTorch"; returns what holds it."""
    if how == "PyTorch":
        torch: Any = importlib.import_module("torch")
        return torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
    cuda = Cuda()
    cuda.take(size_bytes)
    return cuda
