#!/usr/bin/env bash
# COCO extreme points, DLA-34. Published AP on val2017: 33.0, with flip test 36.5, with flip and scales 38.5
# (8 devices).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(exdet --exp_id coco_dla --arch dla_34)
devices 8 --master_batch_size 1
train "${recipe[@]}" --batch_size 64 --lr 2.5e-4
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
evaluate "${recipe[@]}" --keep_res --flip_test --test_scales 0.5,0.75,1,1.25,1.5
