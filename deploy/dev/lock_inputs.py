"""Tell, without a network, whether requirements.lock belongs to the workspace's pyproject files.

`--stamp FILE` writes a digest of everything that decides the resolution into the lock's first
line; `--check FILE` fails when the pyproject files say something else by now, or when the lock
names an address (a lock is committed; where packages are fetched from is each machine's matter).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PREFIX = "# resolved from sha256:"
ADDRESS = re.compile(r"[a-z+]+://|file:|^-", re.MULTILINE)


def resolution_inputs() -> str:
    """Digest of the requirements in all pyproject files of the workspace."""
    inputs: dict[str, object] = {}
    for path in [
        REPO / "pyproject.toml",
        *REPO.glob("libs/*/pyproject.toml"),
        *REPO.glob("services/*/pyproject.toml"),
    ]:
        said = tomllib.loads(path.read_text())
        project = said.get("project", {})
        inputs[str(path.relative_to(REPO))] = [
            project.get("requires-python"),
            sorted(project.get("dependencies", [])),
            project.get("optional-dependencies"),
            said.get("dependency-groups"),
            said.get("tool", {}).get("uv"),
        ]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def stamp(lock: Path) -> None:
    kept = [
        line for line in lock.read_text().splitlines(keepends=True) if not line.startswith(PREFIX)
    ]
    lock.write_text(f"{PREFIX}{resolution_inputs()}\n" + "".join(kept))


def problems(lock: Path) -> list[str]:
    exports = [lock, REPO / "deploy/images/build.lock"]
    exports += [
        path.parent / "requirements.lock" for path in REPO.glob("services/*/pyproject.toml")
    ]
    wanted = PREFIX + resolution_inputs()
    found = [
        f"{export.relative_to(REPO)} is older than the pyproject files: run ./just lock, commit"
        for export in sorted(exports)
        if not export.exists() or export.read_text().partition("\n")[0] != wanted
    ]
    others = {*exports, *REPO.glob("*.lock"), *REPO.glob("deploy/**/*.lock")} - {REPO / "uv.lock"}
    for other in sorted(path for path in others if path.exists()):
        text = other.read_text()
        if match := ADDRESS.search(text):
            line = text[: match.start()].count("\n") + 1
            found.append(f"{other.relative_to(REPO)}:{line} names an address: export without them")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--stamp", type=Path)
    action.add_argument("--check", type=Path)
    args = parser.parse_args()
    if args.stamp:
        stamp(args.stamp.resolve())
        return 0
    found = problems(args.check.resolve())
    sys.stderr.writelines(f"{problem}\n" for problem in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
