"""What `kubectl kustomize DIRECTORY` would print, as far as our own kustomizations go.

Resources, components, ConfigMaps from files, and strategic merge patches whose lists are merged by
the keys that Kubernetes' schema names for them (x-kubernetes-patch-merge-key).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
_KNOWN = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "configMapGenerator",
    "patches",
    "images",
}
_MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}


@dataclass(slots=True)
class Rendered:
    """Documents, ConfigMaps that are generated (name → file → text), and tags of images."""

    documents: list[Document] = field(default_factory=list[Document])
    generated: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    tagged: set[str] = field(default_factory=set[str])


def render(directory: Path) -> Rendered:
    """Everything that a kustomization makes; raises ValueError for what it must not say."""
    said = yaml.safe_load((directory / "kustomization.yaml").read_text())
    if unknown := said.keys() - _KNOWN:
        raise ValueError(f"{directory}: {', '.join(sorted(unknown))} is not understood here")
    found = Rendered()
    for name in [*said.get("resources", []), *said.get("components", [])]:
        path = directory / name
        if path.is_dir():
            below = render(path)
            found.documents += below.documents
            found.generated |= below.generated
            found.tagged |= below.tagged
        else:
            found.documents += yaml.safe_load_all(_inside(directory, name).read_text())
    for generated in said.get("configMapGenerator", []):
        found.generated[generated["name"]] = {
            key or name: _inside(directory, name).read_text()
            for key, _, name in (file.rpartition("=") for file in generated["files"])
        }
    for patch in said.get("patches", []):
        _patch(found.documents, yaml.safe_load(_inside(directory, patch["path"]).read_text()))
    found.tagged |= {image["name"] for image in said.get("images", [])}
    return found


def _inside(directory: Path, name: str) -> Path:
    """Kustomize reads no file above its own directory."""
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()) or not path.is_file():
        raise ValueError(f"{directory}: {name} is not a file below it")
    return path


def _patch(documents: list[Document], patch: Document) -> None:
    at = [number for number, one in enumerate(documents) if _identity(one) == _identity(patch)]
    if len(at) != 1:
        raise ValueError(f"a patch of {_identity(patch)} meets {len(at)} documents")
    documents[at[0]] = _merged(documents[at[0]], patch)


def _identity(document: Document) -> tuple[str, str, str]:
    return document["apiVersion"], document["kind"], document["metadata"]["name"]


def _merged(base: Document, patch: Document) -> Document:
    merged = dict(base)
    for key, value in patch.items():
        there = merged.get(key)
        if key in _MERGE_KEYS and there is not None:
            merged[key] = [*_merged_lists(there, value, _MERGE_KEYS[key])]
        elif isinstance(value, dict) and isinstance(there, dict):
            merged[key] = _merged(there, value)
        else:
            merged[key] = value
    return merged


def _merged_lists(base: list[Document], patch: list[Document], by: str) -> Iterator[Document]:
    """What the patch names comes first, in its order: kustomize prepends."""
    there = {one[by]: one for one in base}
    for change in patch:
        if "$patch" not in change:
            yield _merged(there.get(change[by], {}), change)
        elif change[by] not in there:
            raise ValueError(f"there is no {change[by]} to delete")
    named = {one[by] for one in patch}
    yield from (one for one in base if one[by] not in named)


def judged(directory: Path, ours: Rendered) -> Iterator[str]:
    """What kubectl makes otherwise than we, order included; nothing where there is no kubectl."""
    if shutil.which("kubectl") is None:
        return
    asked = ["kubectl", "kustomize", str(directory)]
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    if ran.returncode:
        yield f"kubectl refuses it: {ran.stderr[-500:]}"
        return
    made = dict(_merged_in_pods(list(yaml.safe_load_all(ran.stdout))))
    for where, part in _merged_in_pods(ours.documents):
        if made.pop(where, None) != part:
            yield f"{where} is not as kubectl makes it"
    yield from (f"{where} is made by kubectl only" for where in made)


def _merged_in_pods(documents: list[Document]) -> Iterator[tuple[str, list[Any]]]:
    """The lists that patches merge; of volumes the names, since those of ConfigMaps get hashes."""
    for document in documents:
        pod = document.get("spec", {}).get("template", {}).get("spec")
        if pod is None:
            continue
        where = " ".join(_identity(document))
        for container in pod["containers"]:
            for part in ("env", "volumeMounts"):
                yield f"{where} {container['name']} {part}", container.get(part, [])
        yield f"{where} volumes", [one["name"] for one in pod["volumes"]]
