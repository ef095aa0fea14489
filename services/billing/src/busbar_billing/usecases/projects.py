"""Projects: what a tenant sorts its keys and its usage by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Project:
    """Part of a tenant. Archived: no key can be added to it any more."""

    project_id: str
    tenant_id: str
    name: str
    created_at: datetime
    archived_at: datetime | None
