"""Whether every container of compose has a health check, and every image a user that is not root.

What neither compose's file nor its image says holds nowhere: no engine adds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_IMAGES = Path(__file__).resolve().parent / "images"
_INSTRUCTION = re.compile(r"^([A-Z]+) +(.*)$", re.MULTILINE)
_OWN = "busbar/"


def unwatched(compose: dict[str, Any]) -> Iterator[str]:
    """The services without a health check, unless they are to end and are waited for."""
    services = compose["services"]
    awaited = [
        (name, how["condition"])
        for service in services.values()
        for name, how in service.get("depends_on", {}).items()
    ]
    for name, service in services.items():
        check, image = service.get("healthcheck", {}), str(service["image"])
        if check.get("disable"):
            if (name, "service_completed_successfully") not in awaited:
                yield f"{compose['name']} {name}: its health check is switched off"
        elif not check.get("test") and not (
            image.startswith(_OWN) and "HEALTHCHECK" in _last_stage(image.removeprefix(_OWN))
        ):
            yield f"{compose['name']} {name}: no health check, here or in its image"


def privileged_images() -> Iterator[str]:
    """The images that do not say which user, by number, other than root they run as."""
    for dockerfile in sorted(_IMAGES.glob("*.Dockerfile")):
        user = _last_stage(dockerfile.stem).get("USER", "")
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user):
            yield f"{dockerfile.name}: its user is {user!r}, must be a number and not root"


def _last_stage(image: str) -> dict[str, str]:
    """The last of each instruction of the stage that is shipped."""
    text = (_IMAGES / f"{image}.Dockerfile").read_text()
    stage = re.split(r"^FROM ", text, flags=re.MULTILINE)[-1]
    return dict(_INSTRUCTION.findall(stage))
