#!/bin/sh
# Regenerate deploy/requirements.lock: the packages that the image installs, in the versions of the environment that ran the tests.
# torch and its dependencies are left out, because they differ between CPUs and GPUs; the Dockerfile installs them.
# Requires uv, and the environment's python first on PATH: `PATH=.venv/bin:$PATH deploy/lock.sh`.
set -eu
cd "$(dirname "$0")/.."
tested=$(mktemp)
trap 'rm -f "$tested"' EXIT
python -m pip list --format=freeze --exclude cafe-service > "$tested"
omitted=$(cut -d= -f1 "$tested" | grep -E '^(torch|torchvision|triton|nvidia-.*|cuda-.*)$' | sed 's/^/--no-emit-package /')
# shellcheck disable=SC2086 # splits into words
echo setuptools | uv pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraint "$tested" $omitted \
    pyproject.toml - --output-file deploy/requirements.lock
