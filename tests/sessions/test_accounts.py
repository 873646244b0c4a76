"""Accounts: the narrower of a key's allowance and its tenant's counts, and what is refused costs nothing."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from qraf.clock import SystemClock
from qraf.errors import QuotaExceeded, RateExceeded
from qraf.sessions import accounts as accounts_module
from qraf.sessions.accounts import Account, Accounts
from qraf.sessions.meters import Meters
from qraf.settings import QuotaSettings
from qraf.storage.journal import Journal


@pytest.fixture
def journal():
    journal = Journal.open("sqlite:///:memory:")
    yield journal
    journal.close()


def accounts(journal: Journal, **settings) -> Accounts:
    return Accounts(QuotaSettings(**settings), journal.usage, SystemClock(), Meters())


async def passed(account: Account, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            await account.frame()
            count += 1
        except RateExceeded:
            pass
    return count


def test_the_later_of_all_role_and_key_changes_some_of_the_earlier() -> None:
    settings = QuotaSettings(
        key={"items": 100, "sockets": 9},
        roles={"viewer": {"sockets": 3}},
        keys={"k1": {"items": "7"}, "acme sub:ann": {"items": 8}},
        tenants={"acme": {"items": 1000}},
    )
    found = {key: settings.of_key("acme", key, "viewer") for key in ("k0", "k1", "sub:ann")}
    assert {key: (one.items, one.sockets) for key, one in found.items()} == {
        "k0": (100, 3),
        "k1": (7, 3),
        "sub:ann": (8, 3),
    }
    assert settings.of_key("other", "sub:ann", "client").items == 100
    assert (settings.of_tenant("acme").items, settings.of_tenant("brook").items) == (1000, 50_000_000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": {"requests": "10"}},
        {"key": {"frames": "10/week"}},
        {"key": {"frames": "0/minute"}},
        {"tenants": {"acme": {"itemz": 1}}},
        {"roles": {"viewer": {"items": -1}}},
        {"keys": {"k1": {"tokens": 5}}},
    ],
)
def test_settings_that_cannot_be_are_refused_at_the_start(wrong) -> None:
    with pytest.raises(ValidationError):
        QuotaSettings(**wrong)


async def test_a_tenants_keys_share_its_rate_and_another_tenant_has_its_own(journal) -> None:
    every = accounts(journal, tenant={"frames": "10/hour"}, key={"frames": "7/hour"})
    first, second = every.of("acme", "k1", "client"), every.of("acme", "k2", "client")
    assert await passed(first, 20) == 7
    assert await passed(second, 20) == 3
    assert await passed(every.of("brook", "k3", "client"), 20) == 7
    assert first.standings("frames")[0].policy == "key.frames"
    assert second.standings("frames")[0].policy == "tenant.frames"
    assert first.is_near()
    rejected = every.meters.registry.get_sample_value
    assert rejected("qraf_quota_rejections_total", {"policy": "key.frames"}) == 26
    assert rejected("qraf_quota_rejections_total", {"policy": "tenant.frames"}) == 17


async def test_what_the_tenant_refuses_the_key_has_not_used(journal) -> None:
    every = accounts(journal, tenant={"write_bytes": "100/hour"}, key={"write_bytes": "150/hour"})
    one = every.of("acme", "k1", "client")
    await one.write(90)
    for _ in range(5):
        with pytest.raises(RateExceeded, match=r"tenant\.write_bytes"):
            await one.write(60)
    assert one._shares[0].meters["write_bytes"].remaining == 60


async def test_what_is_open_is_bounded_for_the_key_and_for_its_tenant(journal) -> None:
    every = accounts(journal, tenant={"sockets": 3}, key={"sockets": 2})
    first, second = every.of("acme", "k1", "client"), every.of("acme", "k2", "client")
    await first.enter("sockets")
    await first.enter("sockets")
    with pytest.raises(QuotaExceeded, match=r"key\.sockets"):
        await first.enter("sockets")
    await second.enter("sockets")
    with pytest.raises(QuotaExceeded, match=r"tenant\.sockets") as fault:
        await second.enter("sockets")
    assert (fault.value.retryable, fault.value.retry_after_ms) == (True, 1000)
    first.leave("sockets")
    await second.enter("sockets")


async def test_accounts_that_are_idle_are_forgotten_and_open_ones_are_not(journal, monkeypatch) -> None:
    monkeypatch.setattr(accounts_module, "_MOST_KNOWN", 50)
    every = accounts(journal)
    kept = every.of("acme", "k0", "client")
    await kept.enter("sockets")
    for number in range(200):
        every.of(f"t{number}", "k", "client")
    assert len(every._known) <= 50
    assert len(every._shares) <= 51
    assert every.of("acme", "k0", "client") is kept
