#!/usr/bin/env bash
# Run a recipe on a TPU slice through XPK (https://github.com/AI-Hypercomputer/xpk), from the repository's root:
#
#   CLUSTER=mine PROJECT=my-project ZONE=us-east5-a NAME=stage2 bash launch/xpk.sh stage2_ode \
#       --student /data/ltx2 --contexts /data/contexts --pairs /data/pairs --folder /data/stage2 --steps 5000
#
# Arguments are the recipe's; its --mesh and --batch are filled in from TPU if neither is given. make_pairs runs too: each
# host works alone on its own four chips. /data must be storage that every host mounts (`xpk storage attach`). A workload
# that is restarted goes on from its last checkpoint. What is sent of the repository, .dockerignore says.
set -euo pipefail

for needed in CLUSTER PROJECT ZONE NAME; do
  [[ -n "${!needed:-}" ]] || { echo "error: set $needed, see the head of $0" >&2; exit 2; }
done
[[ -f requirements.txt && -d experiments ]] || { echo "error: run $0 from the repository's root" >&2; exit 2; }
[[ $# -ge 1 && -f "experiments/$1.py" ]] || { echo "error: '${1:-}' is no recipe of experiments/" >&2; exit 2; }
recipe=$1
shift

TPU=${TPU:-v5p-128}        # 64 chips of v5p as 4x4x4: XPK counts cores, two to a chip; v6e-128 is 128 chips as 8x16
IMAGE=${IMAGE:-python:3.11}
case $TPU in
  v5p-*) chips=$(( ${TPU#v5p-} / 2 )); tensor=1; copies=$(( chips < 64 ? 1 : 2 )) ;;  # two, or it sums: docs/pod.md
  v6e-*) chips=${TPU#v6e-}; tensor=8; copies=1 ;;
  *) echo "error: TPU=$TPU: must be v5p-N or v6e-N" >&2; exit 2 ;;
esac
rows=$(( chips / tensor ))
mesh=$copies,$(( rows / copies )),$tensor
if [[ $recipe == make_pairs ]]; then mesh=1,1,4 rows=1; fi # of each host
[[ " $* " == *" --mesh "* || " $* " == *" --batch "* ]] || set -- "$@" --mesh "$mesh" --batch "$rows"

command="pip install --quiet -r requirements.txt 'jax[tpu]==$(sed -n 's/^jax==//p' constraints.txt)'"
command+=" && python -m experiments.$recipe$(printf ' %q' "$@")"

exec xpk workload create \
  --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" --workload "$NAME" \
  --tpu-type "$TPU" --num-slices 1 --max-restarts "${RESTARTS:-10}" \
  --base-docker-image "$IMAGE" --script-dir . \
  --command "$command"
