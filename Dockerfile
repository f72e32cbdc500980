# One container is one replica: worker, notifier and scheduler, under a runner that signals main processes only.
# It runs as uid 65532 with a read-only root file system, and writes no file but Dramatiq's semaphores in /dev/shm.
FROM python:3.11-slim AS build
# `otel` has what traces need (docs/tracing.md).
ARG REQUIREMENTS=run
WORKDIR /src
COPY requirements/${REQUIREMENTS}.txt requirements/
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements/${REQUIREMENTS}.txt
COPY . .
RUN mkdir /worker && cp -r app actors sinks Procfile /worker/ && rm -r /worker/app/demo \
 && printf '#!/venv/bin/python\nfrom app.cli.entry import main\nmain()\n' > /venv/bin/sb-worker && chmod +x /venv/bin/sb-worker \
 && /venv/bin/python -m compileall -q /venv /worker

FROM python:3.11-slim
COPY --from=build /venv /venv
COPY --from=build /worker /worker
WORKDIR /worker
ENV PATH=/venv/bin:$PATH PYTHONPATH=/worker PYTHONDONTWRITEBYTECODE=1 SB_WORKER_LOCAL_ADDR=0.0.0.0:8091
USER 65532:65532
EXPOSE 8091
ENTRYPOINT ["sb-worker"]
CMD ["run"]
