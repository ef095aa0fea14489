# Run these as ./just RECIPE: the script beside this file brings the tools.

set positional-arguments
set shell := ["bash", "-euo", "pipefail", "-c"]

export UV_PYTHON_DOWNLOADS := "never"
# Compiled once, not at each start of each service, whatever the caller's shell says: it is a
# third of what starting a platform costs.
export PYTHONDONTWRITEBYTECODE := ""
python := ".venv/bin/python"
bin := ".venv/bin"

# List the recipes
[private]
default:
    @just --justfile "{{justfile()}}" --list --unsorted

# ── The platform on this machine ──────────────────────────────────────────

# Start everything, send real requests through the real SDKs, show cost and trace, stop
[group('platform'), no-exit-message]
demo *args: setup
    @[ $# = 0 ] || exec {{python}} deploy/demo/demo.py "$@"; \
    exec {{python}} -m busbar_runtime exec --home "${BUSBAR_DEMO_HOME:-.busbar/demo}" -- {{python}} deploy/demo/demo.py

# Start the platform and leave it running (--foreground stays attached)
[group('platform'), no-exit-message]
up *args: setup
    @exec {{python}} -m busbar_runtime up "$@"

# Stop the platform and wait until all of it is gone
[group('platform'), no-exit-message]
down *args:
    @[ -x {{python}} ] || { echo "nothing is running: not set up yet"; exit 0; }; exec {{python}} -m busbar_runtime down "$@"

# Show what is running: addresses, processes, keys
[group('platform'), no-exit-message]
status *args: setup
    @exec {{python}} -m busbar_runtime status "$@"

# Show the log of a service (-f follows it)
[group('platform'), no-exit-message]
logs service *args: setup
    @exec {{python}} -m busbar_runtime logs "$@"

# Run one service in the foreground instead of the platform's own, until Ctrl-C
[group('platform'), no-exit-message]
run service *args: setup
    @exec {{python}} -m busbar_runtime run "$@"

# The busbar command line
[group('platform'), no-exit-message]
busbar *args: setup
    @exec {{bin}}/busbar "$@"

# ── Checks and tests ──────────────────────────────────────────────────────

# Every check and every test, in three processes (they mostly wait); what CI runs. A failed test is run once more and counted as "rerun", a wrong charge never
[group('test'), no-exit-message]
test *args: setup ready-to-test
    @exec {{bin}}/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --reruns 1 --rerun-except "charge" "$@"

# The models take as long to make as the checks do, the first time.
[private, parallel]
ready-to-test: static demo-models

[private]
demo-models: setup
    @cache="${BUSBAR_CACHE:-.busbar/cache}"; \
    {{python}} -m busbar_runtime install-triton --cache "$cache"; \
    {{python}} deploy/demo/build/build_models.py --cache "$cache"

# Faults that take minutes: links cut and half-open, the bus away, an upgrade from the previous release; a table of what each cost
[group('test'), no-exit-message]
long-faults *args: setup
    @exec {{bin}}/pytest -s -m long_fault tests/faults "$@"

# Everything but flows and faults
[group('test'), no-exit-message]
check: static unit

# Tests of the libraries and of each service alone
[group('test'), no-exit-message]
unit *args: setup
    @exec {{bin}}/pytest libs services "$@"

# Formatting, lint, types, imports, proto, lock files, deployment files
[group('test'), no-exit-message, parallel]
static: setup types lint check-proto check-lock check-deploy

[private]
lint: setup
    {{bin}}/ruff format --check --quiet
    {{bin}}/ruff check --quiet
    {{bin}}/lint-imports

# With Node's 16 MiB for what is young, a tenth of the time goes into clearing it away.
[private]
types: setup
    NODE_OPTIONS="--max-semi-space-size=64 ${NODE_OPTIONS:-}" {{bin}}/basedpyright

[private]
check-proto: setup
    {{bin}}/buf lint proto
    {{python}} libs/contracts/generate.py --check
    deploy/dev/buf-breaking {{bin}}/buf

[private]
check-lock: setup
    {{python}} deploy/dev/lock_inputs.py --check requirements.lock

[private]
check-deploy: setup
    @if [ -x deploy/check ]; then exec deploy/check; fi

# Format the code and fix what ruff can fix
[group('test'), no-exit-message]
fix: setup
    {{bin}}/ruff format
    {{bin}}/ruff check --fix

# Play a day of forty sites in virtual time, beside two simpler schedulers; a table, a picture, every promise checked (--help)
[group('test'), no-exit-message]
simulate *args: setup
    @PYTHONPATH=tests exec {{python}} -m simulation.fleet "$@"

# Requests beside a direct Triton and a stock peer, posting beside bare INSERTs, a backlog, a year of usage, plans: into docs/benchmarks.md (--no-report: not). About 10 minutes, never over 40
[group('test'), no-exit-message]
bench *args: setup
    @{{python}} tests/benchmarks/load.py
    @missed=0; report=; [[ " $* " != *" --no-report "* ]] || report=--no-report; \
    timeout --signal=INT 20m {{python}} -m busbar_runtime exec --home "${BUSBAR_BENCH_HOME:-.busbar/bench}" -- {{python}} tests/benchmarks/run.py "$@" || missed=$?; \
    for bench in posting backlog usage_year placement; do timeout --signal=INT 5m {{python}} tests/benchmarks/$bench.py $report || missed=$?; done; \
    exit $missed


# ── Upkeep ────────────────────────────────────────────────────────────────

# Install the locked dependencies and the workspace into .venv (nothing to do when unchanged)
[group('upkeep')]
setup:
    @exec deploy/dev/setup

# Resolve the dependencies again and write requirements.lock
[group('upkeep')]
lock:
    @exec deploy/dev/lock

# Generate libs/contracts from proto/
[group('upkeep')]
proto: setup
    {{python}} libs/contracts/generate.py
