# moss_vllm with the versions of constraints.txt, for a GPU or a CPU:
#   docker build -t moss_vllm .
#   docker run --rm -it --gpus all -v "$PWD/runs:/home/moss/moss_vllm/runs" moss_vllm python recipes/favor_lora.py --dry-run
# torch brings its own CUDA libraries; on the host there is the driver and the container toolkit. The folder runs/ must be
# writable for user 1000.
FROM python:3.12-slim-bookworm

# Triton compiles its kernels' launchers with a C compiler. Debian keeps one version of a package, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 moss \
    && mkdir -p /home/moss/moss_vllm \
    && chown 1000:1000 /home/moss/moss_vllm
USER 1000
WORKDIR /home/moss/moss_vllm
ENV PATH=/home/moss/venv/bin:$PATH PYTHONUNBUFFERED=1

# Dependencies first: they stay cached while the code changes.
COPY --chown=1000:1000 pyproject.toml constraints.txt LICENSE ./
COPY --chown=1000:1000 moss_vllm/__init__.py moss_vllm/
RUN python -m venv /home/moss/venv \
    && pip install --no-cache-dir -c constraints.txt -e .

COPY --chown=1000:1000 . .

CMD ["python", "scripts/ask.py", "--help"]
