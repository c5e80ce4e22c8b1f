#!/usr/bin/env bash
# PASCAL VOC 07+12, DLA-34 at 512. Published mAP on test 2007 with flip test: 80.7 (2 devices).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ctdet --dataset pascal --exp_id pascal_dla_512 --arch dla_34 --input_res 512)
devices 2
train "${recipe[@]}" --batch_size 32 --num_epochs 70 --lr_step 45,60
evaluate "${recipe[@]}"
evaluate "${recipe[@]}" --flip_test
