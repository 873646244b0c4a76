"""A conversation over WebSocket, in both framings, with the real service behind it."""

from __future__ import annotations

import pytest

from tests.gateway.wire import Wire


@pytest.mark.parametrize("subprotocol", ["qraf.v1", "qraf.v1+msgpack"])
async def test_a_plain_client_holds_a_conversation(server, subprotocol) -> None:
    session = "ann-" + subprotocol[-4:]
    async with Wire(server.url, subprotocol=subprotocol) as wire:
        assert wire.welcome["type"] == "welcome"
        assert wire.welcome["limits"]["max_frame_bytes"] == 1024 * 1024
        opened = await wire.ask({"type": "session.open", "id": "1", "session": session})
        assert (opened["type"], opened["created"], opened["node"]) == ("session.opened", True, "desk")

        done = await wire.ask(
            {"type": "write", "id": "2", "session": session, "items": [{"text": "Ann is allergic to nuts."}]}
        )
        assert (done["type"], done["accepted"], done["rejected"]) == ("write.done", 1, [])
        assert done["state"]["items"] == 1

        found = await wire.ask({"type": "recall", "id": "3", "session": session, "text": "allergic to nuts"})
        assert found["type"] == "recall.done"
        assert found["evidence"][0]["text"] == "Ann is allergic to nuts."

        await wire.send({"type": "enhance", "id": "4", "session": session, "prompt": "What is Ann allergic to?"})
        frames = await wire.until("response.done")
        assert frames[0]["type"] == "response.created"
        assert frames[0]["id"] == "4"
        assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
        assert len({frame["stream"] for frame in frames}) == 1
        text = "".join(frame["text"] for frame in frames if frame["type"] == "response.delta")
        assert text == "Nuts are bad for Ann."
        assert frames[-1]["status"] == "completed"
        assert (await wire.ask({"type": "ping", "id": "5"})) == {"type": "pong", "id": "5"}
