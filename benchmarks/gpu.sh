#!/usr/bin/env bash
# Every command on a CUDA GPU, and images/s of training against the network alone.
#
#   benchmarks/gpu.sh tests                       tests/gpu, which need pytest
#   benchmarks/gpu.sh commands [FOLDER [OUT]]     every command, 9 minutes
#   benchmarks/gpu.sh speed [64]                  images/s at 32 px, 5 minutes, or at 64 px
#   benchmarks/gpu.sh compile                     images/s of SimCLR in each mode of torch.compile
#   benchmarks/gpu.sh peer                        images/s of lightly 1.6, which PYTHON must have
#
# FOLDER: images in train/CLASS and test/CLASS; without it, scikit-learn's digits.
# OUT (default: a temporary folder) gets the commands' output and their times, commands.txt. Exits with 1 if a command failed.
# PYTHON=... names the Python that has torch.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=${1:-commands}; shift
data=(dataset=digits)
[ -n "${1:-}" ] && data=(dataset=folder "dataset.root=$(realpath "$1")" dataset.image_size=32)
out=$(realpath "${2:-$(mktemp -d)}")
python=${PYTHON:-python3}
export PYTHONPATH=$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH}
work=$(mktemp -d) && cd "$work" || exit 1
export SSLRUN_CACHE=$work/cache
failed=0

try() {  # NAME COMMAND...: time a command, keep its output, and report its exit code
  local name=$1 began=$(date +%s%N) ms; shift
  timeout 180 "$@" > "$out/$name.log" 2>&1; local code=$?
  [ $code = 0 ] || { failed=1; tail -n 15 "$out/$name.log"; }
  ms=$((($(date +%s%N) - began) / 1000000))
  printf '%-24s exit %d  %3d.%03d s\n' "$name" $code $((ms / 1000)) $((ms % 1000)) | tee -a "$out/commands.txt"
}
sslrun() { local name=$1; shift; try "$name" "$python" -m sslrun "$@"; }
newest() { ls -d "outputs/$1"/2*/ | tail -n 1; }

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "torch sees no CUDA GPU")' || exit 1
[ "$what" = tests ] && exec "$python" -m pytest -q -p no:cacheprovider "$here/../tests/gpu"
[[ $what =~ ^(speed|compile|peer)$ ]] && exec "$python" "$here/gpu.py" "$what" "$@"
for pretext in rotation jigsaw simclr; do
  sslrun "pretrain_$pretext" pretrain pretext=$pretext "${data[@]}" train.epochs=3 train.evaluations=3 device=cuda
done
for file in "$here"/../conf/pretext/*.yaml; do
  pretext=$(basename "$file" .yaml)
  case $pretext in rotation | jigsaw | simclr | distill) continue ;; esac  # above; without published weights
  [ "$pretext" = colorization ] && [ "${data[0]}" = dataset=digits ] && continue  # gray
  sslrun "pretrain_$pretext" pretrain pretext="$pretext" "${data[@]}" dataset.image_size=32 train.steps=20 train.evaluations=1 device=cuda
done
sslrun pretrain_compiled pretrain "${data[@]}" train.steps=20 train.evaluations=1 device=cuda device.compile=default
sslrun pretrain_fp16 pretrain "${data[@]}" train.steps=20 train.evaluations=1 device=cuda device.precision=fp16
sslrun pretrain_resnet18 pretrain backbone=resnet18 "${data[@]}" train.steps=20 train.evaluations=1 device=cuda
sslrun pretrain_mobilenetv2 pretrain backbone=mobilenetv2 "${data[@]}" train.steps=20 train.evaluations=1 device=cuda
for mode in knn probe finetune; do
  sslrun "finetune_$mode" finetune init=simclr mode=$mode labels_per_class=10 train.steps=100 device=cuda
done
sslrun resume finetune resume=latest
sslrun evaluate evaluate device=cuda
images=$("$python" - "$work/images" <<'P'
import pathlib, sys
import numpy as np
from PIL import Image
folder = pathlib.Path(sys.argv[1]); folder.mkdir()
for i, a in enumerate(np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)):
    Image.fromarray(a).save(folder / f"{i}.png")
print(folder)
P
)
sslrun predict_cuda predict "$images" format=csv device=cuda
sslrun predict_cpu predict "$images" format=csv device=cpu
sslrun embed embed "$images" device=cuda
sslrun suggest suggest "$images" n=5 device=cuda
sslrun search search "$images/0.png" in="$images" n=3 device=cuda
sslrun compare compare 'inits=[simclr]' "${data[@]}" labels_per_class=[5] seeds=2 mode=finetune \
  'search=[]' train.epochs=1 finetune.train.steps=20 device=cuda
try checks "$python" "$here/gpu.py" checks "$(newest finetune)"
cat "$out/checks.log"
rm -rf "$work"
exit $failed
