# Two stages: the first has a compiler and builds the wheel, the second has none and installs it.
# tests/packaging runs these very steps without Docker, so the file holds only what that test understands:
# FROM, ENV, WORKDIR, COPY, RUN, USER, EXPOSE, HEALTHCHECK, ENTRYPOINT, CMD.

FROM python:3.13-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /build && /build/bin/pip install --quiet --constraint constraints.txt setuptools cython build
COPY LICENSE MANIFEST.in README.md pyproject.toml setup.py ./
COPY docs docs
COPY fastgate fastgate
RUN /build/bin/python -m build --no-isolation --wheel --outdir /wheel .

FROM python:3.13-slim
ENV PYTHONUNBUFFERED=1 FASTGATE_CONFIG=/etc/fastgate/gateway.yaml STATE_DIRECTORY=/var/lib/fastgate
COPY constraints.txt /install/
COPY --from=build /wheel /install/wheel
RUN python -m venv /opt/fastgate && /opt/fastgate/bin/pip install --quiet --only-binary :all: --constraint /install/constraints.txt /install/wheel/*.whl cel-expr-python jsonschema-rs
COPY deploy/gateway.yaml /etc/fastgate/gateway.yaml
RUN python -c "import os; os.makedirs('/var/lib/fastgate', 0o700); os.getuid() or os.chown('/var/lib/fastgate', 65532, 65532)"
WORKDIR /var/empty
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/opt/fastgate/bin/fastgate", "status"]
ENTRYPOINT ["/opt/fastgate/bin/fastgate"]
CMD ["run"]
