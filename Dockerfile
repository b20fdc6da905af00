# ParetoCut with or without an NVIDIA card. Kernels are compiled where they run, once.
FROM python:3.12.12-slim-bookworm

# Triton compiles the launchers of its kernels with gcc.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# The home is for data sets and compiled kernels. Volumes take over who owns these folders.
RUN useradd --uid 1000 --create-home --home-dir /cache paretocut \
    && install --directory --owner paretocut /runs /artifacts

# The dependencies change seldom, and have a layer of their own.
WORKDIR /app
COPY pyproject.toml ./
RUN python -c "import tomllib; \
    print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt \
    && pip install --no-cache-dir -r requirements.txt
COPY . ./
RUN pip install --no-cache-dir --no-deps .

USER 1000
ENV PARETOCUT_OUTPUT_DIR=/runs
CMD ["python", "-m", "study.run"]
