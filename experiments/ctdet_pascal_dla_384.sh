#!/usr/bin/env bash
# PASCAL VOC 07+12, DLA-34 at 384. Published mAP on test 2007 with flip test: 79.3 (1 device).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ctdet --dataset pascal --exp_id pascal_dla_384 --arch dla_34)
devices 1
train "${recipe[@]}" --batch_size 32 --num_epochs 70 --lr_step 45,60
evaluate "${recipe[@]}"
evaluate "${recipe[@]}" --flip_test
