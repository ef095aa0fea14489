"""Compare compose.yaml and deploy/kubernetes with their schemas, with each other and with the code.

Prints what is wrong, one line each, and exits with 1 if anything is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import jsonschema_rs
import kustomizing
import make_certificate
import make_identities
import make_secrets
import watched
import yaml
from busbar_billing.settings import MigrationSettings
from busbar_billing.settings import Settings as BillingSettings
from busbar_gateway.settings import GatewaySettings
from busbar_messaging.identities import Keyring, identify
from busbar_messaging.provision import ProvisionSettings
from busbar_messaging.server_config import Permissions
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
_SERVER = str(Path(sys.executable).with_name("nats-server"))
_NODE = NodeId("r1", "s1", "node-agent-0")
_NOTHING = Permissions(publish=(), subscribe=())
_LEAF_TLS: dict[str, str] = dict.fromkeys(("tls.crt", "tls.key"), PLACEHOLDER)
_PEERS_TLS = {**_LEAF_TLS, "ca.crt": PLACEHOLDER}
"""Whoever runs the clusters makes it, cert-manager for one."""
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|DSN")
ASKED = re.compile(r"\$\{(?P<name>\w+)(?::(?P<how>[-?])(?P<rest>[^}]*))?\}")
OWN_VARIABLE = re.compile(r"\$\((\w+)\)")
_NAME = "app.kubernetes.io/name"
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
    installations = [_installation(name) for name in ("", "hub", "site/kubernetes")]
    documents = [one for installation in installations for one in installation.documents]
    containers = [
        *_compose_containers(compose),
        *_compose_containers(site, "site compose"),
        *(container for one in installations for container in _kubernetes_containers(one)),
    ]
    found = [
        *_schema_problems([compose, site], documents),
        *_setting_problems(containers),
        *_nats_problems(containers),
        *_secret_problems(compose, installations, containers),
        *_site_secret_problems(site),
        *_image_problems(containers, installations),
        *_hardening_problems([compose, site], documents),
        *watched.unwatched(compose),
        *watched.unwatched(site),
        *watched.privileged_images(),
        *_reference_problems(installations),
        *(
            f"{one.name or 'deploy'}: {problem}"
            for one in installations
            for problem in kustomizing.judged(REPO / "deploy" / one.name, one.rendered)
        ),
    ]
    sys.stderr.writelines(f"{problem}\n" for problem in found)
    return 1 if found else 0


@dataclass(frozen=True)
class Installation:
    """What one kustomization makes, and the secrets that are made for it."""

    name: str
    rendered: kustomizing.Rendered
    secrets: Mapping[str, Mapping[str, str]]

    @property
    def documents(self) -> list[Document]:
        """Everything in it."""
        return self.rendered.documents

    def label(self, document: Document) -> str:
        """How messages call a document."""
        return f"{self.name} {_label(document)}".strip()


def _installation(name: str) -> Installation:
    identities = identify(Keyring(0), dict.fromkeys(make_secrets.BUS_USERS, _NOTHING), [_NODE])
    secrets: dict[str, dict[str, str]] = make_secrets.fresh()
    if name == "hub":
        secrets |= make_identities.hub_secrets(identities)
        secrets |= {"nats-leaf-tls": _LEAF_TLS, "nats-peers-tls": _PEERS_TLS}
    elif name:
        secrets = make_identities.site_secrets(identities, _NODE.region, _NODE.site)
    return Installation(name, kustomizing.render(REPO / "deploy" / name), secrets)


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


def _kubernetes_containers(installation: Installation) -> Iterator[Container]:
    for document, pod in _workloads(installation.documents):
        for container in pod["containers"]:
            env: dict[str, str] = {}
            literal: set[str] = set()
            for variable in container.get("env", []):
                name, value = variable["name"], variable.get("value")
                if value is None:
                    env[name] = _kubernetes_value(document, installation, variable["valueFrom"])
                else:
                    # As Kubernetes does: what does not stand before it stays as it is.
                    env[name] = OWN_VARIABLE.sub(
                        lambda own, env=env: env.get(own[1], own[0]), value
                    )
                    literal |= set() if OWN_VARIABLE.search(value) else {name}
            where = f"{installation.label(document)} {container['name']}"
            command = container.get("command", container.get("args", []))
            yield Container(where, container["image"], command, env, frozenset(literal))


def _kubernetes_value(document: Document, installation: Installation, source: Document) -> str:
    if "configMapKeyRef" in source:
        reference = source["configMapKeyRef"]
        [settings] = [
            one["data"]
            for one in installation.documents
            if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", reference["name"])
        ]
        return settings[reference["key"]]
    if "fieldRef" in source:
        return f"{document['metadata']['name']}-0"
    reference = source["secretKeyRef"]
    return installation.secrets.get(reference["name"], {}).get(reference["key"], PLACEHOLDER)


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
            conf = Path(container.command[-1]).name
            asked = set(re.findall(r"\$(BUSBAR_NATS_\w+)", (_NATS / conf).read_text()))
            given = {name for name in container.env if name.startswith("BUSBAR_NATS_")}
            yield from (f"{container.where}: {conf} asks for {name}" for name in asked - given)
            yield from (f"{container.where}: {conf} has no {name}" for name in given - asked)
            if "compose" not in container.where:
                yield from _refused_by_server(container, conf)
                continue
            # What make_identities writes for a site is JSON, quotes and all.
            for name in given & container.literal if conf == "site.conf" else given:
                if not re.fullmatch(r'".*"', container.env[name]):
                    yield f"{container.where}: {name} must be a quoted string for the server"


def _refused_by_server(container: Container, conf: str) -> Iterator[str]:
    """What the server itself says to its configuration and to what it is given for it."""
    generated = kustomizing.render(REPO / "deploy" / "hub").generated
    with TemporaryDirectory() as scratch:
        make_certificate.write(Path(scratch))
        Path(scratch, "leaf.creds").touch()

        def here(text: str) -> str:
            return re.sub(r"/etc/nats-tls/\w+|/run/credentials|(?<=\")/data", scratch, text)

        for files in generated.values():
            for name, text in files.items():
                Path(scratch, name).write_text(here(text))
        asked = [_SERVER, "-t", "-c", str(Path(scratch, conf))]
        given = {name: here(value) for name, value in container.env.items()}
        ran = subprocess.run(asked, env=given, capture_output=True, text=True, check=False)
    if ran.returncode:
        yield f"{container.where}: nats-server refuses {conf}: {ran.stderr[-500:]}"


# --- secrets and images --------------------------------------------------------------------------


def _secret_problems(
    compose: Document, installations: list[Installation], containers: list[Container]
) -> Iterator[str]:
    made = make_secrets.fresh()
    env_file = {line.partition("=")[0] for line in make_secrets.compose(made).splitlines()}
    required = {m["name"] for m in ASKED.finditer(json.dumps(compose)) if m["how"] == "?"}
    yield from (f"compose asks for {name}, which nobody makes" for name in required - env_file)
    yield from (f"make_secrets makes {name} for nobody" for name in env_file - required)
    for one in installations:
        yield from _unmade_secrets(one)
    for container in containers:
        for name in sorted(container.literal):
            if SECRET_NAME.search(name) and not name.endswith("_FILE"):
                yield f"{container.where}: {name} stands in the file"


def _unmade_secrets(installation: Installation) -> Iterator[str]:
    asked = set[str]()
    for document, pod in _workloads(installation.documents):
        for volume in pod["volumes"]:
            secret = volume.get("secret", {"optional": True})
            asked |= set() if secret.get("optional") else {secret["secretName"]}
        for container in pod["containers"]:
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference is None or reference.get("optional"):
                    continue
                asked.add(reference["name"])
                if reference["key"] not in installation.secrets.get(reference["name"], {}):
                    where = installation.label(document)
                    yield f"{where}: no secret {reference['name']}/{reference['key']}"
    for name in asked ^ set(installation.secrets):
        yield f"{installation.name or 'deploy'}: secret {name} is made or asked for, not both"


def _site_secret_problems(site: Document) -> Iterator[str]:
    nodes = [NodeId("r1", "s1", "n1")]
    written = make_identities.site_env(identify(Keyring(0), {}, nodes), "r1", "s1")
    made = set(re.findall(r"^(\w+)='", written, re.MULTILINE)) | {"NATS_HUB"}
    asked = {found["name"]: found["how"] for found in ASKED.finditer(json.dumps(site))}
    required = {name for name, how in asked.items() if how == "?"}
    yield from (f"site compose asks for {name}, which nobody makes" for name in required - made)
    yield from (f"make_identities makes {name} for nobody" for name in made - set(asked))


def _image_problems(
    containers: list[Container], installations: list[Installation]
) -> Iterator[str]:
    tagged = set[str]().union(*(one.rendered.tagged for one in installations))
    tags: dict[str, set[str]] = {}
    for container in containers:
        name, _, tag = container.image.partition(":")
        if name.startswith("busbar/"):
            if not (REPO / "deploy" / "images" / f"{name[7:]}.Dockerfile").exists():
                yield f"{container.where}: {name} has no Dockerfile"
            if name not in tagged:
                yield f"{container.where}: no kustomization gives {name} a tag"
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


def _reference_problems(installations: list[Installation]) -> Iterator[str]:
    """Selectors must select, ports must be there, files and maps must exist."""
    everywhere = [pair for one in installations for pair in _workloads(one.documents)]
    names = {d["spec"]["template"]["metadata"]["labels"][_NAME] for d, _ in everywhere}
    for one in installations:
        yield from _dangling(one, names)


def _dangling(installation: Installation, names: set[str]) -> Iterator[str]:
    documents = installation.documents
    maps = {d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap"}
    maps |= installation.rendered.generated.keys()
    pods = [(d["spec"]["template"]["metadata"]["labels"], pod) for d, pod in _workloads(documents)]
    for document, pod in _workloads(documents):
        for volume in pod["volumes"]:
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                yield f"{installation.label(document)}: no ConfigMap {volume['configMap']['name']}"
        claimed = document["spec"].get("volumeClaimTemplates", [])
        there = {one["name"] for one in pod["volumes"]} | {c["metadata"]["name"] for c in claimed}
        mounted = {one["name"] for c in pod["containers"] for one in c.get("volumeMounts", [])}
        for volume in mounted ^ there:
            yield f"{installation.label(document)}: volume {volume} is there or mounted, not both"
    for document in documents:
        if document["kind"] in {"Service", "PodDisruptionBudget"}:
            yield from _selector_problems(document, pods)
        if document["kind"] == "NetworkPolicy":
            said = re.findall(rf'"{_NAME}": "([^"]+)"', json.dumps(document))
            said += [name for values in _listed_names(document["spec"]) for name in values]
            for name in set(said) - names:
                yield f"{installation.label(document)}: nothing is called {name}"


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
        if part.get("key") == _NAME:
            yield part["values"]
        for value in part.values():
            yield from _listed_names(value)
    elif isinstance(part, list):
        for item in part:
            yield from _listed_names(item)


if __name__ == "__main__":
    sys.exit(main())
