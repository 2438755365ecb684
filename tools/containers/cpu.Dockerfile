# ldmrt's server on the CPU: the lean runtime, without PyTorch. From the project's folder:
#   docker build -f tools/containers/cpu.Dockerfile -t ldmrt:cpu .
#   docker run --rm --read-only --tmpfs /tmp -p 7860:7860 -v "$PWD/out/emoji64:/bundle:ro" ldmrt:cpu
FROM python:3.11-slim-bookworm AS build
COPY . /src
# The environment is made without pip, which the image then does not hold.
RUN python -m venv --without-pip /opt/ldmrt \
    && python -m pip --python /opt/ldmrt/bin/python install --no-cache-dir -c /src/constraints.txt '/src[serve]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/ldmrt /opt/ldmrt
ENV PATH=/opt/ldmrt/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 7860
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["ldmrt", "serve", "--host", "0.0.0.0", "--port", "7860"]
CMD ["/bundle"]
