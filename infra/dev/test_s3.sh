#!/usr/bin/env bash
# The store's tests on a real Ceph: as it is, then behind a proxy that spoils every fifth call (500, 503, resets, 2 s pauses).
# Installs the Debian packages when it may; where it cannot, it says so and ends with 0: `make test` has the same on moto.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}
port=${ORAL_TEST_S3_PORT:-17480}

if ! command -v radosgw >/dev/null || ! command -v ceph-osd >/dev/null; then
  echo "installing radosgw, ceph-mon, ceph-osd (Debian packages)"
  if ! (timeout 120 apt-get update -qq && timeout 300 apt-get install -y -qq --no-install-recommends radosgw ceph-common ceph-mon ceph-osd curl) \
    >/dev/null 2>&1; then
    echo "SKIPPED: radosgw ceph-common ceph-mon ceph-osd could not be installed; the store was not tested on Ceph"
    exit 0
  fi
fi

place=$(mktemp -d /tmp/oral-ceph-XXXXXX)
trap 'infra/dev/ceph_up.sh down "$place"' EXIT
infra/dev/ceph_up.sh up "$place" "$port" || { echo "SKIPPED: Ceph did not start here; the store was not tested on it"; exit 0; }
export ORAL_TEST_S3_ENDPOINT=http://127.0.0.1:$port ORAL_TEST_S3_KEY=ORALACCESS ORAL_TEST_S3_SECRET=ORALSECRET
echo "== radosgw"
"$python" -m pytest -q tests/test_objects.py tests/test_objects_s3.py tests/test_store_streaming.py
echo "== radosgw, every fifth call spoilt"
ORAL_TEST_S3_FAULTS=1 "$python" -m pytest -q -s tests/test_objects.py
