#!/bin/sh
# Checks this repository, the same way on a laptop and in CI: every kustomization renders, every image is named by digest, and
# every object is valid against its strict schema. An object of an unknown kind fails; nothing is skipped.
#
# Needs kubectl (or kustomize), and Python 3.10 or newer with the packages of scripts/requirements.txt:
#   python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements.txt && PYTHON=.venv/bin/python scripts/validate.sh
set -eu
exec "${PYTHON:-python3}" "$(dirname "$0")/validate.py" "$@"
