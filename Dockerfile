# For CPU and CUDA (torch's own packages bring CUDA; the base's C compiler is for torch.compile on a GPU):
#     docker build -t captioner .
#     docker run --rm -v "$PWD:/images" captioner caption.py /images/photo.jpg
#     docker run --rm --gpus all --shm-size=1g -v "$PWD/data:/captioner/data" \
#         -v "$PWD/checkpoints:/captioner/checkpoints" captioner train_encoder.py
# For CPU only, and smaller (URL is that of PyTorch's CPU packages, as its install page names it):
#     docker build -t captioner --build-arg BASE=python:3.12-slim --build-arg PIP_EXTRA_INDEX_URL=URL .
ARG BASE=python:3.12
FROM ${BASE}
ARG PIP_EXTRA_INDEX_URL
WORKDIR /captioner
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["python"]
CMD ["caption.py", "--help"]
