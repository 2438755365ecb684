# ldmrt's server on an NVIDIA GPU: the lean runtime with ONNX Runtime's CUDA provider, without PyTorch. From the project's folder:
#   docker build -f tools/containers/cuda.Dockerfile -t ldmrt:cuda .
#   docker run --rm --gpus 1 --read-only --tmpfs /tmp -p 7860:7860 -v "$PWD/out/emoji64:/bundle:ro" ldmrt:cuda
# onnxruntime-gpu of constraints.txt was built for CUDA 13.0 and cuDNN 9, which the base image brings.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS python
# Ubuntu replaces its packages, so a pinned one is soon gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
# The extra `serve` brings onnxruntime, which lies in the same folder as onnxruntime-gpu: it goes first.
RUN python3 -m venv /opt/ldmrt \
    && /opt/ldmrt/bin/pip install --no-cache-dir -c /src/constraints.txt '/src[serve]' \
    && /opt/ldmrt/bin/pip uninstall -y onnxruntime \
    && /opt/ldmrt/bin/pip install --no-cache-dir -c /src/constraints.txt onnxruntime-gpu \
    && /opt/ldmrt/bin/pip uninstall -y pip

FROM python
COPY --from=build /opt/ldmrt /opt/ldmrt
ENV PATH=/opt/ldmrt/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 7860
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["ldmrt", "serve", "--host", "0.0.0.0", "--port", "7860", "--backend", "onnxruntime-cuda"]
CMD ["/bundle"]
