#!/usr/bin/env bash
# A real Ceph on this machine for tests: one monitor, one OSD, radosgw on 127.0.0.1:PORT, nothing outside loopback; ORAL_CEPH_GIB (8) large.
#   infra/dev/ceph_up.sh up DIR [PORT]     start (Debian packages radosgw ceph-common ceph-mon ceph-osd); user oral/ORALSECRET
#   infra/dev/ceph_up.sh down DIR          end what `up` started there and remove the folder
set -euo pipefail
verb=${1:?up or down}
dir=$(realpath -m "${2:?folder}")
port=${3:-7480}

down() {
  for name in rgw osd mon; do
    [ ! -f "$dir/$name.started" ] || kill -9 "$(cat "$dir/$name.started")" 2>/dev/null || true
  done
  rm -rf "$dir"
}

start() {  # start NAME COMMAND...: in the background, its process id remembered
  local name=$1
  shift
  setsid "$@" -f >"$dir/log/$name.out" 2>&1 &
  echo $! >"$dir/$name.started"
}

[ "$verb" = up ] || { down; exit 0; }
down
mkdir -p "$dir"/{mon,osd,run,log}
fsid=$(cat /proc/sys/kernel/random/uuid)
osd=$(cat /proc/sys/kernel/random/uuid)
cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]
public_network = 127.0.0.0/8
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
# Without authentication nothing can be encrypted, and radosgw 16 hangs where it may choose to.
ms_client_mode = crc
ms_mon_client_mode = crc
mon_data = $dir/mon
mon_allow_pool_size_one = true
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_warn_on_pool_no_redundancy = false
osd_data = $dir/osd
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_block_size = $((${ORAL_CEPH_GIB:-8} << 30))
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
run_dir = $dir/run
pid_file = $dir/run/\$name.pid
admin_socket = $dir/run/\$name.asok
log_file = $dir/log/\$name.log
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:$port
rgw_enable_ops_log = false
# What is deleted is freed at once, not after two hours.
rgw_gc_obj_min_wait = 1
rgw_gc_processor_period = 5
CONF
ceph() { timeout 30 ceph -c "$dir/ceph.conf" "$@" >>"$dir/log/ceph.out" 2>&1; }

monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]" "$dir/monmap" \
  >"$dir/log/monmap.out"
ceph-mon -c "$dir/ceph.conf" --mkfs -i a --monmap "$dir/monmap"
start mon ceph-mon -c "$dir/ceph.conf" -i a
ceph osd new "$osd"
ceph-osd -c "$dir/ceph.conf" -i 0 --mkfs --osd-uuid "$osd" >"$dir/log/mkfs.out" 2>&1
start osd ceph-osd -c "$dir/ceph.conf" -i 0
ceph osd crush add osd.0 1.0 root=default host=localhost
start rgw radosgw -c "$dir/ceph.conf" -n client.rgw
timeout 60 radosgw-admin -c "$dir/ceph.conf" -n client.rgw user create --uid=oral --display-name=oral \
  --access-key=ORALACCESS --secret=ORALSECRET >"$dir/log/user.out" 2>&1
for _ in $(seq 300); do
  curl -s -o /dev/null "http://127.0.0.1:$port/" && echo "http://127.0.0.1:$port" && exit 0
  sleep 0.2
done
echo "radosgw did not answer on port $port in 60 s; see $dir/log" >&2
exit 1
