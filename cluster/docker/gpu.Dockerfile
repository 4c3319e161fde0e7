# The GPU image: the CUDA lock in a virtual environment, Rayward from this checkout, user 1000.
#   docker build -f cluster/docker/gpu.Dockerfile -t REGISTRY/rayward-gpu:0.1.0 .
FROM python:3.11.14-slim-bookworm AS build

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# A compiler, since DeepSpeed comes as source. The versions are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY Makefile pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY rayward rayward
COPY actors actors
COPY algorithms algorithms
COPY cluster cluster
COPY configs configs
COPY data data
COPY pipelines pipelines

# What `make install-gpu` does on any machine: every package by its hash, nothing beside the lock.
# The wheel takes the place of the editable install, which would want /src.
# hadolint ignore=DL3013
RUN make install-gpu VENV=/opt/rayward \
    && /opt/rayward/bin/pip uninstall --quiet --yes rayward \
    && /opt/rayward/bin/pip install --quiet --no-cache-dir --no-deps --no-build-isolation .


FROM python:3.11.14-slim-bookworm

ARG RAYWARD_VERSION=0.1.0
LABEL org.opencontainers.image.title="rayward" \
    org.opencontainers.image.version="${RAYWARD_VERSION}" \
    org.opencontainers.image.licenses="Apache-2.0"

# g++: vLLM and PyTorch compile kernels when they first run. wget: KubeRay's probes ask with it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ninja-build wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --create-home --shell /bin/bash rayward

COPY --from=build --chown=root:root /opt/rayward /opt/rayward

# CUDA comes with the packages of the lock; the driver is the machine's. DeepSpeed compiles its kernels
# with the nvcc that is among them. Caches go to the home folder, which is a volume where the root is
# read-only.
ENV PATH=/opt/rayward/bin:$PATH \
    HOME=/home/rayward \
    CUDA_HOME=/opt/rayward/lib/python3.11/site-packages/nvidia/cu13 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    RAY_TRAIN_V2_ENABLED=1

USER 1000:1000
WORKDIR /home/rayward
CMD ["rayward", "--help"]
