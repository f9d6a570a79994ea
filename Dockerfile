# cos with everything that trains and evaluates on NVIDIA GPUs. Every step below was built (Buildah 1.28) with Debian 12 in the place
# of the base image and torch's CPU build; `cos doctor --for train` and `cos demo --quick` ran in it as the user cos. NVIDIA's image
# and a GPU are untried. The driver of the host must know the CUDA version of the base image (`cos doctor` says both).
#   docker build -t cos .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" cos doctor --for infer
FROM nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04
# The devel image, not runtime: DeepSpeed compiles CPUAdam with nvcc and g++ when zero3_offload is first used.

RUN apt-get update \
 && apt-get install -y --no-install-recommends git g++ ninja-build python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/cos/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/cache/huggingface

RUN python3 -m venv /opt/cos
WORKDIR /src
COPY constraints.txt ./
# torch first and by itself: the longest layer, and the one that changes least.
RUN pip install -c constraints.txt torch && pip install -c constraints.txt wheel setuptools hatchling editables
COPY pyproject.toml README.md LICENSE ./
COPY cos_cli cos_cli
COPY cos_core cos_core
COPY templates templates
COPY completions completions
RUN DS_BUILD_OPS=0 pip install -c constraints.txt --no-build-isolation '.[train,sheets]' \
 && cos completion show bash > /etc/bash_completion.d/cos \
 && cos --version

# Not root: what is written into a mounted folder belongs to whoever `--user` says.
RUN useradd --create-home --uid 10001 cos && mkdir -p /cache /work && chown cos /cache /work
USER cos
WORKDIR /work
ENTRYPOINT ["cos"]
CMD ["--help"]
