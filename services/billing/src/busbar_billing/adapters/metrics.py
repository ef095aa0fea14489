"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECORDS_POSTED = Counter("busbar_billing_records_posted", "Usage records charged to the ledger")
DUPLICATES = Counter("busbar_billing_duplicates", "Records and voids that were there already")
CONFLICTING = Counter(
    "busbar_billing_conflicting_records",
    "Records put aside because there was another of their request, with other content",
)
VOIDS_POSTED = Counter("busbar_billing_voids_posted", "Charges taken back")
UNPRICED = Counter(
    "busbar_billing_unpriced_records", "Records rated by the fallback class", ["deployment"]
)
CLOCK_CORRECTED = Counter(
    "busbar_billing_clock_corrected",
    "Records of gateways whose clock was off, moved to when their stream stored them",
)
DEAD_LETTERS = Counter("busbar_billing_dead_letters", "Messages given up", ["consumer"])
RETRIES = Counter("busbar_billing_retries", "Messages handed back for a later try", ["consumer"])
MEASURED = Counter("busbar_billing_measured_records", "Measured work stored")
POSTING_SECONDS = Histogram(
    "busbar_billing_posting_seconds",
    "Duration of a posting transaction",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
LAG_MESSAGES = Gauge(
    "busbar_billing_lag_messages", "Messages waiting in the stream when last asked", ["consumer"]
)
LAG_SECONDS = Gauge(
    "busbar_billing_lag_seconds",
    "Age of the oldest message that waits, when last asked",
    ["consumer"],
)
FRESH_LAG_SECONDS = Gauge(
    "busbar_billing_fresh_lag_seconds",
    "Age of the oldest of the records just posted beside a backlog; 0 without one",
)
EVENTS_DROPPED = Counter("busbar_billing_events_dropped", "Events that could not be published")
BUCKET_WRITES = Counter(
    "busbar_billing_bucket_writes", "Entries written for gateways", ["bucket", "change"]
)
DATABASE_UP = Gauge("busbar_billing_database_up", "1 when the database answered when last asked")
UNCOVERED = Counter(
    "busbar_billing_uncovered_nanos",
    "Charges that their lease did not cover, in nanos, by where they were taken from instead",
    ["source"],
)
LEASE_ASKS = Counter("busbar_billing_lease_asks", "Asks of gateways for credit", ["outcome"])
LEASES_RECLAIMED = Counter("busbar_billing_leases_reclaimed", "Leases closed")
AUDIT_BREACHES = Gauge(
    "busbar_billing_audit_breaches", "What the auditor found and nothing has repaired", ["check"]
)
AUDIT_ROWS = Counter("busbar_billing_audit_rows", "Rows the auditor looked at", ["check"])
AUDIT_CLEAN = Gauge(
    "busbar_billing_audit_clean_timestamp_seconds",
    "When the auditor last had looked at all that was posted and knew of no breach",
)
AUDIT_LAG = Gauge(
    "busbar_billing_audit_lag_seconds", "Age of the newest transfer that was looked at"
)
AUDIT_SWEPT = Gauge(
    "busbar_billing_audit_swept_timestamp_seconds", "When all was last audited from zero"
)
PAYMENTS_REFUSED = Counter(
    "busbar_billing_payments_refused",
    "Events of the payment provider that cannot be right; see GET /admin/v1/payments/events",
)
WEBHOOK_ATTEMPTS = Counter(
    "busbar_billing_webhook_attempts", "Attempts to tell tenants' webhooks something", ["outcome"]
)
BALANCES_TOLD = Counter(
    "busbar_billing_balances_told", "Tenants told of a balance that is low or exhausted", ["level"]
)
STATEMENTS_ISSUED = Counter(
    "busbar_billing_statements_issued", "Statements of months that were closed by themselves"
)
STATEMENTS_OVERDUE = Gauge(
    "busbar_billing_statements_overdue",
    "Tenants whose month could not be closed when that was last tried",
)
