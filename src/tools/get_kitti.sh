#!/usr/bin/env bash
# Download, check, unpack and convert the KITTI object benchmark. See --help.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
set -euo pipefail
unset CDPATH # with it, cd prints

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../.." && pwd)
DEFAULT_HOST=https://s3.eu-central-1.amazonaws.com/avg-kitti
PYTHON=${PYTHON:-python3}

# One row per file, in parallel arrays because the Bash of macOS (3.2) has no associative arrays. The first ZIPS are
# archives; the others list the training images. SHA-256 checksums; a file without one is verified by reading it. The
# last three sizes are approximate.
SUB_PATHS=(data_object_image_2.zip data_object_label_2.zip data_object_calib.zip imagesets.tar.gz kitti_ids_val.txt)
ADDRESSES=(
    "$DEFAULT_HOST/data_object_image_2.zip"
    "$DEFAULT_HOST/data_object_label_2.zip"
    "$DEFAULT_HOST/data_object_calib.zip"
    https://xiaozhichen.github.io/files/mv3d/imagesets.tar.gz
    https://raw.githubusercontent.com/tanshen/SubCNN/master/KITTI/kitti_ids_val.txt
)
SUMS=(
    351c5a2aa0cd9238b50174a3a62b846bc5855da256b82a196431d60ff8d43617
    4efc76220d867e1c31bb980bbf8cbc02599f02a9cb4350effa98dbb04aaed880
    '' '' ''
)
SUM_FORM=sha256 SUM_LENGTH=64
BYTES=(12569945557 5601213 30000000 100000 20000)
FOLDERS=("training/image_2 testing/image_2" "training/label_2" "training/calib testing/calib")
ZIPS=3
SPLITS=('' '' '' 3dop subcnn)

usage() {
    cat <<END
Usage: get_kitti.sh [--out DIR] [--mirror URL]... [--keep] [--checksums FILE]

Fills DIR/kitti with training/, testing/, ImageSets_3dop/, ImageSets_subcnn/, images/ and annotations/ from KITTI's
object benchmark: left color images, labels and cameras (12.6 GB; 26 GB of disk space while it runs). After an
interruption, run it again: it continues where it stopped, and does nothing if everything is complete.

  --out DIR         data directory; default: $REPOSITORY/data
  --mirror URL      a URL to try before the official ones; repeatable, or comma-separated. It has the files
                    directly below URL:
                      ${SUB_PATHS[0]} ${SUB_PATHS[1]} ${SUB_PATHS[2]}
                      ${SUB_PATHS[3]} ${SUB_PATHS[4]}
  --keep            keep the archives in DIR/kitti/archives instead of removing each after unpacking
  --checksums FILE  SHA-256 checksums of a mirror with repacked archives: lines
                    "sha256  name" or "sha256  name  bytes", for one or more files (bytes: for the disk space check)
  --help            print this text

The images come from $DEFAULT_HOST, the URL that
http://www.cvlibs.net/datasets/kitti/eval_object.php provides after registration; their license is CC BY-NC-SA 3.0.
The two splits into training and validation are those of 3DOP (${ADDRESSES[3]})
and of SubCNN (${ADDRESSES[4]}).
If DIR/kitti/ImageSets_{3dop,subcnn} already contains train.txt and val.txt, these are used.

A file that exists in DIR/kitti/archives is used instead of a download if it is valid, and removed otherwise.
Needs curl or wget, and Python 3.10 or later as python3 (or the environment variable PYTHON).
END
}

# shellcheck source=src/tools/download.sh
. "$HERE/download.sh"

marker_of() { printf '%s' "$DATA/.unpacked_${SUB_PATHS[$1]%.zip}"; } # file number

is_unpacked() { # file number
    local marker folder
    marker=$(marker_of "$1")
    [ -f "$marker" ] && [ "$(cat "$marker")" = "${SUMS[$1]:-no sum}" ] || return 1
    for folder in ${FOLDERS[$1]}; do
        [ -d "$DATA/$folder" ] || return 1
    done
}

has_image_sets() { # split
    [ -f "$DATA/ImageSets_$1/train.txt" ] && [ -f "$DATA/ImageSets_$1/val.txt" ]
}

check_tools() {
    command -v "$PYTHON" >/dev/null 2>&1 ||
        die "'$PYTHON' was not found; install Python 3.10 or later, or set the environment variable PYTHON"
    "$PYTHON" -c 'import sys, zlib; sys.exit(sys.version_info < (3, 10))' ||
        die "'$PYTHON' is too old; Python 3.10 or later"
}

unpack() { # file number
    local archive=$ARCHIVES/${SUB_PATHS[$1]} folder marker
    log "Unpacking $archive"
    "$PYTHON" - "$archive" "$DATA" "${FOLDERS[$1]}" <<'PY' || exit 1
import shutil, stat, sys, zipfile, zlib
from pathlib import Path

archive, data, folders = sys.argv[1:]
folders = [tuple(folder.split("/")) for folder in folders.split()]


def fail(text):
    sys.exit(f"error: {archive}: {text}")


try:
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if not member.is_dir()]
        # All members before the first is written: an invalid archive leaves no files behind.
        for member in members:
            parts = tuple(member.filename.split("/"))
            plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
            if len(parts) != 3 or parts[:2] not in folders or parts[2] in ("", ".", "..") or "\\" in member.filename:
                places = " or ".join("/".join(folder) for folder in folders)
                fail(f"refused to unpack {member.filename!r}, which is not directly inside {places}")
            if not plain:
                fail(f"refused to unpack {member.filename!r}, which is not a regular file")
        found = {tuple(member.filename.split("/")[:2]) for member in members}
        for folder in folders:
            if folder not in found:
                fail(f"does not contain {'/'.join(folder)}")
        size, free = sum(member.file_size for member in members), shutil.disk_usage(data).free
        if size > free:
            fail(f"needs {size >> 20} MB in {data}, {free >> 20} MB are free; --out sets another directory")
        for folder in folders:
            Path(data, *folder).mkdir(parents=True, exist_ok=True)
        for member in members:
            with file.open(member) as source, open(Path(data, *member.filename.split("/")), "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
    fail(f"cannot be unpacked into {data}: {' '.join(str(error).split())}")
PY
    marker=$(marker_of "$1")
    printf '%s\n' "${SUMS[$1]:-no sum}" >"$marker" || die "cannot write $marker"
    [ $KEEP = yes ] || rm -f "$archive"
}

# Writes ImageSets_<split>/{train,val,trainval,test}.txt from the file that defines the split.
write_image_sets() { # file number
    local archive=$ARCHIVES/${SUB_PATHS[$1]}
    "$PYTHON" - "$archive" "$DATA" "${SPLITS[$1]}" <<'PY' || exit 1
import os, sys, tarfile
from pathlib import Path

archive, data, split = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]


def fail(text):
    sys.exit(f"error: {archive}: {text}")


def stems(folder, suffix):
    return sorted(path.stem for path in (data / folder).glob(f"*.{suffix}"))


sets = {}
try:
    if split == "3dop":
        # The lists are read without unpacking the archive.
        with tarfile.open(archive) as tar:
            for member in tar:
                part, suffix = os.path.splitext(os.path.basename(member.name))
                if member.isfile() and suffix == ".txt" and part in ("train", "val", "trainval", "test"):
                    names = tar.extractfile(member).read().decode("ascii").split()
                    sets[part] = [f"{int(name):06d}" for name in names]
    else:
        count, *val = [int(line) for line in archive.read_text(encoding="ascii").split()]
        if count != len(val):
            fail(f"states {count} numbers, and has {len(val)}")
        sets["val"] = [f"{number:06d}" for number in val]
        sets["trainval"], sets["test"] = stems("training/label_2", "txt"), stems("testing/calib", "txt")
        sets["train"] = sorted(set(sets["trainval"]) - set(sets["val"]))
except (tarfile.TarError, ValueError, EOFError, OSError) as error:
    fail(f"cannot be read: {' '.join(str(error).split())}")
for part in ("train", "val"):
    if not sets.get(part):
        fail(f"names no images for {part}")
absent = sorted({*sets["train"], *sets["val"]} - set(stems("training/label_2", "txt")))
if absent:
    fail(f"lists images missing from {data / 'training' / 'label_2'}: {absent[0]}, {len(absent)} in all")
folder = data / f"ImageSets_{split}"
try:
    folder.mkdir(exist_ok=True)
    # train and val last: they mark the split as complete.
    for part in sorted(sets, key=("test", "trainval", "train", "val").index):
        temporary = folder / f"{part}.txt.tmp"
        temporary.write_text("".join(f"{name}\n" for name in sets[part]))
        os.replace(temporary, folder / f"{part}.txt")
except OSError as error:
    sys.exit(f"error: {folder}: cannot be written ({error.strerror})")
print(f"{folder}: {len(sets['train'])} images for training, {len(sets['val'])} for validation")
PY
    [ $KEEP = yes ] || rm -f "$archive"
}

get_image_sets() {
    local number split
    for number in "${!SUB_PATHS[@]}"; do
        split=${SPLITS[number]}
        [ -n "$split" ] && ! has_image_sets "$split" || continue
        mkdir -p "$ARCHIVES" 2>/dev/null || die "cannot make the folder $ARCHIVES"
        if fetch "$number"; then
            write_image_sets "$number"
        else
            log "Continuing without the split $split ($TRIED);"
            log "  put its train.txt and val.txt into $DATA/ImageSets_$split, or use --mirror, and run again"
        fi
    done
    has_image_sets 3dop || has_image_sets subcnn ||
        die "no list of the training images; put train.txt and val.txt into $DATA/ImageSets_3dop"
}

# Prints a digest of the sources of the annotations; if it changes, the annotations are regenerated.
state() {
    "$PYTHON" - "$DATA" "${SUMS[@]}" <<'PY'
import hashlib, sys
from pathlib import Path

digest = hashlib.sha256("\n".join(sys.argv[2:]).encode())
for path in sorted(Path(sys.argv[1]).glob("ImageSets_*/*.txt")):
    digest.update(f"{path.parent.name}/{path.name}\n".encode() + path.read_bytes())
print(digest.hexdigest())
PY
}

convert() {
    local marker=$DATA/annotations/.converted now split part finished=no
    now=$(state) || die "cannot read the image sets in $DATA"
    if [ -d "$DATA/images/trainval" ] && [ -d "$DATA/training/label_val" ] && [ -f "$marker" ] &&
        [ "$(cat "$marker")" = "$now" ]; then
        finished=yes
        for split in 3dop subcnn; do
            has_image_sets $split || continue
            for part in train val; do
                [ -f "$DATA/annotations/kitti_${split}_$part.json" ] || finished=no
            done
        done
    fi
    [ $finished = no ] || return 0
    log "Converting $DATA"
    "$PYTHON" "$HERE/convert_kitti_to_coco.py" "$DATA" --arrange || exit 1
    printf '%s\n' "$now" >"$marker" || die "cannot write $marker"
}

report() {
    "$PYTHON" - "$DATA/annotations" <<'PY' || die "$DATA/annotations: unreadable files; remove them, run again"
import json, os, sys

for name, full in (("3dop_train", 3712), ("3dop_val", 3769), ("subcnn_train", 3682), ("subcnn_val", 3799)):
    path = f"{sys.argv[1]}/kitti_{name}.json"
    if os.path.exists(path):
        with open(path) as file:
            number = len(json.load(file)["images"])
        print(f"{name}: {number} images" + ("" if number == full else f" (the full set has {full})"))
PY
    log "The data is in $DATA. Next:"
    printf '    python src/main.py ddd --dataset kitti --kitti_split 3dop --data_path=%q\n' "$OUT"
}

main() {
    local number
    local -a pending=()
    parse_options "$@"
    mkdir -p -- "$OUT/kitti" 2>/dev/null || die "cannot make the folder $OUT/kitti"
    OUT=$(cd -- "$OUT" && pwd)
    DATA=$OUT/kitti
    ARCHIVES=$DATA/archives
    check_tools
    lock "$DATA"
    for ((number = 0; number < ZIPS; number++)); do
        is_unpacked "$number" || pending+=("$number")
    done
    if [ ${#pending[@]} -gt 0 ]; then
        mkdir -p "$ARCHIVES" 2>/dev/null || die "cannot make the folder $ARCHIVES"
        check_disk_space "${pending[@]}"
        for number in "${pending[@]}"; do
            fetch "$number" ||
                die "could not download ${SUB_PATHS[number]} ($TRIED); run again to continue, or use --mirror"
            unpack "$number"
        done
    fi
    get_image_sets
    rmdir "$ARCHIVES" 2>/dev/null || true # kept if it is not empty
    convert
    report
}

main "$@"
