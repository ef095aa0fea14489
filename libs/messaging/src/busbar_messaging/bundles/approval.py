"""Which bundles bring code to a node, and so need an operator's approval.

What is not known to be mere data counts as code: Triton takes a backend's library from the
model's own directory, and formats that unpickle run what they are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_SHOWN_MAX = 100
HEAD_BYTES = 16
"""How much of each file's beginning is looked at."""
_DATA_BACKENDS = frozenset({"onnxruntime", "openvino"})
_DATA_SUFFIXES = frozenset(
    {
        ".onnx", ".safetensors", ".xml", ".bin", ".data",
        ".json", ".txt", ".yaml", ".yml", ".pbtxt", ".csv", ".md", ".model", ".vocab",
    }
)  # fmt: skip
_BARE_NAMES = frozenset({"LICENSE", "NOTICE", "README"})
_CODE_HEADS: tuple[tuple[bytes, str], ...] = (
    *((bytes([0x80, protocol]), "a pickle") for protocol in range(2, 6)),
    (b"PK\x03\x04", "a zip archive, as pickled tensors are"),
    (b"\x7fELF", "a library"),
    (b"MZ", "a library"),
    (b"\xcf\xfa\xed\xfe", "a library"),
    (b"#!", "a script"),
)


def backend_of(backend: str, platform: str) -> str:
    """The backend that Triton takes for a config.pbtxt with these fields."""
    return backend or platform.removesuffix("_onnx")


def code_in(backend: str, loaded: Sequence[str], heads: Mapping[str, bytes]) -> str:
    """The first reason why a bundle needs approval; empty when it is data alone.

    `loaded` is what config.pbtxt has loaded beside the model (`configured.loaded_by`), `heads` the
    first bytes of each file by its path.
    """
    if backend not in _DATA_BACKENDS:
        return f"backend {backend!r} runs what the bundle brings"
    if loaded:
        return f"config.pbtxt has {loaded[0][:_SHOWN_MAX]!r} loaded"
    for path, head in sorted(heads.items()):
        if reason := _code_in_file(path, head):
            return f"{path} {reason}"
    return ""


def _code_in_file(path: str, head: bytes) -> str:
    for start, kind in _CODE_HEADS:
        if head.startswith(start):
            return f"is {kind}"
    name = path.rpartition("/")[2]
    suffix = f".{name.rpartition('.')[2].lower()}" if "." in name else ""
    if suffix in _DATA_SUFFIXES or name in _BARE_NAMES:
        return ""
    return f"is not known to be data ({', '.join(sorted(_DATA_SUFFIXES))} are)"
