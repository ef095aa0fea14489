"""During an upgrade both releases are on the bus: each reads what the other one writes.

`previous_release.binpb` holds the descriptors of the release before this one, and
`previous_release.commit` says where its code is, for ./just long-faults. Make both anew when a
release is cut: python libs/contracts/generate.py --descriptors PATH
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import busbar_contracts
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

PREVIOUS = Path(__file__).with_name("previous_release.binpb")
DEPTH_MAX = 4


def previous_messages() -> dict[str, Descriptor]:
    """Every message of the previous release that stands by itself."""
    pool, files = DescriptorPool(), FileDescriptorSet.FromString(PREVIOUS.read_bytes())
    for file in files.file:
        pool.Add(file)  # pyright: ignore[reportDeprecated]
    return {
        f"{file.package}.{message.name}": pool.FindMessageTypeByName(
            f"{file.package}.{message.name}"
        )
        for file in files.file
        if file.package.startswith("busbar.")
        for message in file.message_type
    }


def present_messages() -> dict[str, Descriptor]:
    """Every message of this release that stands by itself."""
    packages = walk_packages(busbar_contracts.__path__, "busbar_contracts.")
    modules = [import_module(one.name) for one in packages if one.name.endswith("_pb2")]
    return {
        descriptor.full_name: descriptor
        for module in modules
        for descriptor in module.DESCRIPTOR.message_types_by_name.values()
    }


THEN = previous_messages()
NOW = present_messages()
BOTH = sorted(THEN.keys() & NOW.keys())


def filled(descriptor: Descriptor, depth: int = 0) -> Message:
    """A message with something in every field, of each oneof in the last of its fields."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        _fill(message, field, depth)
    return message


def _fill(message: Message, field: FieldDescriptor, depth: int) -> None:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        entries: Any = getattr(message, field.name)
        if value.message_type is None:
            entries[_scalar(key)] = _scalar(value)
        else:
            entries[_scalar(key)].CopyFrom(filled(value.message_type, depth + 1))
    elif entry is not None:
        if depth < DEPTH_MAX:
            into: Any = getattr(message, field.name)
            (into.add() if field.is_repeated else into).CopyFrom(filled(entry, depth + 1))
    elif field.is_repeated:
        getattr(message, field.name).extend([_scalar(field), _scalar(field)])
    else:
        setattr(message, field.name, _scalar(field))


def _scalar(field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = f"{field.name} {field.number}"
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return field.enum_type.values[-1].number
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return field.number / 4
        case _:
            return field.number + 1


def said(message: Message, known: Descriptor) -> dict[str, Any]:
    """What the fields that `known` has say, by name; enums by their numbers."""
    read = type(message).FromString(message.SerializeToString())
    found: dict[str, Any] = {}
    for field in known.fields:
        value: Any = getattr(read, field.name)
        entry = field.message_type
        if entry is None:
            found[field.name] = list(value) if field.is_repeated else value
        elif entry.GetOptions().map_entry:
            inner = entry.fields_by_name["value"].message_type
            found[field.name] = {
                key: one if inner is None else said(one, inner) for key, one in value.items()
            }
        elif field.is_repeated:
            found[field.name] = [said(one, entry) for one in value]
        else:
            found[field.name] = said(value, entry) if read.HasField(field.name) else None
    return found


def test_no_message_of_the_previous_release_is_gone() -> None:
    assert THEN.keys() - NOW.keys() == set()
    assert len(BOTH) > 50


@pytest.mark.parametrize("name", BOTH)
def test_this_release_reads_what_the_previous_one_writes(name: str) -> None:
    written = filled(THEN[name])
    read = GetMessageClass(NOW[name]).FromString(written.SerializeToString())

    assert said(read, THEN[name]) == said(written, THEN[name])
    assert len(list(read.ListFields())) == len(list(written.ListFields()))


@pytest.mark.parametrize("name", BOTH)
def test_the_previous_release_reads_and_passes_on_what_this_one_writes(name: str) -> None:
    written = filled(NOW[name])
    read = GetMessageClass(THEN[name]).FromString(written.SerializeToString())
    passed_on = GetMessageClass(NOW[name]).FromString(read.SerializeToString())

    assert said(read, THEN[name]) == said(written, THEN[name])
    assert passed_on == written
