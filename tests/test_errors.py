"""Every error crosses a process boundary as itself."""

from __future__ import annotations

import inspect
import pickle

import pytest

from qraf import errors

SAMPLES = [
    errors.InvalidState("rho", "have shape (..., d, d)", "it has (2, 3)"),
    errors.InvalidRequest("must be at least 1", "/k"),
    errors.KeyReused("came with another body before", "/headers/idempotency-key"),
    errors.KeyInUse(500),
    errors.RecalledNotAbsorbed("never again", "/items/0/role"),
    errors.ProtocolError("not JSON", "", 4400),
    errors.DuplicateId("7"),
    errors.InvalidTopology((errors.TopologyFault("a.yaml", 3, 5, "unknown node 'x'", "did you mean 'y'?"),)),
    errors.NotFound("item", "itm_1"),
    errors.SessionNotFound("ses_1"),
    errors.SessionClosed("ses_1", "it is paused"),
    errors.VersionConflict("state", "st_1", 3, 4),
    errors.NoRoute("a", "b", ("c",)),
    errors.NodeDown("a", "host died"),
    errors.EngineFailed("smollm2", "gone"),
    errors.LimitExceeded("max_k", 200, 201, 5),
    errors.RateExceeded("key.requests", 600, 60, 250),
    errors.QuotaExceeded("key.items", 1000),
    errors.ReplayGone("rsp_1", 7),
    errors.RunsElsewhere("rsp_1", "alpha:12"),
    errors.GatewayLost("rsp_1"),
    errors.Superseded("str_1"),
    errors.NotAllowed("listening on 0.0.0.0", "there is no authentication yet"),
    errors.OriginRefused("a request from a page of 'https://evil.example'", "only pages of this machine may"),
    errors.NotAvailable("auth.refresh"),
    errors.NotReady("draining", 500),
    errors.NotAuthenticated(),
    errors.CredentialInvalid("there is no such API key"),
    errors.TokenAlgorithmRefused("the token's algorithm must be HS256, but is 'none'"),
    errors.TokenAudienceWrong("the token is for another audience (`aud`)"),
    errors.TokenIssuerWrong("the token is from another issuer (`iss`)"),
    errors.TokenNotYetValid("the token is not valid yet (`nbf` or `iat`)"),
    errors.TicketInvalid("the ticket is none of ours"),
    errors.TicketUsed("the ticket was used already"),
    errors.CredentialExpired("the token has expired"),
    errors.CredentialRevoked("API key 1 was revoked"),
    errors.StorageFailed("commit", "disk full"),
    errors.StorageFailed("commit", "the server is away", 1000),
    errors.SealBroken("default", "s/ann", 7, "its text was changed"),
    errors.KeysMissing("the file is not there"),
    errors.ServerError("not_found", "no item", "/item", False, None),
    errors.CannotConnect("ws://127.0.0.1:1", "refused"),
    errors.ConnectionLost("the server closed", 1001),
    errors.TimedOut("write", 5.0),
    errors.CannotListen("127.0.0.1", 80, "permission denied"),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
def test_error_survives_pickling_with_its_facts(error: errors.QrafError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_every_class_is_sampled() -> None:
    classes = {c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.QrafError)}
    assert classes - {errors.QrafError} == {type(error) for error in SAMPLES}


def test_every_error_says_something_and_is_in_the_list() -> None:
    for error in SAMPLES:
        assert str(error).strip()
        assert type(error).__name__ in errors.__all__
        assert 400 <= error.status < 600
