# Sourced with the name of an extra: makes .venv, installs ldmrt with it once, and activates it.
python=$(command -v python3 || command -v python)
[ -x .venv/bin/python ] || "$python" -m venv .venv || return 1
. .venv/bin/activate
stamp=.venv/.ldmrt-$1
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing ldmrt[$1] into .venv"
  # torch first and by exact version: a range may resolve to a build with gigabytes of CUDA
  python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch || return 1
  python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$1]" || return 1
  # it asks for torchvision, whose usual builds do not open beside a torch without CUDA; ldmrt imports none
  if [ "$1" = dev ]; then
    python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps spandrel || return 1
  fi
  echo "$wanted" > "$stamp"
fi
