#!/usr/bin/env bash
# Download, check, unpack and convert the KITTI object benchmark. See --help.
set -euo pipefail
unset CDPATH # with it, cd prints

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../.." && pwd)
DEFAULT_HOST=https://s3.eu-central-1.amazonaws.com/avg-kitti
PYTHON=${PYTHON:-python3}

# One row a file, in parallel arrays because the shell of macOS (3.2) has no others. The first ZIPS of them are the
# archives; the others say which pictures are for training. SHA-256 sums; a file without one is checked by its contents.
# The last three sizes are rough.
NAMES=(data_object_image_2.zip data_object_label_2.zip data_object_calib.zip imagesets.tar.gz kitti_ids_val.txt)
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
BYTES=(12569945557 5601213 30000000 100000 20000)
FOLDERS=("training/image_2 testing/image_2" "training/label_2" "training/calib testing/calib")
ZIPS=3
SPLITS=('' '' '' 3dop subcnn)

usage() {
    cat <<END
Usage: get_kitti.sh [--out DIR] [--mirror URL]... [--keep] [--checksums FILE]

Fills DIR/kitti with training/, testing/, ImageSets_3dop/, ImageSets_subcnn/, images/ and annotations/ from KITTI's
object benchmark: left colour pictures, labels and cameras (12.6 GB; 26 GB on the disk while it works). After an
interruption, run it again: it goes on where it stopped, and does nothing when all is done.

  --out DIR         data folder; without it the repository's: $REPOSITORY/data
  --mirror URL      a place to try before the official ones; several times, or several with commas. It has the files
                    directly under URL:
                      ${NAMES[0]} ${NAMES[1]} ${NAMES[2]}
                      ${NAMES[3]} ${NAMES[4]}
  --keep            keep the archives in DIR/kitti/archives instead of removing each once it is unpacked
  --checksums FILE  other SHA-256 sums than the known ones, for a mirror with repacked archives: lines
                    "sha256  name" or "sha256  name  bytes", for one file or more (bytes: for the disk space check)
  --help            this text

The pictures come from $DEFAULT_HOST, as KITTI's own page
http://www.cvlibs.net/datasets/kitti/eval_object.php names them after a registration; their licence is CC BY-NC-SA 3.0.
The two divisions into training and validation are those of 3DOP (${ADDRESSES[3]})
and of SubCNN (${ADDRESSES[4]}).
A division for which DIR/kitti/ImageSets_{3dop,subcnn} already has train.txt and val.txt is taken from there.

A file that already lies in DIR/kitti/archives is used instead of a download if it is right, and removed if it is
not. Needs curl or wget, and Python 3.10 or later as python3 (or as the environment variable PYTHON says).
END
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
usage_error() {
    printf 'error: %s (--help lists the options)\n' "$*" >&2
    exit 2
}

parse_options() {
    OUT=$REPOSITORY/data
    KEEP=no
    MIRRORS=()
    local option value
    while [ $# -gt 0 ]; do
        option=$1
        shift
        case $option in
            --help | -h)
                usage
                exit 0
                ;;
            --keep)
                KEEP=yes
                continue
                ;;
            --out=* | --mirror=* | --checksums=*)
                value=${option#*=}
                option=${option%%=*}
                ;;
            --out | --mirror | --checksums)
                [ $# -gt 0 ] || usage_error "$option needs a value"
                value=$1
                shift
                ;;
            *) usage_error "unknown option '$option'" ;;
        esac
        [ -n "$value" ] || usage_error "$option needs a value"
        case $option in
            --out) OUT=$value ;;
            --mirror) add_mirrors "$value" ;;
            --checksums) read_checksums "$value" ;;
        esac
    done
}

add_mirrors() {
    local url
    local -a urls
    IFS=, read -r -a urls <<<"$1"
    for url in "${urls[@]}"; do
        case $url in
            http://?* | https://?* | ftp://?*) MIRRORS+=("${url%/}") ;;
            *) usage_error "--mirror '$url' is not an address that starts with http://, https:// or ftp://" ;;
        esac
    done
}

read_checksums() {
    local file=$1 sum name bytes rest number known
    [ -r "$file" ] && [ ! -d "$file" ] || usage_error "--checksums: cannot read '$file'"
    while read -r sum name bytes rest || [ -n "$sum" ]; do
        case $sum in '' | '#'*) continue ;; esac
        name=${name#\*} # sha256sum marks a file read as binary
        [[ $sum =~ ^[0-9a-f]{64}$ && $bytes =~ ^[0-9]*$ && -z $rest ]] ||
            usage_error "--checksums: '$file' has a line that is not 'sha256  name' or 'sha256  name  bytes': $sum"
        known=no
        for number in "${!NAMES[@]}"; do
            if [ "${NAMES[number]}" = "$name" ]; then
                known=yes
                SUMS[number]=$sum
                BYTES[number]=${bytes:-${BYTES[number]}}
            fi
        done
        [ $known = yes ] || usage_error "--checksums: '$file' names '$name', which is not one of the files"
    done <"$file"
}

marker_of() { printf '%s' "$KITTI/.unpacked_${NAMES[$1]%.zip}"; } # file number

is_unpacked() { # file number
    local marker folder
    marker=$(marker_of "$1")
    [ -f "$marker" ] && [ "$(cat "$marker")" = "${SUMS[$1]:-no sum}" ] || return 1
    for folder in ${FOLDERS[$1]}; do
        [ -d "$KITTI/$folder" ] || return 1
    done
}

has_image_sets() { # split
    [ -f "$KITTI/ImageSets_$1/train.txt" ] && [ -f "$KITTI/ImageSets_$1/val.txt" ]
}

check_tools() {
    command -v "$PYTHON" >/dev/null 2>&1 ||
        die "'$PYTHON' is not there; install Python 3.10 or later, or name it with the environment variable PYTHON"
    "$PYTHON" -c 'import sys, zlib; sys.exit(sys.version_info < (3, 10))' ||
        die "'$PYTHON' is too old; it takes Python 3.10 or later"
}

find_downloader() {
    if command -v curl >/dev/null 2>&1; then
        DOWNLOADER=curl
    elif command -v wget >/dev/null 2>&1; then
        DOWNLOADER=wget
    else
        die "neither curl nor wget is there to download with; install one, or put the files into $ARCHIVES"
    fi
}

size_of() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }

check_disk_space() { # numbers of the archives that are still to be unpacked
    local number archive size present needed=0 largest=0 free
    for number in "$@"; do
        archive=$ARCHIVES/${NAMES[number]}
        size=${BYTES[number]}
        present=$(($(size_of "$archive") + $(size_of "$archive.part")))
        needed=$((needed + size)) # unpacked
        size=$((size > present ? size - present : 0))
        if [ $KEEP = yes ]; then
            needed=$((needed + size))
        elif [ $size -gt $largest ]; then
            largest=$size
        fi
    done
    needed=$(((needed + largest) / 1024))
    free=$("$PYTHON" -c 'import shutil, sys; print(shutil.disk_usage(sys.argv[1]).free // 1024)' "$KITTI")
    [ "$free" -ge "$needed" ] ||
        die "not enough space in $KITTI: $((needed / 1024)) MB needed, $((free / 1024)) MB free; --out names another"
}

# Sets REASON. Returns 0 when the file should be whole, 1 when the transfer broke off, 2 when the server has it not.
transfer() { # address, file
    local status=0 http=''
    local -a options
    if [ $DOWNLOADER = curl ]; then
        options=(--fail --location --connect-timeout 30 --speed-limit 1 --speed-time 60 --continue-at - --output "$2")
        if [ -t 2 ]; then options+=(--progress-bar); else options+=(--silent); fi
        http=$(curl "${options[@]}" --write-out '%{http_code}' -- "$1") || status=$?
        case $status:$http in
            0:* | 22:416) return 0 ;; # 416: the server has nothing after what is here already
            33:*)                     # the server cannot continue a file
                rm -f "$2"
                status=0
                http=$(curl "${options[@]}" --write-out '%{http_code}' -- "$1") || status=$?
                [ $status -ne 0 ] || return 0
                ;;
        esac
        case $status in
            5 | 6) REASON="no such host" ;;
            7) REASON="no connection" ;;
            18 | 56) REASON="the transfer broke off" ;;
            22) REASON="HTTP status $http" ;;
            23) die "cannot write $2" ;;
            28) REASON="no answer in time" ;;
            *) REASON="curl status $status" ;;
        esac
        [ $status -eq 22 ] && return 2
        return 1
    fi
    options=(--continue --tries=1 --timeout=60 --output-document="$2" --quiet)
    if [ -t 2 ]; then options+=(--show-progress); fi
    wget "${options[@]}" -- "$1" || status=$?
    case $status in
        0) return 0 ;;
        3) die "cannot write $2" ;;
        4) REASON="no connection, or the transfer broke off" ;;
        8) REASON="the server does not give it" ;;
        *) REASON="wget status $status" ;;
    esac
    [ $status -eq 8 ] && return 2
    return 1
}

# Transfers until the file is whole, as long as each try brings something. Returns as transfer does.
transfer_all() { # address, file
    local before status
    while :; do
        before=$(size_of "$2")
        status=0
        transfer "$1" "$2" || status=$?
        [ $status -eq 1 ] && [ "$(size_of "$2")" -gt "$before" ] || return $status
        say "  $REASON after $(size_of "$2") bytes; going on"
        sleep 1
    done
}

# Prints what is wrong with a file: another SHA-256 sum, or without a sum contents that cannot be read to the end.
fault_of() { # file, name, sum
    "$PYTHON" - "$@" <<'PY'
import hashlib, sys, tarfile, zipfile, zlib

path, name, expected = sys.argv[1:]
if expected:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        print(f"SHA-256 sum {digest.hexdigest()} instead of {expected}")
    sys.exit()
try:
    if name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            print(f"damaged at {damaged!r}")
    elif name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            archive.getmembers()
    else:
        [int(line) for line in open(path, encoding="ascii")]
except (zipfile.BadZipFile, tarfile.TarError, zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:
    print(f"not a whole {name} ({' '.join(str(error).split())})")
PY
}

# Renames the finished file when it is right, else removes it and sets REASON.
accept() { # file, final name, file number
    local fault
    fault=$(fault_of "$1" "${NAMES[$3]}" "${SUMS[$3]}") || die "cannot read $1"
    if [ -z "$fault" ]; then
        [ "$1" = "$2" ] || mv -f "$1" "$2" || die "cannot write $2"
        return 0
    fi
    rm -f "$1"
    REASON="$fault, file removed"
    return 1
}

# Puts the file into ARCHIVES. Returns 1 with TRIED set when no place gives it.
fetch() { # file number
    local name=${NAMES[$1]} url base status begun
    local archive=$ARCHIVES/$name
    local -a urls=()
    TRIED=''
    if [ -f "$archive" ]; then
        say "$archive is there: checking it"
        accept "$archive" "$archive" "$1" && return 0
        say "  $REASON"
    fi
    find_downloader
    for base in ${MIRRORS[@]+"${MIRRORS[@]}"}; do urls+=("$base/$name"); done
    for url in ${urls[@]+"${urls[@]}"} "${ADDRESSES[$1]}"; do
        while :; do
            begun=$(size_of "$archive.part")
            if [ "$begun" -gt 0 ]; then say "Downloading $url (from byte $begun)"; else say "Downloading $url"; fi
            status=0
            transfer_all "$url" "$archive.part" || status=$?
            [ $status -eq 0 ] || break
            accept "$archive.part" "$archive" "$1" && return 0
            # The fault may lie in what was there before, perhaps from another place: once more, from the start.
            [ "$begun" -gt 0 ] || break
            say "  $REASON"
        done
        say "  $REASON"
        TRIED="$TRIED${TRIED:+; }$url: $REASON"
    done
    return 1
}

unpack() { # file number
    local archive=$ARCHIVES/${NAMES[$1]} folder marker
    say "Unpacking $archive"
    "$PYTHON" - "$archive" "$KITTI" "${FOLDERS[$1]}" <<'PY' || exit 1
import shutil, stat, sys, zipfile, zlib
from pathlib import Path

archive, home, folders = sys.argv[1:]
folders = [tuple(folder.split("/")) for folder in folders.split()]


def fail(text):
    sys.exit(f"error: {archive}: {text}")


try:
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if not member.is_dir()]
        # All members before the first is written: an archive that is not what it should be leaves nothing behind.
        for member in members:
            parts = tuple(member.filename.split("/"))
            plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
            if len(parts) != 3 or parts[:2] not in folders or parts[2] in ("", ".", "..") or "\\" in member.filename:
                places = " or ".join("/".join(folder) for folder in folders)
                fail(f"refused to unpack {member.filename!r}, which is not directly inside {places}")
            if not plain:
                fail(f"refused to unpack {member.filename!r}, which is no plain file")
        found = {tuple(member.filename.split("/")[:2]) for member in members}
        for folder in folders:
            if folder not in found:
                fail(f"did not hold {'/'.join(folder)}")
        size, free = sum(member.file_size for member in members), shutil.disk_usage(home).free
        if size > free:
            fail(f"needs {size >> 20} MB in {home}, {free >> 20} MB are free; --out names another place")
        for folder in folders:
            Path(home, *folder).mkdir(parents=True, exist_ok=True)
        for member in members:
            with file.open(member) as source, open(Path(home, *member.filename.split("/")), "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
    fail(f"cannot be unpacked into {home}: {' '.join(str(error).split())}")
PY
    marker=$(marker_of "$1")
    printf '%s\n' "${SUMS[$1]:-no sum}" >"$marker" || die "cannot write $marker"
    [ $KEEP = yes ] || rm -f "$archive"
}

# Writes ImageSets_<split>/{train,val,trainval,test}.txt from the file that describes the split.
write_image_sets() { # file number
    local archive=$ARCHIVES/${NAMES[$1]}
    "$PYTHON" - "$archive" "$KITTI" "${SPLITS[$1]}" <<'PY' || exit 1
import os, sys, tarfile
from pathlib import Path

archive, home, split = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]


def fail(text):
    sys.exit(f"error: {archive}: {text}")


def stems(folder, ending):
    return sorted(path.stem for path in (home / folder).glob(f"*.{ending}"))


sets = {}
try:
    if split == "3dop":
        # Nothing is unpacked: the lists are read, and written anew.
        with tarfile.open(archive) as tar:
            for member in tar:
                part, ending = os.path.splitext(os.path.basename(member.name))
                if member.isfile() and ending == ".txt" and part in ("train", "val", "trainval", "test"):
                    names = tar.extractfile(member).read().decode("ascii").split()
                    sets[part] = [f"{int(name):06d}" for name in names]
    else:
        count, *val = [int(line) for line in archive.read_text(encoding="ascii").split()]
        if count != len(val):
            fail(f"says that it has {count} numbers, and has {len(val)}")
        sets["val"] = [f"{number:06d}" for number in val]
        sets["trainval"], sets["test"] = stems("training/label_2", "txt"), stems("testing/calib", "txt")
        sets["train"] = sorted(set(sets["trainval"]) - set(sets["val"]))
except (tarfile.TarError, ValueError, EOFError, OSError) as error:
    fail(f"cannot be read: {' '.join(str(error).split())}")
for part in ("train", "val"):
    if not sets.get(part):
        fail(f"names no pictures for {part}")
absent = sorted({*sets["train"], *sets["val"]} - set(stems("training/label_2", "txt")))
if absent:
    fail(f"names pictures that {home / 'training' / 'label_2'} does not have: {absent[0]}, {len(absent)} in all")
folder = home / f"ImageSets_{split}"
try:
    folder.mkdir(exist_ok=True)
    # train and val last: with them it counts as done.
    for part in sorted(sets, key=("test", "trainval", "train", "val").index):
        aside = folder / f"{part}.txt.tmp"
        aside.write_text("".join(f"{name}\n" for name in sets[part]))
        os.replace(aside, folder / f"{part}.txt")
except OSError as error:
    sys.exit(f"error: {folder}: cannot be written ({error.strerror})")
print(f"{folder}: {len(sets['train'])} pictures for training, {len(sets['val'])} for validation")
PY
    [ $KEEP = yes ] || rm -f "$archive"
}

get_image_sets() {
    local number split
    for number in "${!NAMES[@]}"; do
        split=${SPLITS[number]}
        [ -n "$split" ] && ! has_image_sets "$split" || continue
        mkdir -p "$ARCHIVES" 2>/dev/null || die "cannot make the folder $ARCHIVES"
        if fetch "$number"; then
            write_image_sets "$number"
        else
            say "Going on without the division $split ($TRIED);"
            say "  put its train.txt and val.txt into $KITTI/ImageSets_$split, or use --mirror, and run again"
        fi
    done
    has_image_sets 3dop || has_image_sets subcnn ||
        die "no list says which pictures are for training; put train.txt and val.txt into $KITTI/ImageSets_3dop"
}

# What the annotations are made from: if it has changed, they are made again.
state() {
    "$PYTHON" - "$KITTI" "${SUMS[@]}" <<'PY'
import hashlib, sys
from pathlib import Path

digest = hashlib.sha256("\n".join(sys.argv[2:]).encode())
for path in sorted(Path(sys.argv[1]).glob("ImageSets_*/*.txt")):
    digest.update(f"{path.parent.name}/{path.name}\n".encode() + path.read_bytes())
print(digest.hexdigest())
PY
}

convert() {
    local marker=$KITTI/annotations/.converted now split part finished=no
    now=$(state) || die "cannot read the image sets in $KITTI"
    if [ -d "$KITTI/images/trainval" ] && [ -d "$KITTI/training/label_val" ] && [ -f "$marker" ] &&
        [ "$(cat "$marker")" = "$now" ]; then
        finished=yes
        for split in 3dop subcnn; do
            has_image_sets $split || continue
            for part in train val; do
                [ -f "$KITTI/annotations/kitti_${split}_$part.json" ] || finished=no
            done
        done
    fi
    [ $finished = no ] || return 0
    say "Converting $KITTI"
    "$PYTHON" "$HERE/convert_kitti_to_coco.py" "$KITTI" --arrange || exit 1
    printf '%s\n' "$now" >"$marker" || die "cannot write $marker"
}

report() {
    "$PYTHON" - "$KITTI/annotations" <<'PY' || die "$KITTI/annotations: unreadable files; remove them, run again"
import json, os, sys

for name, full in (("3dop_train", 3712), ("3dop_val", 3769), ("subcnn_train", 3682), ("subcnn_val", 3799)):
    path = f"{sys.argv[1]}/kitti_{name}.json"
    if os.path.exists(path):
        with open(path) as file:
            number = len(json.load(file)["images"])
        print(f"{name}: {number} pictures" + ("" if number == full else f" (the full set has {full})"))
PY
    say "The data is in $KITTI. Next:"
    printf '    python src/main.py ddd --dataset kitti --kitti_split 3dop --data_path=%q\n' "$OUT"
}

main() {
    local number
    local -a pending=()
    parse_options "$@"
    mkdir -p -- "$OUT/kitti" 2>/dev/null || die "cannot make the folder $OUT/kitti"
    OUT=$(cd -- "$OUT" && pwd)
    KITTI=$OUT/kitti
    ARCHIVES=$KITTI/archives
    check_tools
    for ((number = 0; number < ZIPS; number++)); do
        is_unpacked "$number" || pending+=("$number")
    done
    if [ ${#pending[@]} -gt 0 ]; then
        mkdir -p "$ARCHIVES" 2>/dev/null || die "cannot make the folder $ARCHIVES"
        check_disk_space "${pending[@]}"
        for number in "${pending[@]}"; do
            fetch "$number" ||
                die "could not download ${NAMES[number]} ($TRIED); run again to go on, or use --mirror"
            unpack "$number"
        done
    fi
    get_image_sets
    rmdir "$ARCHIVES" 2>/dev/null || true # stays when something is kept in it
    convert
    report
}

main "$@"
