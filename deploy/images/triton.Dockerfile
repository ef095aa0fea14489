# syntax=docker/dockerfile:1
# Triton with what the demo models import; any Triton will do for models that bring their own.
# docker build --file deploy/images/triton.Dockerfile --tag busbar/triton .
FROM nvcr.io/nvidia/tritonserver:25.10-py3
COPY deploy/triton/model-env.lock /tmp/model-env.lock
# The Python backend's stub takes the interpreter's home from PATH, so this environment is what
# models import from. Its numpy is older than 2: with 2 the stub answers OK with empty outputs.
RUN python3 -m venv --without-pip /opt/model-env \
    && python3 -m pip --disable-pip-version-check --python /opt/model-env/bin/python install \
        --no-cache-dir --no-deps --require-hashes --only-binary :all: \
        --requirement /tmp/model-env.lock \
    && rm /tmp/model-env.lock \
    && install --directory --owner=65532 --group=65532 /models
ENV PATH=/opt/model-env/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1 \
    HOME=/tmp
USER 65532:65532
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--show-error", "http://127.0.0.1:8000/v2/health/live"]
# The agent decides what is loaded. Complete configurations need no guessing. Requests that carry a
# sampled traceparent are traced, others are not (rate=0). Nobody may reach shared memory through it.
ENTRYPOINT ["tritonserver", \
    "--model-repository=/models", \
    "--model-control-mode=explicit", \
    "--disable-auto-complete-config", \
    "--strict-readiness=false", \
    "--exit-on-error=false", \
    "--exit-timeout-secs=10", \
    "--http-thread-count=4", \
    "--log-format=ISO8601", \
    "--trace-config=mode=opentelemetry", \
    "--trace-config=rate=0", \
    "--trace-config=level=TIMESTAMPS", \
    "--trace-config=opentelemetry,resource=service.name=triton", \
    "--trace-config=opentelemetry,bsp_schedule_delay=500"]
CMD ["--trace-config=opentelemetry,url=http://127.0.0.1:4318/v1/traces"]
