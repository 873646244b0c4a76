"""`qraf chat`: a conversation with a session's memory."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.markup import escape

import qraf
from qraf.cli.output import console, errors, facts, guarded, print_json
from qraf.cli.render import evidence_table, figures_line, figures_table, route_line, route_table, shorten
from qraf.client import SyncClient, SyncResponse
from qraf.errors import ConnectionLost, QrafError
from qraf.frames import ResponseDelta, ResponseDone, ResponseEvidence, ResponseHop, ResponseRoute

__all__ = ["chat_command"]

_HELP = """\
/evidence      everything that the last answer rested on
/route         why these nodes, for the last prompt
/states        what the measured nodes said of their states
/recall TEXT   evidence for a text, without an answer
/session       this session and its figures
/help  /quit"""


def chat_command(
    url: str, *, session: str | None, collections: list[str] | None, remember: bool, max_tokens: int, as_json: bool
) -> None:
    """Read prompts until the input ends; stream the answers."""
    with guarded(as_json), qraf.connect_sync(url) as q:
        opened = q.open_session(session)
        talk = _Talk(q, opened.session, collections, remember=remember, max_tokens=max_tokens)
        if as_json:
            print_json(opened)
            for prompt in _lines():
                with guarded_prompt(as_json):
                    for frame in talk.ask(prompt):
                        print_json(frame)
            return
        state = "new" if opened.created else figures_line(opened.state)
        console.print(f"session [bold]{escape(opened.session)}[/] ({state}); /help, Ctrl-D ends")
        while (line := _read()) is not None:
            if line.startswith("/"):
                if not talk.command(line):
                    break
            elif line:
                with guarded_prompt(as_json):
                    talk.show(line)


class _Talk:
    """One conversation: asks, shows, and remembers the last response for the commands."""

    def __init__(
        self, q: SyncClient, session: str, collections: list[str] | None, *, remember: bool, max_tokens: int
    ) -> None:
        self._q, self._session, self._collections = q, session, collections
        self._remember, self._max_tokens = remember, max_tokens
        self._last: SyncResponse | None = None

    def ask(self, prompt: str) -> SyncResponse:
        self._last = self._q.enhance(
            prompt,
            session=self._session,
            collections=self._collections,
            route={"explain": True},
            generate={"max_tokens": self._max_tokens},
            remember=self._remember,
        )
        return self._last

    def show(self, prompt: str) -> None:
        """Stream one answer; Ctrl-C ends the answer, not the conversation."""
        is_writing = False
        try:
            for frame in self.ask(prompt):
                match frame:
                    case ResponseRoute():
                        console.print(f"route: {route_line(frame.hops)}", style="dim", markup=False)
                    case ResponseHop(error=error) if error:
                        console.print(f"node {frame.node}: {error}", style="yellow", markup=False)
                    case ResponseEvidence():
                        for item in frame.items[:3]:
                            text = shorten(" ".join(item.text.split()), 90)
                            console.print(f"  {item.probability:.2f} {item.node}: {text}", style="dim", markup=False)
                    case ResponseDelta():
                        is_writing = True
                        console.print(frame.text, end="", markup=False)
                    case ResponseDone():
                        if is_writing:
                            console.print()
                        _show_end(frame)
        except KeyboardInterrupt:
            console.print("\n(cancelled)", style="yellow")

    def command(self, line: str) -> bool:
        """Carry out a /command; False ends the conversation."""
        name, _, rest = line.partition(" ")
        last = self._last
        with guarded_prompt(False):
            match name:
                case "/quit" | "/exit" | "/q":
                    return False
                case "/recall" if rest.strip():
                    done = self._q.recall(
                        rest.strip(), session=self._session, collections=self._collections or (), explain=True
                    )
                    console.print(evidence_table(done.evidence))
                case "/session":
                    opened = self._q.open_session(self._session)
                    console.print(f"{opened.session} on {opened.node}: {figures_line(opened.state)}", markup=False)
                case "/evidence" if last is not None:
                    console.print(evidence_table(last.evidence))
                case "/route" if last is not None and last.route is not None:
                    console.print(route_table(last.route.hops, last.route.not_visited))
                case "/states" if last is not None:
                    console.print(figures_table(last.hops))
                case _:
                    console.print(_HELP, markup=False)
        return True


@contextlib.contextmanager
def guarded_prompt(as_json: bool) -> Iterator[None]:
    """A prompt that fails does not end the conversation; a lost connection does."""
    try:
        yield
    except ConnectionLost:
        raise
    except QrafError as error:
        if as_json:
            print_json({"error": facts(error)})
        else:
            errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)


def _show_end(done: ResponseDone) -> None:
    if done.status != "completed":
        why = done.error.detail if done.error else done.finish_reason
        console.print(f"({done.status}: {why})", style="yellow", markup=False)
    usage = done.usage
    first = f"first token after {usage.time_to_first_token_ms:.0f} ms, " if usage.time_to_first_token_ms else ""
    console.print(
        f"[{usage.completion_tokens} tokens, {first}{usage.total_ms / 1000:.1f} s; "
        f"{usage.evidence_items} pieces of evidence from {usage.nodes_visited} nodes]",
        style="dim",
        markup=False,
    )


def _read() -> str | None:
    try:
        return console.input("[bold]> [/]").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.strip()
