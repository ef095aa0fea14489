"""Generate libs/contracts from proto/: `python libs/contracts/generate.py [--check]`.

`--descriptors FILE` writes the descriptors of all of it instead, to keep beside a release.

The output is committed, so that nobody needs a compiler to use it. `--check`
generates into a scratch folder and fails when the committed code differs.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PROTO = REPO / "proto"
PACKAGE = REPO / "libs" / "contracts" / "src" / "busbar_contracts"


def generate(out: Path) -> None:
    """Compile every file under proto/ into `out`, then make imports package-relative."""
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTO}",
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            *protos,
        ],
        check=True,
        # The mypy plugin lies beside the interpreter, which need not be on PATH.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"},
    )
    for path in [*out.rglob("*_pb2.py"), *out.rglob("*_pb2.pyi")]:
        text = path.read_text()
        path.write_text(
            text.replace("busbar.", "busbar_contracts.")
            if path.suffix == ".pyi"
            else text.replace("from busbar.", "from busbar_contracts.")
        )
    root = out / "busbar"
    note = '"""Generated from proto/ by generate.py; do not edit."""\n'
    for folder in [root, *[path for path in root.rglob("*") if path.is_dir()]]:
        (folder / "__init__.py").write_text(note)
    (root / "py.typed").touch()


def describe(out: Path) -> None:
    """Write the FileDescriptorSet of everything under proto/ and of what it imports."""
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    compiler = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"]
    target = ["--include_imports", f"--descriptor_set_out={out}"]
    subprocess.run([*compiler, *target, *protos], check=True)


def differing(left: Path, right: Path) -> list[str]:
    """Names of files that differ or exist on one side only, ignoring byte code."""
    compared = filecmp.dircmp(left, right, ignore=["__pycache__"])
    names = [*compared.left_only, *compared.right_only]
    _, mismatch, errors = filecmp.cmpfiles(left, right, compared.common_files, shallow=False)
    names += [*mismatch, *errors]
    for name in compared.common_dirs:
        names += [f"{name}/{inner}" for inner in differing(left / name, right / name)]
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the committed code differs")
    parser.add_argument("--descriptors", type=Path, help="write descriptors there, nothing else")
    arguments = parser.parse_args()
    if arguments.descriptors:
        describe(arguments.descriptors)
        return 0
    check: bool = arguments.check
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        generated = Path(scratch) / "busbar"
        if not check:
            shutil.rmtree(PACKAGE, ignore_errors=True)
            shutil.copytree(generated, PACKAGE)
            return 0
        if stale := differing(generated, PACKAGE):
            sys.stderr.write(f"libs/contracts is stale ({', '.join(stale)}): run ./just proto\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
