#!/usr/bin/env bash
# install.sh VENV PYTHON: an environment in which vLLM serves on a CPU. About 3 GB, up to 6 where torch comes with CUDA's libraries.
set -euo pipefail
venv=$1
python=$2
here=$(cd "$(dirname "$0")" && pwd)

echo "vllm 1/2: torch (the longest part)"
"$python" -m venv --clear "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install --no-compile "$(grep '^torch==' "$here/requirements.txt")"
echo "vllm 2/2: vLLM"
"${pip[@]}" install --no-compile -r "$here/requirements.txt"

# Both are builds for CUDA, which fail to load beside a torch for the CPU; nothing here hears or watches anything.
"${pip[@]}" uninstall --yes torchaudio torchcodec
# torchvision, too, but its Python is needed: its operators' names must exist for it to be imported, and are never called.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cat >> "$site/torchvision/extension.py" <<'PYTHON'


if not _has_ops():
    _names = torch.library.Library("torchvision", "FRAGMENT")
    _names.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _names.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PYTHON
touch "$venv/.installed"
