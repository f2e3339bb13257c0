# syntax=docker/dockerfile:1
# An application with emberd's classes and no engine: its vectors come from a server in another
# container or on another machine. Build it in the root of the repository:
#
#   docker build -f deploy/docker/Dockerfile.app -t emberd-app:local .

# A digest pins it for good: --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS environment
WORKDIR /src
COPY constraints.txt ./
COPY backend backend
COPY integrations integrations
# From the package index instead of the checkout: --build-arg PACKAGES='langchain-emberd==0.1.0'
ARG PACKAGES="./backend ./integrations/langchain-emberd"
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=SC2086
RUN python -m venv /opt/app && /opt/app/bin/pip install --no-compile ${PACKAGES}

FROM ${PYTHON_IMAGE} AS app
RUN groupadd --gid 10002 app && useradd --uid 10002 --gid 10002 --create-home app
COPY --from=environment /opt/app /opt/app
COPY deploy/docker/app.py /app/app.py
ENV PATH=/opt/app/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1
USER 10002:10002
ENTRYPOINT ["python", "/app/app.py"]
