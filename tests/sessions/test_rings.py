from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qraf.sessions.rings import RingPool


def test_frames_are_kept_by_seq_and_the_oldest_go() -> None:
    ring = RingPool(max_frames=3, group_bytes=1 << 20, total_bytes=1 << 20).open("g")
    assert (ring.first, ring.last) == (1, 0)
    for number in range(1, 6):
        ring.push(b"%d" % number)
    assert (ring.first, ring.last) == (3, 5)
    assert [ring.get(seq) for seq in range(1, 7)] == [None, None, b"3", b"4", b"5", None]


def test_ended_rings_go_before_running_ones_and_other_groups_are_left_alone() -> None:
    pool = RingPool(max_frames=100, group_bytes=1000, total_bytes=10_000)
    ended, running, elsewhere = pool.open("g"), pool.open("g"), pool.open("h")
    for ring in (ended, running, elsewhere):
        ring.push(b"x" * 400)
    ended.has_ended = True
    running.push(b"x" * 400)
    assert (ended.size, ended.first) == (0, 2)
    assert running.first == 1
    running.push(b"x" * 400)
    running.push(b"x" * 400)
    assert running.first > 1
    assert elsewhere.first == 1


def test_a_tenant_has_a_cap_of_its_own() -> None:
    pool = RingPool(max_frames=100, group_bytes=10_000, tenant_bytes=1000, total_bytes=10_000)
    other = pool.open("a", "acme")
    other.push(b"x" * 800)
    mine = [pool.open(f"s{number}", "bolt") for number in range(8)]
    for ring in mine:
        ring.push(b"x" * 400)
    assert sum(ring.size for ring in mine) <= 1000
    assert other.first == 1


def test_when_all_is_full_the_tenant_that_holds_most_gives_way() -> None:
    pool = RingPool(max_frames=1000, group_bytes=10_000, tenant_bytes=3000, total_bytes=4000)
    small = [pool.open(f"a{number}", "acme") for number in range(3)]
    for ring in small:
        ring.push(b"x" * 500)
        ring.has_ended = True  # what would go first, were it not for whose it is
    large = pool.open("b", "bolt")
    for _ in range(50):
        large.push(b"x" * 200)
    assert [ring.first for ring in small] == [1, 1, 1]
    assert pool.size <= 4000
    assert large.get(50) is not None


def test_a_frame_that_is_larger_than_everything_is_not_kept_and_does_no_harm() -> None:
    pool = RingPool(max_frames=10, group_bytes=1000, total_bytes=1000)
    ring = pool.open("g")
    ring.push(b"x" * 5000)
    assert (ring.first, ring.last, pool.size) == (2, 1, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["push", "push", "push", "end", "close"]), st.integers(0, 900))
    )
)
def test_no_group_and_not_all_together_hold_more_than_they_may(steps: list[tuple[int, str, int]]) -> None:
    pool = RingPool(max_frames=5, group_bytes=2000, tenant_bytes=3000, total_bytes=4000)
    rings = {number: pool.open(f"g{number % 3}", f"t{number % 3 // 2}") for number in range(6)}
    for number, step, size in steps:
        ring = rings.get(number)
        if ring is None:
            continue
        if step == "push":
            ring.push(b"x" * size)
        elif step == "end":
            ring.has_ended = True
        else:
            rings.pop(number).close()
        assert pool.size == sum(one.size for one in rings.values()) <= 4000
        for group in range(3):
            assert sum(one.size for number, one in rings.items() if number % 3 == group) <= 2000
        assert sum(one.size for one in rings.values() if one.tenant == "t0") <= 3000
    for ring in rings.values():
        ring.close()
    assert pool.size == 0
    assert not pool._groups
    assert not pool._tenants
