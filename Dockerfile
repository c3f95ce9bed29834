# docker build -t opposing-signals .  &&  docker run --rm -v "$PWD/outputs:/home/user/outputs" opposing-signals demo
# With a GPU: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 ., and docker run --gpus all
FROM python:3.13-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /opt/opposing-signals
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" \
        --constraint /opt/opposing-signals/constraints.txt "/opt/opposing-signals[text]" \
    && rm -r /opt/opposing-signals \
    && useradd --create-home user
USER user
WORKDIR /home/user
ENTRYPOINT ["opposing-signals"]
CMD ["--help"]
