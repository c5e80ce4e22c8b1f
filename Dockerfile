# CPU (default):   docker build -t centernet .
# CUDA:            docker build -t centernet --build-arg INDEX= --build-arg BASE=nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 .
# Training:        docker run --rm --shm-size 8g -v "$PWD/exp:/centernet/exp" centernet        (add --gpus all for CUDA)
#
# The steps are those of the README's quick start: a virtual environment, the requirements, the training.
ARG BASE=ubuntu:24.04
FROM ${BASE}

# OpenCV needs libgl1 and libglib2.0-0.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /centernet
RUN python3 -m venv .venv
ENV PATH="/centernet/.venv/bin:$PATH"
# The index of the PyTorch wheels: for the CPU by default; empty for the CUDA wheels of the standard index.
ARG INDEX=https://download.pytorch.org/whl/cpu
COPY requirements.txt .
RUN pip install --no-cache-dir ${INDEX:+--extra-index-url ${INDEX}} -r requirements.txt
COPY . .

CMD ["bash", "train_full_4p.sh"]
