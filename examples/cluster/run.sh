#!/usr/bin/env bash
# A cluster on one machine: three Ray nodes, a Redis-compatible server, two runners and the API. Three searches are
# submitted, scaled, paused and resumed while a node, a runner and the API are killed; in the end all must be complete.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
[ -x "$PYTHON" ] || PYTHON=python3
exec "$PYTHON" examples/cluster/run.py "$@"
