"""No route and no frame is forgotten, and each role may what it may and nothing more."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest

from qraf.errors import NotAllowed
from qraf.frames import ClientFrame, Enhance, Hello, Resume, Watch
from qraf.gateway.security.guard import (
    ANYONE,
    FRAMES,
    ORDERS,
    PUBLIC,
    ROUTES,
    TOPICS,
    check_frame,
    check_route,
    check_scope,
    needed,
)
from qraf.gateway.security.principal import ANONYMOUS, ROLES, SCOPES, Principal, scopes_of
from qraf.state_frames import StateCommand
from qraf.state_orders import StateDelete, StateOrder, StateRead


def principal(role) -> Principal:
    return Principal(subject="x", role=role, scopes=scopes_of(role))


def tags(union: object) -> set[str]:
    return {str(kind.__struct_config__.tag) for kind in get_args(union)}


async def test_every_route_has_a_rule_and_every_rule_a_route(place) -> None:
    async with place.http() as http:
        document = (await http.get("/v1/openapi.json")).json()
    there = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert there == {(method, path.replace(":path}", "}")) for method, path in ROUTES}
    for path, methods in document["paths"].items():
        for method, found in methods.items():
            rule = next(s for (m, p), s in ROUTES.items() if (m, p.replace(":path}", "}")) == (method.upper(), path))
            assert found["security"] == ([] if rule == PUBLIC else [{"bearer": []}])
            assert found.get("x-qraf-scope", PUBLIC) == rule
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_every_frame_order_and_topic_has_a_rule() -> None:
    assert set(FRAMES) == tags(ClientFrame)
    assert set(ORDERS) == tags(StateOrder)
    rules = {*ROUTES.values(), *FRAMES.values(), *ORDERS.values(), *TOPICS.values()}
    assert rules - {PUBLIC, ANYONE} == set(SCOPES)


def test_each_role_may_what_the_one_before_may_and_more() -> None:
    for lower, higher in pairwise(ROLES):
        assert scopes_of(lower) < scopes_of(higher)
    assert scopes_of("admin") == set(SCOPES)
    assert not any(scope.endswith(":write") for scope in scopes_of("viewer"))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_meets_the_guard(role) -> None:
    who = principal(role)
    for (method, path), scope in ROUTES.items():
        if scope in (PUBLIC, ANYONE) or who.may(scope):
            check_route(who, method, path)
        else:
            with pytest.raises(NotAllowed, match=scope):
                check_route(who, method, path)


def test_nobody_may_only_what_is_public() -> None:
    for (method, path), scope in ROUTES.items():
        if scope not in (PUBLIC, ANYONE):  # for ANYONE the door has asked for a credential before
            with pytest.raises(NotAllowed):
                check_route(ANONYMOUS, method, path)


def test_a_frame_needs_all_that_it_does() -> None:
    assert needed(Enhance(id="1", prompt="x", session="a", remember=True)) == (
        "responses:write",
        "memory:read",
        "memory:write",
    )
    assert needed(Enhance(id="1", prompt="x", collections=())) == ("responses:write",)
    assert needed(Watch(id="1", topic="network")) == ("sessions:read", "network:operate")
    assert needed(StateCommand(id="1", order=StateDelete(ids=("st_1",)))) == ("states:read", "states:write")
    assert needed(Hello(resume=(Resume(stream="s", epoch="e"),))) == (PUBLIC, "responses:read")
    check_frame(principal("viewer"), StateCommand(id="1", order=StateRead(ids=("st_1",))))
    with pytest.raises(NotAllowed, match="states:write"):
        check_frame(principal("viewer"), StateCommand(id="1", order=StateDelete(ids=("st_1",))))


def test_what_goes_beyond_a_route_needs_a_scope_of_its_own() -> None:
    check_scope(principal("client"), "sessions:write", "`apply`")
    with pytest.raises(NotAllowed, match="sessions:write"):
        check_scope(principal("viewer"), "sessions:write", "`apply`")


def test_a_route_without_a_rule_is_not_served() -> None:
    with pytest.raises(KeyError):
        check_route(principal("admin"), "GET", "/v1/forgotten")
