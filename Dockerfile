# A server for a merged model (docs/speaking.md). Build and run:
#   docker build -t higgsc-serve .
#   docker run --gpus all -p 127.0.0.1:8000:8000 -e HIGGSC_SERVE_TOKEN -v $PWD/runs/arabic/merged:/model:ro \
#     -v $PWD/voices:/voices:ro -v $HOME/.cache/huggingface:/cache higgsc-serve
FROM python:3.12-slim

RUN apt-get update && apt-get install -y --no-install-recommends libsndfile1 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 higgsc && mkdir /cache && chown higgsc /cache

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY higgsc higgsc
COPY templates templates
# From PyPI, torch comes with CUDA. For a CPU: --build-arg INDEX=https://download.pytorch.org/whl/cpu
ARG INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir --extra-index-url "$INDEX" --constraint constraints.txt '.[train,serve]'

USER higgsc
WORKDIR /home/higgsc
ENV HF_HOME=/cache HIGGSC_CACHE=/cache/higgsc
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Docker sends SIGTERM and waits 10 s unless told otherwise: `docker stop --time 130`.
ENTRYPOINT ["higgsc", "serve"]
CMD ["/model", "--voices", "/voices", "--host", "0.0.0.0", "--device", "cuda"]
