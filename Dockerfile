# The SDK container of a cloud worker: Beam's own image (its entry point included) with tokzip and what was tested.
#   docker build -t IMAGE . && docker push IMAGE
#   tokzip run … --runner=… --sdk_container_image=IMAGE        (Flink, Spark: --environment_config=IMAGE)
# A worker fetches models and tokenizers by name from the hub. Where it may not, give --model and --tokenizer a folder
# that the image has: COPY it in below, to the same path that the submitting machine has it at.
FROM apache/beam_python3.11_sdk:2.77.0

WORKDIR /opt/tokzip
COPY setup.py pyproject.toml constraints.txt MANIFEST.in LICENSE README.md ./
COPY tokzip_core tokzip_core
COPY pipelines pipelines
RUN pip install --no-cache-dir --constraint constraints.txt '.[fast,gcp,redis,s3]' && pip check

# Compile the kernels now, not in every new worker; for a processor level rather than for the machine that builds the
# image, so that workers find them. Workers may run as any user.
ENV NUMBA_CACHE_DIR=/opt/tokzip/numba NUMBA_CPU_NAME=x86-64-v3 NUMBA_CPU_FEATURES=
RUN cd / && python -c "import pyarrow as pa, tokzip_core as tz; t = pa.array([[1, 2, 3], [], None, [70000]]); \
    c = tz.train(t, codec='huffman'); assert tz.decode(tz.encode(t, c), c).equals(t.cast(pa.list_(pa.int32())))" \
    && chmod -R a+rwX "$NUMBA_CACHE_DIR"
WORKDIR /
