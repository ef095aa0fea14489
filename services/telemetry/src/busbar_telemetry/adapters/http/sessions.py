"""The console's sign-in: an operator token once, then a signed cookie.

The cookie holds when it ends and a signature made with the operator token, so it
survives a restart and dies with the token.
"""

from __future__ import annotations

import hashlib
import hmac

from busbar_observability.operator_gate import OperatorToken

COOKIE = "busbar_console"
LIFETIME_S = 12 * 3600

_FAILURES_MAX = 10
_FAILURE_WINDOW_S = 60.0


class Sessions:
    """Checks operator tokens and console sessions; all comparisons take constant time."""

    def __init__(self, operator_token: str) -> None:
        self.token = OperatorToken(operator_token)
        self._signing_key = operator_token.encode()

    def issue(self, now_unix_s: float) -> str:
        """A cookie value, good for LIFETIME_S."""
        ends = str(int(now_unix_s) + LIFETIME_S)
        return f"{ends}.{self._signature(ends)}"

    def knows_session(self, cookie: str, now_unix_s: float) -> bool:
        """Whether `cookie` was issued here and has not ended."""
        ends, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(ends).encode()):
            return False
        return now_unix_s < int(ends)

    def _signature(self, ends: str) -> str:
        message = f"busbar console session until {ends}"
        return hmac.new(self._signing_key, message.encode(), hashlib.sha256).hexdigest()


class FailureLimit:
    """Refuses further sign-ins for a while after many wrong tokens."""

    def __init__(self) -> None:
        self._failed_at_s: list[float] = []

    def is_reached(self, now_s: float) -> bool:
        """Whether there were too many failures in the last minute."""
        self._failed_at_s = [at for at in self._failed_at_s if now_s - at < _FAILURE_WINDOW_S]
        return len(self._failed_at_s) >= _FAILURES_MAX

    def failed(self, now_s: float) -> None:
        """Count a wrong token."""
        self._failed_at_s.append(now_s)
