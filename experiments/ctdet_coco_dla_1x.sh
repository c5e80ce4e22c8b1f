#!/usr/bin/env bash
# COCO detection, DLA-34. Published AP on val2017: 36.3, with flip test 38.2, with flip and scales 40.7 (8 devices).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ctdet --exp_id coco_dla_1x --arch dla_34)
devices 8 --master_batch_size 9
train "${recipe[@]}" --batch_size 128 --lr 5e-4
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
evaluate "${recipe[@]}" --keep_res --flip_test --test_scales 0.5,0.75,1,1.25,1.5
