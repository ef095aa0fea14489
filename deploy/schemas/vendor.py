"""Take the schemas that deploy/check needs out of the packages that carry all of them.

    uv run --no-project --with kubernetes-validate==1.37.0 --with check-jsonschema==0.39.0 \
        python deploy/schemas/vendor.py

Both packages together would be 110 MB in every developer's environment.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VERSION = "1.37.0"
KINDS = {
    "v1/ConfigMap": "configmap-v1",
    "v1/Namespace": "namespace-v1",
    "v1/Secret": "secret-v1",
    "v1/Service": "service-v1",
    "apps/v1/Deployment": "deployment-apps-v1",
    "apps/v1/StatefulSet": "statefulset-apps-v1",
    "batch/v1/Job": "job-batch-v1",
    "networking.k8s.io/v1/NetworkPolicy": "networkpolicy-networking-v1",
    "policy/v1/PodDisruptionBudget": "poddisruptionbudget-policy-v1",
}
REFERENCE = "/api/_definitions.json#/$defs/"


def without_prose(schema: Any) -> Any:
    """The schema without descriptions, identity and vendor extensions, references made local."""
    if isinstance(schema, list):
        return [without_prose(item) for item in schema]
    if not isinstance(schema, dict):
        return schema.replace(REFERENCE, "#/$defs/") if isinstance(schema, str) else schema
    return {
        key: without_prose(value)
        for key, value in schema.items()
        if not (key in {"description", "$id", "$schema"} and isinstance(value, str))
        and not key.startswith("x-")
    }


def references(schema: Any) -> set[str]:
    """Names of the definitions that `schema` refers to."""
    if isinstance(schema, list):
        return set().union(*map(references, schema))
    if not isinstance(schema, dict):
        return set()
    found = set().union(*map(references, schema.values()))
    reference = schema.get("$ref")
    return found | ({reference.removeprefix("#/$defs/")} if isinstance(reference, str) else set())


def kubernetes() -> dict[str, Any]:
    """One schema: each kind of KINDS under its name, and the definitions they reach."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}-local-strict"
    everything = json.loads((folder / "_definitions.json").read_text())["$defs"]
    defs = {
        name: without_prose(json.loads((folder / f"{file}.json").read_text()))
        for name, file in KINDS.items()
    }
    wanted = set().union(*map(references, defs.values()))
    while wanted:
        name = wanted.pop()
        defs[name] = without_prose(everything[name])
        wanted |= references(defs[name]) - set(defs)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": defs}


def main() -> None:
    """Write both files."""
    compose = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    target = HERE / f"kubernetes-{VERSION}.json"
    target.write_text(json.dumps(kubernetes(), indent=None, separators=(",", ":")) + "\n")
    (HERE / "compose-spec.json").write_text(compose.read_text())


if __name__ == "__main__":
    main()
