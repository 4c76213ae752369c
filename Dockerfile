# nispa with all its extras, for the CPU. Build and run, from a checkout:
#   docker build --tag nispa .
#   docker run --rm --user "$(id -u)" --volume "$PWD:/work" nispa run split-digits
# Runs are written to /work, the folder that is mounted, as the user that --user names.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
# A wheel with the compiled kernels; the compiler stays behind.
RUN NISPA_REQUIRE_KERNELS=1 pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:${PYTHON}-slim
# Where to find another build of PyTorch than the package index has, such as the one for CPUs alone,
# which is smaller by gigabytes: the address that the selector on pytorch.org prints.
ARG TORCH_INDEX=
COPY --from=build /wheels /wheels
COPY constraints.txt /constraints.txt
RUN pip install --no-cache-dir --constraint /constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && wheel="$(echo /wheels/nispa-*.whl)" \
    && pip install --no-cache-dir --constraint /constraints.txt "${wheel}[all]" \
    && rm -r /wheels /constraints.txt \
    && nispa doctor
RUN useradd --create-home nispa
USER nispa
ENV NISPA_CACHE=/tmp/nispa MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
ENTRYPOINT ["nispa"]
CMD ["--help"]
