"""Compare compose.yaml and deploy/kubernetes with their schemas, with each other and with the code.

Prints what is wrong, one line each, and exits with 1 if anything is.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema_rs
import make_identities
import make_secrets
import yaml
from busbar_billing.settings import MigrationSettings
from busbar_billing.settings import Settings as BillingSettings
from busbar_gateway.settings import GatewaySettings
from busbar_messaging.identities import Keyring, identify
from busbar_messaging.provision import ProvisionSettings
from busbar_messaging.topology import NodeId
from busbar_node_agent.settings import Settings as NodeAgentSettings
from busbar_scheduler.settings import Settings as SchedulerSettings
from busbar_telemetry.settings import TelemetrySettings
from pydantic import ValidationError
from pydantic_settings import BaseSettings

REPO = Path(__file__).resolve().parent.parent
SCHEMAS = REPO / "deploy" / "schemas"
_NATS = REPO / "deploy" / "nats"
SETTINGS: dict[str, type[BaseSettings]] = {
    "busbar_gateway": GatewaySettings,
    "busbar_billing": BillingSettings,
    "busbar_billing.migrate": MigrationSettings,
    "busbar_scheduler": SchedulerSettings,
    "busbar_node_agent": NodeAgentSettings,
    "busbar_telemetry": TelemetrySettings,
    "busbar_messaging.provision": ProvisionSettings,
}
PLACEHOLDER = "ab" * 16
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|DSN")
ASKED = re.compile(r"\$\{(?P<name>\w+)(?::(?P<how>[-?])(?P<rest>[^}]*))?\}")
OWN_VARIABLE = re.compile(r"\$\((\w+)\)")
Document = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """One container of either kind of deployment; `env` has what would stand there at run time."""

    where: str
    image: str
    command: list[str]
    env: Mapping[str, str]
    literal: frozenset[str]


def main() -> int:
    """Run every check."""
    compose = yaml.safe_load((REPO / "compose.yaml").read_text())
    site = yaml.safe_load((REPO / "deploy" / "site" / "compose.yaml").read_text())
    documents = [*_documents()]
    containers = [
        *_compose_containers(compose),
        *_compose_containers(site, "site compose"),
        *_kubernetes_containers(documents),
    ]
    found = [
        *_schema_problems([compose, site], documents),
        *_setting_problems(containers),
        *_nats_problems(containers),
        *_secret_problems(compose, documents, containers),
        *_site_secret_problems(site),
        *_image_problems(containers),
        *_hardening_problems([compose, site], documents),
        *_reference_problems(documents),
    ]
    sys.stderr.writelines(f"{problem}\n" for problem in found)
    return 1 if found else 0


def _documents() -> Iterator[Document]:
    for path in sorted((REPO / "deploy" / "kubernetes").glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def _label(document: Document) -> str:
    return f"kubernetes {document['kind']}/{document['metadata']['name']}"


# --- schemas -------------------------------------------------------------------------------------


def _schema_problems(composes: list[Document], documents: list[Document]) -> Iterator[str]:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    for compose in composes:
        yield from _violations(f"compose of {compose['name']}", schema, compose)
    [path] = SCHEMAS.glob("kubernetes-*.json")
    kubernetes = json.loads(path.read_text())
    secrets = json.loads(make_secrets.kubernetes(make_secrets.fresh()))["items"]
    for document in [*documents, *secrets]:
        kind = f"{document['apiVersion']}/{document['kind']}"
        if kind not in kubernetes["$defs"]:
            yield f"{_label(document)}: no schema of {kind}; add it to deploy/schemas/vendor.py"
            continue
        pointer = kind.replace("/", "~1")
        schema = {"$ref": f"#/$defs/{pointer}", "$defs": kubernetes["$defs"]}
        yield from _violations(_label(document), schema, document)


def _violations(where: str, schema: Document, document: Document) -> Iterator[str]:
    for error in jsonschema_rs.validator_for(schema).iter_errors(document):
        path = ".".join(str(part) for part in error.instance_path)
        yield f"{where}: {path}: {error.message[:300]}"


# --- containers ----------------------------------------------------------------------------------


def _compose_containers(compose: Document, kind: str = "compose") -> Iterator[Container]:
    for name, service in compose["services"].items():
        said = {key: str(value) for key, value in service.get("environment", {}).items()}
        yield Container(
            where=f"{kind} {name}",
            image=service["image"],
            command=service.get("command", []),
            env={key: ASKED.sub(_compose_value, value) for key, value in said.items()},
            literal=frozenset(key for key, value in said.items() if not ASKED.search(value)),
        )


def _compose_value(asked: re.Match[str]) -> str:
    return asked["rest"] if asked["how"] == "-" else PLACEHOLDER


def _workloads(documents: list[Document]) -> Iterator[tuple[Document, Document]]:
    """Each document that makes pods, with its pod's specification."""
    for document in documents:
        if document["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield document, document["spec"]["template"]["spec"]


def _kubernetes_containers(documents: list[Document]) -> Iterator[Container]:
    settings = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    for document, pod in _workloads(documents):
        for container in pod["containers"]:
            env: dict[str, str] = {}
            literal: set[str] = set()
            for variable in container.get("env", []):
                name, value = variable["name"], variable.get("value")
                if value is None:
                    env[name] = _kubernetes_value(document, settings, variable["valueFrom"])
                else:
                    env[name] = OWN_VARIABLE.sub(lambda own, env=env: env[own[1]], value)
                    literal |= set() if OWN_VARIABLE.search(value) else {name}
            where = f"{_label(document)} {container['name']}"
            command = container.get("command", [])
            yield Container(where, container["image"], command, env, frozenset(literal))


def _kubernetes_value(document: Document, settings: Document, source: Document) -> str:
    if "configMapKeyRef" in source:
        reference = source["configMapKeyRef"]
        return settings[reference["name"]][reference["key"]]
    return f"{document['metadata']['name']}-0" if "fieldRef" in source else PLACEHOLDER


# --- settings ------------------------------------------------------------------------------------


def _dockerfile(image: str) -> str:
    name = image.removeprefix("busbar/")
    return (REPO / "deploy" / "images" / f"{name}.Dockerfile").read_text()


def _setting_names(settings: type[BaseSettings]) -> set[str]:
    return {
        str(field.validation_alias or f"BUSBAR_{name}").upper()
        for name, field in settings.model_fields.items()
    }


def _setting_problems(containers: list[Container]) -> Iterator[str]:
    """What is set must be a setting, and the settings must be complete and valid."""
    for container in containers:
        if not container.image.startswith("busbar/") or container.image == "busbar/triton":
            continue
        dockerfile = _dockerfile(container.image)
        default = re.search(r'^CMD \["python", "-m", "(\w+)"\]', dockerfile, re.MULTILINE)
        module = container.command[2] if container.command else default[1] if default else ""
        settings = SETTINGS[module]
        names = _setting_names(settings)
        for name in container.env:
            if name.startswith(("BUSBAR_", "OTEL_")) and name not in names:
                yield f"{container.where}: {name} is no setting of {module}"
        image_env = dict(re.findall(r"(BUSBAR_\w+)=(\S+)", dockerfile))
        with mock.patch.dict(os.environ, {**image_env, **container.env}, clear=True):
            try:
                settings()
            except ValidationError as error:
                for problem in error.errors():
                    field = ".".join(str(part) for part in problem["loc"])
                    yield f"{container.where}: {module} setting {field}: {problem['msg']}"


def _nats_problems(containers: list[Container]) -> Iterator[str]:
    for container in containers:
        if container.image.startswith("nats:"):
            at_site = container.command[-1:] == ["/etc/nats/site.conf"]
            conf = "site.conf" if at_site else "nats.conf"
            asked = set(re.findall(r"\$(BUSBAR_NATS_\w+)", (_NATS / conf).read_text()))
            given = {name for name in container.env if name.startswith("BUSBAR_NATS_")}
            yield from (f"{container.where}: {conf} asks for {name}" for name in asked - given)
            yield from (f"{container.where}: {conf} has no {name}" for name in given - asked)
            # What make_identities writes for a site is JSON, quotes and all.
            for name in given & container.literal if at_site else given:
                if not re.fullmatch(r'".*"', container.env[name]):
                    yield f"{container.where}: {name} must be a quoted string for the server"


# --- secrets and images --------------------------------------------------------------------------


def _secret_problems(
    compose: Document, documents: list[Document], containers: list[Container]
) -> Iterator[str]:
    made = make_secrets.fresh()
    env_file = {line.partition("=")[0] for line in make_secrets.compose(made).splitlines()}
    required = {m["name"] for m in ASKED.finditer(json.dumps(compose)) if m["how"] == "?"}
    yield from (f"compose asks for {name}, which nobody makes" for name in required - env_file)
    yield from (f"make_secrets makes {name} for nobody" for name in env_file - required)
    for document, pod in _workloads(documents):
        for container in pod["containers"]:
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference is None or reference.get("optional"):
                    continue
                if reference["key"] not in made.get(reference["name"], {}):
                    yield f"{_label(document)}: no secret {reference['name']}/{reference['key']}"
    for container in containers:
        for name in sorted(container.literal):
            if SECRET_NAME.search(name):
                yield f"{container.where}: {name} stands in the file"


def _site_secret_problems(site: Document) -> Iterator[str]:
    nodes = [NodeId("r1", "s1", "n1")]
    written = make_identities.site_env(identify(Keyring(0), {}, nodes), "r1", "s1")
    made = set(re.findall(r"^(\w+)='", written, re.MULTILINE)) | {"NATS_HUB"}
    asked = {found["name"]: found["how"] for found in ASKED.finditer(json.dumps(site))}
    required = {name for name, how in asked.items() if how == "?"}
    yield from (f"site compose asks for {name}, which nobody makes" for name in required - made)
    yield from (f"make_identities makes {name} for nobody" for name in made - set(asked))


def _image_problems(containers: list[Container]) -> Iterator[str]:
    overlay = yaml.safe_load((REPO / "deploy" / "kustomization.yaml").read_text())
    tagged = {image["name"] for image in overlay["images"]}
    tags: dict[str, set[str]] = {}
    for container in containers:
        name, _, tag = container.image.partition(":")
        if name.startswith("busbar/"):
            if not (REPO / "deploy" / "images" / f"{name[7:]}.Dockerfile").exists():
                yield f"{container.where}: {name} has no Dockerfile"
            if name not in tagged:
                yield f"{container.where}: deploy/kustomization.yaml gives {name} no tag"
            continue
        tags.setdefault(name, set()).add(tag)
        if tag in {"", "latest"}:
            yield f"{container.where}: {name} has no fixed tag"
    yield from (
        f"{name} is of different releases: {', '.join(sorted(found))}"
        for name, found in tags.items()
        if len(found) > 1
    )


# --- hardening -----------------------------------------------------------------------------------


def _hardening_problems(composes: list[Document], documents: list[Document]) -> Iterator[str]:
    for compose in composes:
        for name, service in compose["services"].items():
            where = f"{compose['name']} {name}"
            yield from (f"{where}: {problem}" for problem in _open_service(service))
    for document, pod in _workloads(documents):
        yield from (f"{_label(document)}: {problem}" for problem in _open_pod(pod))


def _open_service(service: Document) -> Iterator[str]:
    if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
        yield "must be read_only and drop all capabilities"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield "must not gain privileges"
    if not service.get("mem_limit") or not service.get("pids_limit"):
        yield "needs mem_limit and pids_limit"


def _open_pod(pod: Document) -> Iterator[str]:
    if pod.get("automountServiceAccountToken") is not False:
        yield "must not mount a service account's token"
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        yield "must not run as root"
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for container in pod["containers"]:
        resources = container.get("resources", {})
        if container.get("securityContext") != wanted:
            yield f"{container['name']}'s securityContext must be {wanted}"
        if "memory" not in resources.get("limits", {}) or "cpu" not in resources.get(
            "requests", {}
        ):
            yield f"{container['name']} needs requests and limits"


# --- references ----------------------------------------------------------------------------------


def _reference_problems(documents: list[Document]) -> Iterator[str]:
    """Selectors must select, ports must be there, files and maps must exist."""
    overlay = yaml.safe_load((REPO / "deploy" / "kustomization.yaml").read_text())
    on_disk = {f"kubernetes/{p.name}" for p in (REPO / "deploy" / "kubernetes").glob("*.yaml")}
    for path in on_disk ^ set(overlay["resources"]):
        yield f"deploy/kustomization.yaml and the directory disagree on {path}"
    maps = {d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap"}
    maps |= {generated["name"] for generated in overlay["configMapGenerator"]}
    pods = [(d["spec"]["template"]["metadata"]["labels"], pod) for d, pod in _workloads(documents)]
    names = {labels["app.kubernetes.io/name"] for labels, _ in pods}
    for document, pod in _workloads(documents):
        for volume in pod["volumes"]:
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                yield f"{_label(document)}: no ConfigMap {volume['configMap']['name']}"
    for document in documents:
        if document["kind"] in {"Service", "PodDisruptionBudget"}:
            yield from _selector_problems(document, pods)
        if document["kind"] == "NetworkPolicy":
            said = re.findall(r'"app.kubernetes.io/name": "([^"]+)"', json.dumps(document))
            said += [name for values in _listed_names(document["spec"]) for name in values]
            for name in set(said) - names:
                yield f"{_label(document)}: nothing is called {name}"


def _selector_problems(document: Document, pods: list[tuple[Document, Document]]) -> Iterator[str]:
    selector = document["spec"]["selector"]
    wanted = selector.get("matchLabels", selector).items()
    selected = [pod for labels, pod in pods if wanted <= labels.items()]
    if len(selected) != 1:
        yield f"{_label(document)}: selects {len(selected)} workloads"
        return
    ports = {p["name"] for c in selected[0]["containers"] for p in c.get("ports", [])}
    for port in document["spec"].get("ports", []):
        if port["targetPort"] not in ports:
            yield f"{_label(document)}: no container port is called {port['targetPort']}"


def _listed_names(part: Any) -> Iterator[list[str]]:
    """The values of every matchExpressions on the pods' name."""
    if isinstance(part, dict):
        if part.get("key") == "app.kubernetes.io/name":
            yield part["values"]
        for value in part.values():
            yield from _listed_names(value)
    elif isinstance(part, list):
        for item in part:
            yield from _listed_names(item)


if __name__ == "__main__":
    sys.exit(main())
