"""Work for replicas of a service that a test can see: who did it, in which version, and how long it took."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from qraf.errors import InvalidRequest, QrafError
from qraf.service_orders import Dequantize, Dequantized, ServiceAnswer, ServiceOrder
from qraf.settings import GeneratorSettings
from qraf.text.encoder import Encoder
from qraf.text.generator import Endpoint

ORDER = Dequantize(codes=b"", d=1, code="int8")
BAD = Dequantize(codes=b"", d=0, code="int8")
LARGEST = Dequantize(codes=b"", d=7, code="int8")


def tell(orders: Sequence[ServiceOrder], *, version: int, seconds: float) -> list[ServiceAnswer | QrafError]:
    """Wait for as long as a batch takes, then answer each order with this process's id (n) and version (d)."""
    time.sleep(seconds)
    return [
        InvalidRequest("is 0", "/d") if one == BAD else Dequantized(n=os.getpid(), d=version, rows=None)
        for one in orders
    ]


def die_once(orders: Sequence[ServiceOrder], *, mark: str) -> list[ServiceAnswer | QrafError]:
    """Kill this process at the first batch that finds no file `mark`."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return tell(orders, version=1, seconds=0.0)
    os.kill(os.getpid(), 9)
    raise AssertionError("unreachable")


def sizes(orders: Sequence[ServiceOrder]) -> list[ServiceAnswer | QrafError]:
    """Answer each order with the size of its batch (n)."""
    time.sleep(0.03)
    return [Dequantized(n=len(orders), d=1, rows=None) for _ in orders]


def broken(orders: Sequence[ServiceOrder]) -> list[ServiceAnswer | QrafError]:
    raise RuntimeError("a bug")


class ScriptedEngine:
    """An engine that is somewhere else: the model's name tells which process asked for it."""

    def __init__(self, settings: GeneratorSettings) -> None:
        self._url = settings.url

    def start(self) -> Endpoint:
        return Endpoint(self._url, f"scripted-{os.getpid()}")

    def alive(self) -> bool:
        return True

    def stop(self) -> None:
        pass


def no_encoder() -> Encoder:
    raise OSError("no weights")
