#!/usr/bin/env bash
# install.sh VENV PYTHON: an environment in which the detector `detectron2` runs the real package. About 5.5 GB, most of it torch's
# CUDA libraries, which the matching torchvision brings along.
set -euo pipefail
venv=$1
python=$2
here=$(cd "$(dirname "$0")" && pwd)

echo "detectron2 1/2: torch, torchvision and other libraries (the longest part)"
"$python" -m venv --clear "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install --no-compile -r "$here/requirements.txt"

# The official source is on no package index. This package has the Python of release 0.6, file for file, without the C++ sources
# that its setup.py would compile: it cannot be installed, but runs where it is unpacked (shims.py says what else it takes).
echo "detectron2 2/2: detectron2 0.6"
"${pip[@]}" download --no-deps --no-build-isolation --no-binary :all: --dest "$venv" pb1-detectron2==0.6
tar -xzf "$venv/pb1-detectron2-0.6.tar.gz" -C "$venv"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
(cd "$venv/pb1-detectron2-0.6" && pwd) > "$site/detectron2.pth"
touch "$venv/.installed"
