# The gateway, small and without root. Build: docker build -t learning-gateway .
FROM python:3.13-slim AS build
WORKDIR /source
RUN python -m venv /opt/gateway
COPY requirements.lock ./
RUN /opt/gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY graphql/schema.graphql graphql/
COPY gateway gateway
COPY schema schema
COPY resolvers resolvers
COPY sessions sessions
COPY storage storage
RUN /opt/gateway/bin/pip install --no-cache-dir --no-deps . \
 && /opt/gateway/bin/pip uninstall --yes pip \
 && find /opt/gateway -name '__pycache__' -prune -exec rm -rf {} +

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /data --no-create-home gateway \
 && install -d -o gateway -g gateway -m 0700 /data
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH PYTHONUNBUFFERED=1 GATEWAY_HOST=0.0.0.0 GATEWAY_PORT=8080 GATEWAY_DATA_FOLDER=/data
USER gateway
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
STOPSIGNAL SIGTERM
CMD ["learning-gateway", "serve"]
