# Two images from one file:
#
#   docker build -t ternausnet-serve .                          for CUDA; serves on the CPU without a GPU
#   docker build -t ternausnet-serve:cpu --target cpu .         CPU only: neither torch nor CUDA in it
#
# Every Python package is pinned by hash (requirements/*.txt). Compilers, caches, pip and uv stay in
# the build stages. How to run it: docs/operations.md, "Containers".

# Also what the stand-in for a proof without a registry is made of (docker/prove-image).
ARG CPU_BASE=debian:trixie-slim
# The CUDA version of the `cuda-toolkit` that requirements/cuda.txt pins. `base` and not `runtime`:
# torch brings its libraries as pinned packages, and a second copy (2 GB) would never be loaded.
# What `base` adds is the compatibility libraries for older drivers of data-centre GPUs.
ARG CUDA_BASE=nvidia/cuda:13.2.2-base-ubuntu24.04


# ---------------------------------------------------------------------------------------- CPU ----

FROM ${CPU_BASE} AS cpu-base
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/*.log /var/log/apt \
    && useradd --system --uid 10001 --user-group --home-dir /var/cache/ternaus --shell /usr/sbin/nologin ternaus \
    && install -d -o ternaus -g ternaus /models /var/cache/ternaus

FROM cpu-base AS cpu-tools
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/uv.txt /build/requirements/
RUN python3 -m venv /build/boot \
    && /build/boot/bin/pip install --no-cache-dir --require-hashes -r /build/requirements/uv.txt
ENV PATH=/build/boot/bin:$PATH UV_CACHE_DIR=/build/cache UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never

# What serving needs, and no more of it: OpenVINO comes with plugins for Intel's GPU and NPU and
# with readers of other frameworks' files, botocore with every service of its cloud.
FROM cpu-tools AS cpu-packages
COPY requirements/cpu.txt /build/requirements/
RUN --mount=type=cache,target=/build/cache \
    uv venv --quiet --python /usr/bin/python3 /opt/ternaus \
    && uv pip install --python /opt/ternaus/bin/python --require-hashes --only-binary :all: \
        --compile-bytecode -r /build/requirements/cpu.txt \
    && libraries="$(/opt/ternaus/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && rm -f "$libraries"/openvino/libs/libopenvino_intel_gpu_plugin.so \
        "$libraries"/openvino/libs/libopenvino_intel_npu*.so \
        "$libraries"/openvino/libs/cache.json \
        "$libraries"/openvino/libs/libopenvino_gguf_frontend.so* \
        "$libraries"/openvino/libs/libopenvino_jax_frontend.so* \
        "$libraries"/openvino/libs/libopenvino_onnx_frontend.so* \
        "$libraries"/openvino/libs/libopenvino_paddle_frontend.so* \
        "$libraries"/openvino/libs/libopenvino_pytorch_frontend.so* \
        "$libraries"/openvino/libs/libopenvino_tensorflow*_frontend.so* \
    && find "$libraries"/botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name 'sso*' -exec rm -rf {} +

# torch is needed once, to draw the nets for OpenVINO; it stays in this stage. Their weights are those
# of whatever models the server is given.
FROM cpu-tools AS templates
COPY requirements/cuda.txt /build/requirements/
RUN --mount=type=cache,target=/build/cache \
    uv venv --quiet --python /usr/bin/python3 /build/torch \
    && uv pip install --python /build/torch/bin/python --require-hashes --only-binary :all: \
        -r /build/requirements/cuda.txt
COPY app /usr/lib/ternaus/app
COPY docker/image/templates.py /build/
RUN PYTHONPATH=/usr/lib/ternaus /build/torch/bin/python /build/templates.py /usr/share/ternaus/templates

FROM cpu-base AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="TernausNet Serve" \
      org.opencontainers.image.description="Pictures in, masks out: TernausNet segmentation on the CPU" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=cpu-packages /opt/ternaus /opt/ternaus
COPY --chown=10001:10001 model_store /models
COPY --from=templates /usr/share/ternaus/templates /usr/share/ternaus/templates
COPY docker/image/ternaus /usr/local/bin/ternaus
COPY docker/image/health.py LICENSE /usr/share/ternaus/
COPY app /usr/lib/ternaus/app
RUN /opt/ternaus/bin/python -m compileall -q /usr/lib/ternaus/app
ENV PYTHONPATH=/usr/lib/ternaus \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/cache/ternaus \
    TMPDIR=/var/cache/ternaus \
    TERNAUS_MODEL_STORE=/models \
    TERNAUS_CACHE_DIR=/var/cache/ternaus \
    TERNAUS_DEVICE=cpu
VOLUME ["/models", "/var/cache/ternaus"]
WORKDIR /var/cache/ternaus
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Docker does not restart what is unhealthy; orchestrators wait for this before they send traffic.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["/opt/ternaus/bin/python", "-I", "-S", "/usr/share/ternaus/health.py"]
ENTRYPOINT ["/usr/bin/tini", "--", "ternaus"]
CMD ["serve"]


# --------------------------------------------------------------------------------------- CUDA ----

FROM ${CUDA_BASE} AS cuda-base
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/*.log /var/log/apt \
    && useradd --system --uid 10001 --user-group --home-dir /var/cache/ternaus --shell /usr/sbin/nologin ternaus \
    && install -d -o ternaus -g ternaus /models /var/cache/ternaus

FROM cuda-base AS cuda-tools
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/uv.txt /build/requirements/
RUN python3 -m venv /build/boot \
    && /build/boot/bin/pip install --no-cache-dir --require-hashes -r /build/requirements/uv.txt
ENV PATH=/build/boot/bin:$PATH UV_CACHE_DIR=/build/cache UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never

# Headers and static libraries are for compilers, of which the image has none.
FROM cuda-tools AS cuda-packages
COPY requirements/cuda.txt /build/requirements/
RUN --mount=type=cache,target=/build/cache \
    uv venv --quiet --python /usr/bin/python3 /opt/ternaus \
    && uv pip install --python /opt/ternaus/bin/python --require-hashes --only-binary :all: \
        --compile-bytecode -r /build/requirements/cuda.txt \
    && libraries="$(/opt/ternaus/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && rm -rf "$libraries"/torch/include "$libraries"/torch/share \
    && find "$libraries"/nvidia \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.cuh' \) -type f -delete \
    && find "$libraries"/botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name 'sso*' -exec rm -rf {} +

FROM cuda-base AS cuda
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="TernausNet Serve" \
      org.opencontainers.image.description="Pictures in, masks out: TernausNet segmentation on NVIDIA GPUs" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=cuda-packages /opt/ternaus /opt/ternaus
COPY --chown=10001:10001 model_store /models
COPY docker/image/ternaus /usr/local/bin/ternaus
COPY docker/image/health.py LICENSE /usr/share/ternaus/
COPY app /usr/lib/ternaus/app
RUN /opt/ternaus/bin/python -m compileall -q /usr/lib/ternaus/app
ENV PYTHONPATH=/usr/lib/ternaus \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/cache/ternaus \
    TMPDIR=/var/cache/ternaus \
    TERNAUS_MODEL_STORE=/models \
    TERNAUS_CACHE_DIR=/var/cache/ternaus \
    TERNAUS_DEVICE=auto \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/models", "/var/cache/ternaus"]
WORKDIR /var/cache/ternaus
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["/opt/ternaus/bin/python", "-I", "-S", "/usr/share/ternaus/health.py"]
ENTRYPOINT ["/usr/bin/tini", "--", "ternaus"]
CMD ["serve"]
