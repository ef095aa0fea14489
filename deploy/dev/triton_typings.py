"""Write typings/ for tritonclient's protobuf modules, which ship without types.

Run it after changing tritonclient's version: `.venv/bin/python deploy/dev/triton_typings.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import model_config_pb2, service_pb2

OUT = Path(__file__).resolve().parents[2] / "typings" / "tritonclient" / "grpc"
CONFIG_IMPORT = "from tritonclient.grpc import model_config_pb2 as _model_config_pb2"


def main() -> None:
    """Hand the modules' own descriptors to protoc-gen-mypy."""
    files = FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    with tempfile.TemporaryDirectory() as scratch:
        described = Path(scratch, "descriptors")
        described.write_bytes(files.SerializeToString())
        arguments = [f"--descriptor_set_in={described}", f"--mypy_out=quiet:{scratch}"]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", *arguments, *[f.name for f in files.file]],
            check=True,
            env=environment,
        )
        for source, name in (("grpc_service", "service"), ("model_config", "model_config")):
            text = Path(scratch, f"{source}_pb2.pyi").read_text()
            text = re.sub(
                r"^(import|from) .*model_config_pb2.*$", CONFIG_IMPORT, text, flags=re.MULTILINE
            )
            (OUT / f"{name}_pb2.pyi").write_text(text)


if __name__ == "__main__":
    main()
