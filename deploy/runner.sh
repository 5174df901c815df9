#!/usr/bin/env bash
# A runner in a container of its own: `continua work` with these arguments, beside a Ray node that offers no CPUs.
#
#     RAY_ADDRESS=ray-head:6379 continua-runner --executor ray --searches 2
#
# A driver reaches the cluster through a Ray node of its own machine, so there must be one. Should that node end, so does
# the runner, and whoever started this starts it anew. SIGTERM goes to the runner, which hands back what it has; the
# node stays until the runner is gone. The exit code is the runner's, or 1 where the node went first.
set -u

ray start --address="${RAY_ADDRESS:?must name the head of the Ray cluster: HEAD:6379}" --num-cpus=0 --block &
node=$!
continua work "$@" &
work=$!
trap 'kill -TERM "$work" 2>/dev/null' TERM INT

alive() { kill -0 "$1" 2>/dev/null; }
while alive "$node" && alive "$work"; do wait -n "$node" "$work"; done

lost=0
if alive "$work" && ! alive "$node"; then
  echo "continua-runner: the Ray node has ended; so does the runner" >&2
  lost=1
  kill -TERM "$work" 2>/dev/null
fi
code=0
while alive "$work"; do wait "$work"; done
wait "$work" || code=$?
kill -TERM "$node" 2>/dev/null
wait "$node"
exit $((code ? code : lost))
