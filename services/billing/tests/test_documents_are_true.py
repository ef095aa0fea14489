"""Both APIs answer as their OpenAPI documents say, whatever they are asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from account_parts import Account
from billing_parts import TOKEN, Service
from true_document import LIMIT_S, check_document

EXAMPLES = 2


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_customers_document_is_true(mine: Account, tmp_path: Path) -> None:
    # It would revoke the key with which it asks.
    kept = ("--exclude-method", "DELETE", "--exclude-path-regex", "rotate$")
    check_document(mine.url, mine.keys["administer"]["key"], EXAMPLES, *kept, cwd=tmp_path)


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_operators_document_is_true(billing: Service, tmp_path: Path) -> None:
    # A price book would hold for the other tests, too; its fields have tests of their own.
    kept = ("--exclude-path", "/admin/v1/prices")
    check_document(billing.http_url, TOKEN, EXAMPLES, *kept, cwd=tmp_path)
