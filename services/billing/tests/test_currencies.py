"""The currencies that people may pay in, beside the list of a library that others keep."""

from __future__ import annotations

import pycountry
from busbar_billing.domain.currencies import ACTIVE

FUNDS = {"BOV", "CHE", "CHW", "CLF", "COU", "MXV", "USN", "UYI", "UYW"}
METALS_AND_BONDS = {"XAG", "XAU", "XBA", "XBB", "XBC", "XBD", "XPD", "XPT"}
UNITS_OF_ACCOUNT = {"XAD", "XDR", "XSU", "XUA"}
NONE_AND_TESTS = {"XTS", "XXX"}


def test_the_currencies_are_those_of_iso_4217_that_people_pay_in() -> None:
    listed = {one.alpha_3 for one in pycountry.currencies}
    nobody_pays_in = FUNDS | METALS_AND_BONDS | UNITS_OF_ACCOUNT | NONE_AND_TESTS

    assert listed - ACTIVE == nobody_pays_in
    assert ACTIVE - listed == set()
