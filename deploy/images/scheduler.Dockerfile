# syntax=docker/dockerfile:1
# Deployments, placements and routes; also provisions the bus (python -m busbar_messaging.provision).
# docker build --file deploy/images/scheduler.Dockerfile --tag busbar/scheduler .
FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY deploy/images/build.lock services/scheduler/requirements.lock ./
# One environment builds, another is shipped: no pip, no build backend in the image.
RUN python -m venv /build \
    && /build/bin/pip install --no-deps --require-hashes --requirement build.lock \
    && python -m venv --without-pip /opt/busbar
RUN /build/bin/pip --python /opt/busbar/bin/python install --no-deps --require-hashes \
        --only-binary :all: --requirement requirements.lock
COPY libs libs
COPY services/scheduler services/scheduler
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir wheels \
        ./libs/contracts ./libs/errors ./libs/messaging ./libs/observability ./services/scheduler \
    && /build/bin/pip --python /opt/busbar/bin/python install --no-deps --no-index wheels/*.whl

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="busbar-scheduler"
COPY --from=build /opt/busbar /opt/busbar
ENV PATH=/opt/busbar/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    BUSBAR_HTTP_HOST=0.0.0.0 \
    BUSBAR_HTTP_PORT=8080 \
    BUSBAR_OPS_PORT=9090
USER 65532:65532
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --start-interval=1s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['BUSBAR_OPS_PORT'] + '/readyz', timeout=2)"]
CMD ["python", "-m", "busbar_scheduler"]
