# Grades a folder of studies without a network.
#
#   docker build -t osteograde .
#   docker run --rm --network none --read-only --tmpfs /tmp --shm-size 2g \
#     -v "$PWD/studies:/data:ro" -v "$PWD/out:/out" osteograde --data /data --out /out/submission.csv
#
# Add --gpus all for a GPU. The output folder must be writable by user 1000 (--user "$(id -u)" is the other way).
# Kaggle's own image brings its packages: --build-arg BASE=gcr.io/kaggle-gpu-images/python --build-arg LOCK=none
# Training: --entrypoint python osteograde train_folds.py TASK --data /data --out /out
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG LOCK=requirements.lock

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/app/src HF_HUB_OFFLINE=1
WORKDIR /app
COPY requirements.lock ./
RUN if [ "$LOCK" != none ]; then pip install --quiet --no-cache-dir -r "$LOCK"; fi
COPY LICENSE pyproject.toml inference.py train_folds.py ./
COPY src src
COPY weights weights
RUN mkdir -p /data /out && chown 1000:1000 /out
USER 1000
ENTRYPOINT ["python", "inference.py"]
