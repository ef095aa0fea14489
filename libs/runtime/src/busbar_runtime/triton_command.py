"""The command that starts an installed Triton, wherever its install and its models lie."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

# Triton's Python backend starts a model's process by `bash -c` without quoting its paths: of one
# with a space the process never comes up, and Triton waits for it for ever. Beyond ASCII its Python
# reads no paths. So both folders have a plain name if their own is not: that of a descriptor that
# Triton holds for as long as it lives.
_START = """
root=$1 repository=$2
shift 2
case $root in *[!A-Za-z0-9_./+-]*) exec 9<"$root"; root=/proc/$$/fd/9 ;; esac
case $repository in *[!A-Za-z0-9_./+-]*) exec 8<"$repository"; repository=/proc/$$/fd/8 ;; esac
export PATH="$root/model-env/bin:/usr/local/bin:/usr/bin:/bin"
export LD_LIBRARY_PATH="$root/server/nvidia_pytriton.libs:$root/lib"
exec "$root/server/pytriton/tritonserver/bin/tritonserver" \
    --model-repository="$repository" --backend-directory="$root/backends" "$@"
"""
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONNOUSERSITE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def triton_command(root: Path) -> list[str]:
    """An argv template that starts the server of the install in `root`; see TritonInstall."""
    setting = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
    clean = [shutil.which("env") or "/usr/bin/env", "-i", *setting]
    start = [shutil.which("sh") or "/bin/sh", "-c", _START, "triton", str(root), "{repository}"]
    return [*clean, *start, *_options()]


def _options() -> list[str]:
    # Nobody knows this value, so nobody may call these: a leaked region name must not become
    # read and write access to the backend's shared memory (CVE-2025-23319, -23320, -23334).
    nobody = f"busbar-restricted={secrets.token_hex(16)}"
    return [
        "--model-control-mode=explicit",
        # Configurations are complete, and guessing them costs a second process per load (1.3 s).
        "--disable-auto-complete-config",
        "--http-address=127.0.0.1",
        "--http-port={http_port}",
        "--grpc-address=127.0.0.1",
        "--grpc-port={grpc_port}",
        "--metrics-address=127.0.0.1",
        "--metrics-port={metrics_port}",
        f"--http-restricted-api=shared-memory,trace,logging:{nobody}",
        f"--grpc-restricted-protocol=shared-memory,trace,logging:{nobody}",
        "--backend-config=python,shm-region-prefix-name=busbar_triton_{grpc_port}_",
        "--http-thread-count=4",
        "--strict-readiness=false",
        "--exit-on-error=false",
        "--exit-timeout-secs=10",
        "--pinned-memory-pool-byte-size=0",
        "--log-format=ISO8601",
        # rate=0: only requests that carry a sampled traceparent are traced.
        "--trace-config=mode=opentelemetry",
        "--trace-config=rate=0",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=opentelemetry,url={otlp_url}",
        "--trace-config=opentelemetry,resource=service.name=triton",
        "--trace-config=opentelemetry,bsp_schedule_delay=500",
    ]
