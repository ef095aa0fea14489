# syntax=docker/dockerfile:1
# One node: loads models into its Triton and works what it pulls.
# docker build --file deploy/images/node-agent.Dockerfile --tag busbar/node-agent .
FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY deploy/images/build.lock services/node-agent/requirements.lock ./
# One environment builds, another is shipped: no pip, no build backend in the image.
RUN python -m venv /build \
    && /build/bin/pip install --no-deps --require-hashes --requirement build.lock \
    && python -m venv --without-pip /opt/busbar
RUN /build/bin/pip --python /opt/busbar/bin/python install --no-deps --require-hashes \
        --only-binary :all: --requirement requirements.lock
COPY libs libs
COPY services/node-agent services/node-agent
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir wheels \
        ./libs/contracts ./libs/errors ./libs/messaging ./libs/observability ./services/node-agent \
    && /build/bin/pip --python /opt/busbar/bin/python install --no-deps --no-index wheels/*.whl \
    && mkdir /state /models

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="busbar-node-agent"
COPY --from=build /opt/busbar /opt/busbar
COPY --from=build --chown=65532:65532 /state /var/lib/busbar
COPY --from=build --chown=65532:65532 /models /models
ENV PATH=/opt/busbar/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    BUSBAR_HTTP_HOST=0.0.0.0 \
    BUSBAR_STATE_DIR=/var/lib/busbar \
    BUSBAR_OPS_PORT=9090
USER 65532:65532
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --start-interval=1s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['BUSBAR_OPS_PORT'] + '/readyz', timeout=2)"]
CMD ["python", "-m", "busbar_node_agent"]
