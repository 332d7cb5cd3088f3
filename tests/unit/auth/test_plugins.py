"""Our checkers are plugins of strcred like any other."""

from __future__ import annotations

import pytest
from twisted.cred.strcred import ICheckerFactory, findCheckerFactory
from zope.interface.verify import verifyObject

from relayd.auth.realm import CREDENTIAL_INTERFACES


@pytest.mark.parametrize("kind", ["secret", "sqlite", "memory", "file"])
def test_kinds_are_found_and_explain_themselves(kind: str) -> None:
    """`--auth` finds each kind, `--help-auth` and `--help-auth-type` have something to show, and STUN can use it."""
    factory = findCheckerFactory(kind)
    assert verifyObject(ICheckerFactory, factory)
    assert factory.authHelp.strip()
    assert factory.argStringFormat
    assert set(factory.credentialInterfaces) & set(CREDENTIAL_INTERFACES)
