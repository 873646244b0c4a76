"""One connection in memory, and the model that says what may come on it.

The model knows only docs/protocol.md: every command has one answer, with its id and of its type; streams count 1, 2, 3;
a response has one end; what is no frame ends the connection with a stated code, and what is one does not.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from qraf.gateway.protocol import CLOSE_CODES
from tests.fuzz.frames import JSON, Said, broken, encoded

__all__ = ["Broken", "Heard", "Known", "Talk"]

ANSWERS: dict[str, set[str]] = {
    "hello": {"welcome"},
    "ping": {"pong"},
    "session.open": {"session.opened"},
    "write": {"write.done"},
    "recall": {"recall.done"},
    "enhance": {"response.created"},
    "state": {"state.done"},
    "decode.open": {"decode.opened"},
    "decode.rounds": {"decode.committed"},
    **{name: {"ack"} for name in ("cancel", "watch", "unwatch", "auth.refresh", "decode.close")},
}
ANY = set().union(*ANSWERS.values())


class Broken(AssertionError):
    """The server did what the protocol does not allow."""


@dataclass
class Heard:
    """A response, over all the connections that read it."""

    stream: str
    epoch: str
    seq: int = 0
    """The last that anybody has seen."""
    status: str = ""
    texts: dict[int, str] = field(default_factory=dict)
    """By `seq`, of the deltas that were not merged anew: each `seq` says the same whoever reads it."""


@dataclass
class Known:
    """What all connections of a program know together."""

    responses: dict[str, Heard] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    decoders: list[str] = field(default_factory=list)
    frames: int = 0
    ids: int = 0
    closes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    results: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    caught_up: int = 0
    """Streams that went on after a close for reading too slowly."""


class Talk:
    """A WebSocket's two ends without a socket: `receive` and `send` are for the server."""

    def __init__(self, known: Known, framing: str) -> None:
        self.known, self.framing = known, framing
        self.code: int | None = None
        self.was_dropped = self.may_close = self.must_close = False
        self.loose = 0
        """Spoilt frames that are owed an outcome under whatever id."""
        self.owed: dict[str, list[str]] = {}
        self.log: list[tuple[str, Any]] = []
        self.problems: list[str] = []
        self.resumed: dict[str, str] = {}
        self.quiet = asyncio.Event()
        self.quiet.set()
        self._inbox: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        self._gate = asyncio.Event()
        self._gate.set()
        self._is_deaf = self._is_greeted = False
        self._seqs: dict[str, int] = {}
        self._replays: set[str] = set()
        self._gaps: set[str] = set()
        self._keyed: set[str] = set()
        self._running: set[str] = set()
        self._ended: set[str] = set()
        self._last_id = ""
        self._answers: dict[str, int] = defaultdict(int)

    # ---------------------------------------------------------------------------------------------------- the server's
    async def receive(self) -> MutableMapping[str, Any]:
        return await self._inbox.get()

    async def send(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] == "websocket.close" and not self._is_deaf:
            self._gate.set()
        await self._gate.wait()
        if self.was_dropped:
            raise OSError("the client went")
        if event["type"] == "websocket.send":
            text = event.get("text")
            if (text is None) == (self.framing == JSON):
                self.problems.append("a message of the other framing")
            self._hear(json.loads(text) if text is not None else msgspec.msgpack.decode(event["bytes"]))
        elif event["type"] == "websocket.close":
            self._closed(event["code"])

    # ---------------------------------------------------------------------------------------------------- the client's
    def say(self, said: Said) -> None:
        """Send a frame, or what once was one."""
        if self.is_over:
            return
        how, what, seed = said
        frame = self._resolved(what)
        message = encoded(frame, self.framing)
        if how == "valid" and self._is_greeted:
            self._owe(frame["id"], frame["type"])
            if "key" in frame:
                self._keyed.add(frame["id"])
        else:
            self.loose += 1
            self.quiet.clear()
        if how == "broken":
            message = broken(message, self.framing, seed)
            self.may_close = True
            self.must_close = isinstance(message, str) != (self.framing == JSON) or len(message) > 65_536
        elif not self._is_greeted:  # a command in place of `hello`
            self.may_close = self.must_close = True
        self._tell(message)

    def hello(self, said: Said) -> None:
        """Say hello, with the streams to go on with that are known; or, in its place, something else."""
        how, what, _ = said
        if how == "spoilt":  # refused or not, the connection stands: what comes after is a good one, or one too many
            self._is_greeted = True
            self.say(said)
            what = {"type": "hello"}
        elif what["type"] != "hello":
            self.say(said)
            return
        self._is_greeted = True
        frame = dict(what)
        wanted = []
        for one in frame.pop("resume", ()):
            name = one["stream"].removeprefix("@stream ")
            if name.isdigit():
                if int(name) >= len(self.known.order):
                    continue
                heard = self.known.responses[self.known.order[int(name)]]
                after_seq = heard.seq if one["after_seq"] == "@seen" else one["after_seq"]
                one = {"stream": heard.stream, "epoch": heard.epoch, "after_seq": after_seq}
            if one["stream"] in self.known.responses:
                self._seqs[one["stream"]] = one["after_seq"]
                if not one["after_seq"]:
                    self._replays.add(one["stream"])
            wanted.append(one)
        if wanted:
            frame["resume"] = wanted
        self._owe("", "hello")
        self._tell(encoded(frame, self.framing))

    def stall(self, *, for_good: bool) -> None:
        """Read no more: nothing passes, or nothing but the close, because the client reads again by then."""
        self._gate.clear()
        self._is_deaf = for_good
        self.may_close = True

    def to_resume(self) -> list[dict[str, Any]]:
        """The streams that it read when it ended, each after the last that it had read."""
        heard = [self.known.responses[stream] for stream in self._running if stream in self.known.responses]
        return [{"stream": one.stream, "epoch": one.epoch, "after_seq": self._seqs[one.stream]} for one in heard]

    def drop(self) -> None:
        """Go away without a word."""
        if not self.was_dropped:
            self.was_dropped = True
            self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
        self._gate.set()
        self.quiet.set()

    @property
    def is_deaf(self) -> bool:
        """Whether it reads no more, for good."""
        return self._is_deaf and not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether one of the two has ended it."""
        return self.was_dropped or self.code is not None

    def told(self) -> str:
        """The last of what went both ways."""
        return "\n".join(f"{way} {what!r:.300}" for way, what in self.log)[-6000:]

    @property
    def is_reading(self) -> bool:
        """Whether it takes what comes."""
        return not self.is_over and self._gate.is_set()

    def unanswered(self) -> str:
        """What is owed."""
        return f"{self.owed}, {self.loose} spoilt, responses {self._running}; it must close: {self.must_close}"

    # ------------------------------------------------------------------------------------------------------ the model
    def _tell(self, message: str | bytes) -> None:
        self.known.frames += 1
        self.log.append((">", message))
        kind = "text" if isinstance(message, str) else "bytes"
        self._inbox.put_nowait({"type": "websocket.receive", kind: message})

    def _owe(self, id: str, kind: str) -> None:
        self.owed.setdefault(id, []).append(kind)
        self._last_id = id
        self.quiet.clear()

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("@"):
            kind, _, number = value[1:].partition(" ")
            if kind == "id":
                self.known.ids += 1
                return f"c{self.known.ids}"
            if kind == "command":
                return self._last_id
            names = self.known.decoders if kind == "decoder" else self.known.order
            return names[int(number)] if number.isdigit() and int(number) < len(names) else "str_none"
        if isinstance(value, dict):
            return {key: self._resolved(inner) for key, inner in value.items()}
        return [self._resolved(inner) for inner in value] if isinstance(value, list) else value

    def _hear(self, frame: dict[str, Any]) -> None:
        self.log.append(("<", frame))
        kind, name, stream = frame["type"], frame.get("id", ""), frame.get("stream", "")
        if self.code is not None:
            self.problems.append(f"{kind} after the close")
        if kind == "goodbye" or (kind == "ack" and frame["status"] == "queued"):
            return
        if "seq" in frame:
            self._count(kind, stream, frame)
        if kind == "error" and stream:
            return  # a watch has ended
        if kind == "error" and frame["error"]["code"] == "internal":
            self.problems.append(f"an internal error: {frame}")
        if kind == "decode.opened":
            self.known.decoders.insert(0, stream)
        for one in frame.get("resumed", ()):
            if one["result"] not in ("replayed", "gap"):
                self._replays.discard(one["stream"])
            if one["result"] in ("replayed", "gap"):
                self._running.add(one["stream"])
            if one["result"] == "gap":
                self._gaps.add(one["stream"])
            self.known.results[one["result"]] += 1
            self.resumed[one["stream"]] = one["result"]
        if kind == "response.created":
            self._created(frame)
            if stream in self._replays:
                self._replays.discard(stream)  # of another connection's command
                return
            self._running.add(stream)
        if kind in ANY or kind == "error":
            self._answered(name, kind)

    def _created(self, frame: dict[str, Any]) -> None:
        stream = frame["stream"]
        if stream not in self.known.responses:
            self.known.responses[stream] = Heard(stream, frame["epoch"])
            self.known.order.insert(0, stream)

    def _count(self, kind: str, stream: str, frame: dict[str, Any]) -> None:
        seq, before = frame["seq"], self._seqs.get(stream, 0)
        if kind == "response.created" and seq == 1 and stream not in self._replays:
            before = 0  # maybe read anew, by its key; what is not kept any more is then left out
            if frame["id"] in self._keyed or frame["id"] not in self.owed:
                self._gaps.add(stream)
            self._ended.discard(stream)
        if stream in self._gaps and seq > max(1, before):
            self._gaps.discard(stream)  # from here on without holes
        elif seq != before + 1:
            self.problems.append(f"{stream}: {kind} has seq {seq} after {before}")
        if stream in self._ended:
            self.problems.append(f"{stream}: {kind} after its end")
        self._seqs[stream] = seq
        heard = self.known.responses.get(stream)
        if kind in ("response.done", "decode.done"):
            self._ended.add(stream)
            self._running.discard(stream)
            self._look_quiet()
        if heard is None:
            return
        heard.seq = max(heard.seq, seq)
        if kind == "response.done":
            if heard.status not in ("", frame["status"]):
                self.problems.append(f"{stream}: {frame['status']} after {heard.status}")
            heard.status = frame["status"]
        elif kind == "response.delta" and heard.texts.setdefault(seq, frame["text"]) != frame["text"]:
            self.problems.append(f"{stream}: seq {seq} says {frame['text']!r} after {heard.texts[seq]!r}")

    def _answered(self, id: str, kind: str) -> None:
        asked = self.owed.get(id)
        if asked:
            # of several with one id it is not told which of them an error refuses
            if kind != "error" and not any(kind in ANSWERS[one] for one in asked):
                self.problems.append(f"{kind} for {asked}")
            self._answers[id] += 1
            if self._answers[id] == len(asked):
                del self.owed[id], self._answers[id]
        elif self.loose:
            self.loose -= 1
        else:
            self.problems.append(f"{kind} with id {id!r} answers nothing")
        self._look_quiet()

    def _look_quiet(self) -> None:
        if not (self.owed or self.loose or self.must_close or self._running):
            self.quiet.set()

    def _closed(self, code: int) -> None:
        self.log.append(("<", f"close {code}"))
        if self.code is not None:
            self.problems.append("closed twice")
        self.code = code
        self.known.closes[code] += 1
        if code not in CLOSE_CODES:
            self.problems.append(f"an unknown close code {code}")
        if code in (1011, 1013) or (code not in (4009, 1001) and not self.may_close):
            self.problems.append(f"closed {code} for nothing")
        self.quiet.set()
