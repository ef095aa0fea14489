# syntax=docker/dockerfile:1
# The customers' edge: OpenAI and KServe v2 over HTTP and gRPC.
# docker build --file deploy/images/gateway.Dockerfile --tag busbar/gateway .
FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY deploy/images/build.lock services/gateway/requirements.lock ./
# One environment builds, another is shipped: no pip, no build backend in the image.
RUN python -m venv /build \
    && /build/bin/pip install --no-deps --require-hashes --requirement build.lock \
    && python -m venv --without-pip /opt/busbar
RUN /build/bin/pip --python /opt/busbar/bin/python install --no-deps --require-hashes \
        --only-binary :all: --requirement requirements.lock
COPY libs libs
COPY services/gateway services/gateway
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir wheels \
        ./libs/contracts ./libs/errors ./libs/messaging ./libs/observability ./services/gateway \
    && /build/bin/pip --python /opt/busbar/bin/python install --no-deps --no-index wheels/*.whl \
    && mkdir /state

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="busbar-gateway"
COPY --from=build /opt/busbar /opt/busbar
COPY --from=build --chown=65532:65532 /state /var/lib/busbar
ENV PATH=/opt/busbar/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    BUSBAR_HTTP_HOST=0.0.0.0 \
    BUSBAR_HTTP_PORT=8080 \
    BUSBAR_GRPC_PORT=8081 \
    BUSBAR_STATE_DIR=/var/lib/busbar \
    BUSBAR_OPS_PORT=9090
USER 65532:65532
EXPOSE 8080 8081 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --start-interval=1s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['BUSBAR_OPS_PORT'] + '/readyz', timeout=2)"]
CMD ["python", "-m", "busbar_gateway"]
