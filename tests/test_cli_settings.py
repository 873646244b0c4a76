"""Wrong `QRAF_...` variables: told by the names that were typed, without what was in them."""

from __future__ import annotations

import os

import pytest

from qraf.cli import wrong_settings
from qraf.cli.serve import make_settings
from qraf.errors import InvalidRequest
from qraf.settings import Settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("QRAF_LIMITS__MAX_KK", "3", "QRAF_LIMITS__MAX_KK: no such setting; did you mean QRAF_LIMITS__MAX_K?"),
        ("QRAF_LIMITS__MAX_K", "-3", "QRAF_LIMITS__MAX_K: Input should be greater"),
        ("qraf_gateway__port", "99999", "qraf_gateway__port: "),
        ("QRAF_QUOTAS__KEY", "{requests:1}", "QRAF_QUOTAS__KEY: must be JSON"),
        ("QRAF_GATEWAY__ORIGINS", "https://a", "QRAF_GATEWAY__ORIGINS: must be JSON"),
        (
            "QRAF_QUOTAS__KEY",
            '{"request": "1/day"}',
            "QRAF_QUOTAS__KEY request: no such setting; did you mean requests?",
        ),
        ("QRAF_QUOTAS__KEY", '{"requests": "1/week"}', "QRAF_QUOTAS__KEY requests: must be a rate"),
        ("QRAF_QUOTAS__ROLES", '{"viewr": {"items": 1}}', "QRAF_QUOTAS__ROLES viewr"),
        ("QRAF_QUOTAS__ROLES", '{"viewer": {"item": 1}}', "roles.viewer.item: "),
        ("QRAF_GATEWAY__ORIGINS", '["https://app.example/"]', "QRAF_GATEWAY__ORIGINS 0: must be an origin"),
        ("QRAF_GATEWAY__ORIGINS", '["app.example"]', "QRAF_GATEWAY__ORIGINS 0: must be an origin"),
        (
            "QRAF_AUTH__JWT__SECRT",
            "s3cret",
            "QRAF_AUTH__JWT__SECRT: no such setting; did you mean QRAF_AUTH__JWT__SECRET?",
        ),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequest) as wrong:
        make_settings()
    assert said in str(wrong.value)
    assert "s3cret" not in str(wrong.value)


def test_variables_that_are_no_settings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("QRAF_")]:
        monkeypatch.delenv(name)
    for name in ("QRAF_LIMTS__MAX_K", "QRAF_PORT", "QRAF_APPLES", "QRAF_URL", "QRAF_API_KEY", "QRAF_DATA", "PATH"):
        monkeypatch.setenv(name, "x")
    assert wrong_settings.unknown(Settings) == [
        "QRAF_APPLES is no setting",
        "QRAF_LIMTS__MAX_K is no setting; did you mean QRAF_LIMITS__MAX_K?",
        "QRAF_PORT is no setting; did you mean QRAF_GATEWAY__PORT?",
    ]
