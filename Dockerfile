# The trainer in a container, for CPUs and for NVIDIA GPUs: torch's wheel brings CUDA's libraries, the host its driver.
#
#   docker build --tag m3p .
#   docker run --rm --volume "$PWD:/work" m3p prepare scenes --output data_shards/scenes
#   docker run --rm --volume "$PWD:/work" --shm-size 8g --gpus all m3p train --recipe demo --deepspeed_config zero1
#
# Loader and ranks talk through /dev/shm: give it some gigabytes. For a smaller image without CUDA, name the package index
# of torch's CPU wheels (pytorch.org, "Get started"): --build-arg TORCH_INDEX=URL.
# A test reads this file and compares its steps with the install page; no image was ever built from it.
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH_INDEX=
# Extras of the package: s3, gcs, hub, or several with commas between.
ARG EXTRAS=s3
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Triton compiles its launcher at the first kernel on a GPU.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends gcc libc6-dev \
  && rm -rf /var/lib/apt/lists/*

COPY requirements.txt /tmp/
# The pinned versions of what training needs; the tools of the tests stand behind them in the file.
RUN sed '/^# Tests and checks/,/^# Kernels/d' /tmp/requirements.txt >/tmp/pinned.txt \
  && python -m pip install --requirement /tmp/pinned.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}

COPY . /opt/m3p
RUN python -m pip install --constraint /tmp/pinned.txt "/opt/m3p[${EXTRAS}]"

WORKDIR /work
ENTRYPOINT ["m3p"]
CMD ["--help"]
