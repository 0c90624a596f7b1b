#!/usr/bin/env bash
# Builds examples/qdx-example-plugin, installs its wheel into a clean virtual environment and runs it there.
#
#     examples/check_plugin.sh [override …]
#
# The environment holds qdx with the extra `cpu` and the plug-in, nothing else; qdx finds it through its entry point.
# Overrides are those of the sweep that runs at the end.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" # not in the checkout: nothing may be found beside this script

export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH
"$python" -m venv "$work/venv"
own=$work/venv/bin/python
"$own" -m pip wheel -q --no-deps -w "$work" "$here/.." "$here/qdx-example-plugin"
"$own" -m pip install -q "$(echo "$work"/qdx-*.whl)[cpu]" "$work"/qdx_example_plugin-*.whl
"$own" -c "
from importlib.metadata import entry_points
(point,) = entry_points(group='qdx.plugins')
assert point.load().__file__.startswith('$work/venv'), point.load().__file__
print('entry point', point.name, 'of', point.dist.name, point.dist.version)"

"$own" -m qdx --help > help.txt
grep -q '^metric:.*hellinger' help.txt
grep -q '^prompts:.*capitals' help.txt
"$own" -m qdx --cfg job 'metric=[hellinger]' metric.hellinger.power=2 | grep -q 'power: 2'
if "$own" -m qdx 'metric=[helinger]' hydra.sweep.dir=wrong 2> error.txt; then exit 1; fi
grep "did you mean 'hellinger'" error.txt
"$own" -m qdx -m quant=awq,awq_marlin 'metric=[l2,hellinger]' metric.hellinger.power=2 prompts=capitals \
  hydra.sweep.dir=sweep "$@" > sweep.txt || { cat sweep.txt; exit 1; }
grep 'hellinger' sweep.txt
"$own" -c "
import qdx
value = qdx.open('sweep').qdx.pairs('hellinger').mean(['reference', 'position'])
assert value.sizes['config'] == 2 and float(value.sel(config='awq', config_b='awq_marlin')) > 0
print(value.to_series().to_string())"
echo "the example plug-in works"
