# One container is one replica: worker, notifier and scheduler, under a runner that signals main processes only.
# It runs as uid 65532 with a read-only root file system, and writes no file but Dramatiq's semaphores in /dev/shm.
# `make image` builds it; docs/deploying.md says how to run it.

# A tag can be moved by whoever owns it: Renovate (renovate.json) writes the digest behind it, `@sha256:...`, as its
# first proposal, and proposes each newer one. Take a digest from there or from `docker buildx imagetools inspect`.
FROM python:3.11-slim-trixie AS base

FROM base AS build
# `otel` has what traces need (docs/tracing.md).
ARG REQUIREMENTS=run
WORKDIR /src
COPY requirements/${REQUIREMENTS}.txt requirements/
RUN python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
      --require-hashes --requirement requirements/${REQUIREMENTS}.txt
COPY Procfile /worker/
COPY app /worker/app
COPY actors /worker/actors
COPY sinks /worker/sinks
# Bytecode that holds no time, is never checked against its source, and comes out alike each time: its sets are in the
# order of their hashes.
RUN printf '#!/venv/bin/python\nfrom app.cli.entry import main\nmain()\n' > /venv/bin/sb-worker \
 && chmod 755 /venv/bin/sb-worker \
 && PYTHONHASHSEED=0 python -m compileall -q --invalidation-mode unchecked-hash /venv/lib /worker

# What the worker needs of the base image's files: Python without what installs or builds, its library compiled.
FROM base AS system
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/idlelib \
      /usr/local/lib/python3*/lib2to3 /usr/local/lib/python3*/tkinter /usr/local/lib/python3*/turtledemo \
      /usr/local/lib/python3*/test /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/2to3* /usr/local/bin/wheel \
      ~/.cache \
 && PYTHONHASHSEED=0 python -m compileall -q -f -x '/tests?/' --invalidation-mode unchecked-hash /usr/local/lib/python3*

# From nothing, so that no layer beneath has what was removed.
FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="secrets-bridge worker" \
      org.opencontainers.image.description="The background worker of the secrets-bridge control plane" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=system / /
COPY --from=build /venv /venv
COPY --from=build /worker /worker
WORKDIR /worker
ENV PATH=/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONPATH=/worker PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8 \
    SB_WORKER_LOCAL_ADDR=0.0.0.0:8091
USER 65532:65532
EXPOSE 8091
# Alive, not ready: a container that is killed because PostgreSQL is away would gain nothing.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-S", "-m", "app.supervisor.health"]
ENTRYPOINT ["sb-worker"]
CMD ["run"]
