# The nodes of kube, which sources this: each has its own network, mounts, processes and hostname, so that killing its
# first process ends all of it, and its own containerd, kubelet and kube-proxy with their usual paths.

need_for_nodes() {
    local i
    [ "$(id -u)" = 0 ] || die "nodes need root"
    [ ! -e /sys/fs/cgroup/cgroup.controllers ] || die "nodes need cgroup v1, this machine has v2: use another cluster"
    for i in runc nft iptables conntrack ip nsenter openssl /usr/lib/cni/bridge; do
        command -v "$i" >/dev/null ||
            die "no $i: apt-get install runc nftables iptables conntrack iproute2 util-linux openssl containernetworking-plugins"
    done
}

start_node() { # NAME COUNT: its network, certificate and configuration, then its namespaces
    local n=$1 i=${1#n} d=$work/node/$1 ip c f p
    ip=$net.0.$((10 + i))
    rm -rf "$d/run"
    mkdir -p "$d"/{cni,sysctl,run,var/lib/kubelet,var/log}
    ip netns add "$box-$n"
    ip link add "$box$n" type veth peer name eth0 netns "$box-$n"
    ip link set "$box$n" master "$box" up
    ip -n "$box-$n" link set lo up
    ip -n "$box-$n" link set eth0 up
    ip -n "$box-$n" address add "$ip/24" dev eth0
    ip -n "$box-$n" route add "$net.0.0/16" via "$net.0.1"    # services; nothing leads out of the box
    for c in $(seq "$2"); do
        [ "$c" = "$i" ] || ip -n "$box-$n" route add "$net.$c.0/24" via "$net.0.$((10 + c))"
    done
    ip route replace "$net.$i.0/24" via "$ip"
    for c in /sys/fs/cgroup/*/; do
        mkdir -p "$c$box/$n"
        for f in cpus mems; do for p in "$c$box" "$c$box/$n"; do
            [ ! -e "$p/cpuset.$f" ] || cat "${c}cpuset.$f" >"$p/cpuset.$f"
        done; done
    done
    certificate "$n" "/O=system:nodes/CN=system:node:$n" "DNS:$n,IP:$ip" "$net.0.1"
    certificate "$n-proxy" /CN=system:kube-proxy "DNS:$n" "$net.0.1"
    cat >"$d/cni/10-box.conflist" <<END
{"cniVersion": "1.0.0", "name": "box", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "$net.$i.0/24"}]], "dataDir": "/run/cni"}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
    cat >"$d/containerd.toml" <<END
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "box.local/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true    # a sandbox's root may lack CAP_SYS_RESOURCE
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "$d/cni"
END
    cat >"$d/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$box/$n
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $work/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $work/pki/$n.crt
tlsPrivateKeyFile: $work/pki/$n.key
clusterDomain: cluster.local
clusterDNS: [$net.128.10]
resolvConf: ""
nodeLeaseDurationSeconds: 8
nodeStatusUpdateFrequency: 4s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "100Mi"}
END
    cat >"$d/kube-proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $n
clientConnection: {kubeconfig: $work/$n-proxy.kubeconfig}
detectLocalMode: BridgeInterface
detectLocal: {bridgeInterface: cni0}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
    start "$n" nsenter "--net=/run/netns/$box-$n" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \
        bash "$here/kube" run-node "$n" "$ip"
}

run_node() { # NAME IP: the first process of a node, inside its namespaces
    local d=$work/node/$1 f
    hostname "$1"
    mount --make-rshared /
    for f in run var/lib var/log; do mount --bind "$d/$f" "/$f"; done
    # kubelet sets these for the whole machine: show it files that already say what it wants
    for f in vm/overcommit_memory:1 vm/panic_on_oom:0 kernel/panic:10 kernel/panic_on_oops:1 \
        kernel/keys/root_maxkeys:1000000 kernel/keys/root_maxbytes:25000000; do
        echo "${f#*:}" >"$d/sysctl/$(basename "${f%:*}")"
        mount --bind "$d/sysctl/$(basename "${f%:*}")" "/proc/sys/${f%:*}"
    done
    echo 1 >/proc/sys/net/ipv4/ip_forward
    export PATH=$bin:$PATH
    keep() { local name=$1; shift; while :; do "$@" >>"$work/log/$name.log" 2>&1 || true; sleep 1; done; }
    keep "$1-containerd" containerd --config "$d/containerd.toml" &
    wait_for 30 containerd test -S /run/containerd/containerd.sock
    keep "$1-kubelet" kubelet --config "$d/kubelet.yaml" --kubeconfig "$work/$1.kubeconfig" --hostname-override "$1" \
        --node-ip "$2" --v 2 &
    keep "$1-kube-proxy" kube-proxy --config "$d/kube-proxy.yaml" &
    wait
}

node_ready() { # NAME: waits until it is, and pretends its GPUs (kubelet forgets them whenever it starts)
    local gpus; gpus=$(cat "$work/gpus")
    wait_for 60 "node $1" kubectl wait --for condition=Ready --timeout 1s "node/$1"
    kubectl patch node "$1" --subresource status -p "{\"status\": {\"capacity\": {\"nvidia.com/gpu\": \"$gpus\"},
        \"allocatable\": {\"nvidia.com/gpu\": \"$gpus\"}}}" >/dev/null
}

kill_node() { # NAME: its processes, then its network and its cgroups
    stop "$1"
    ip link delete "$box$1" 2>/dev/null || true
    ip netns delete "$box-$1" 2>/dev/null || true
    find /sys/fs/cgroup/*/"$box/$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
}
