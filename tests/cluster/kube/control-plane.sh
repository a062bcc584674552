# The control plane of kube, which sources this: certificates, and four processes on this host.

certificate() { # NAME SUBJECT [ALT_NAMES]: a key, a certificate of our authority, and a kubeconfig that uses them
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$work/pki/$1.key" \
        -addext "subjectAltName=${3:-DNS:$1}" 2>/dev/null |
        openssl x509 -req -days 365 -copy_extensions copy -CA "$work/pki/ca.crt" -CAkey "$work/pki/ca.key" \
            -out "$work/pki/$1.crt" 2>/dev/null
    cat >"$work/$1.kubeconfig" <<END
apiVersion: v1
kind: Config
current-context: $box
contexts: [{name: $box, context: {cluster: $box, user: $1}}]
clusters: [{name: $box, cluster: {server: "https://${4:-127.0.0.1}:$port", certificate-authority-data: $(base64 -w0 "$work/pki/ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$work/pki/$1.crt"), client-key-data: $(base64 -w0 "$work/pki/$1.key")}}]
END
}

apiserver() { # as it was started before, if it was
    local pki=$work/pki
    start apiserver "$bin/kube-apiserver" --etcd-servers "http://127.0.0.1:$((port + 1))" --secure-port $port \
        --bind-address "$(cat "$work/bind-address")" --advertise-address "$net.0.1" \
        --service-cluster-ip-range "$net.128.0/20" --cert-dir "$work/pki" \
        --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" --client-ca-file "$pki/ca.crt" \
        --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$pki/sa.key" \
        --service-account-signing-key-file "$pki/sa.key" --authorization-mode Node,RBAC --allow-privileged \
        --enable-admission-plugins NodeRestriction,OwnerReferencesPermissionEnforcement --kubelet-certificate-authority "$pki/ca.crt" \
        --kubelet-client-certificate "$pki/admin.crt" --kubelet-client-key "$pki/admin.key" \
        --kubelet-preferred-address-types InternalIP --enable-aggregator-routing \
        --requestheader-client-ca-file "$pki/ca.crt" --requestheader-allowed-names front-proxy \
        --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
        --requestheader-extra-headers-prefix X-Remote-Extra- --proxy-client-cert-file "$pki/front-proxy.crt" \
        --proxy-client-key-file "$pki/front-proxy.key" \
        --default-not-ready-toleration-seconds 5 --default-unreachable-toleration-seconds 5 \
        --feature-gates GenericWorkload=true --runtime-config scheduling.k8s.io/v1beta1=true \
        --audit-policy-file "$here/audit.yaml" --audit-log-path "$work/log/audit.log"
}

control_plane() { # BIND_ADDRESS
    local pki=$work/pki etcd=http://127.0.0.1:$((port + 1)) peer=http://127.0.0.1:$((port + 2))
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$box" \
        -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>/dev/null
    openssl ecparam -genkey -name prime256v1 -noout -out "$pki/sa.key"
    certificate apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:$net.0.1,IP:$net.128.1"
    certificate front-proxy /CN=front-proxy
    certificate admin /O=system:masters/CN=admin
    certificate controller-manager /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    start etcd "$bin/etcd" --data-dir "$work/etcd" --unsafe-no-fsync --listen-client-urls "$etcd" --listen-peer-urls \
        "$peer" --advertise-client-urls "$etcd" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer"
    echo "$1" >"$work/bind-address"
    apiserver
    start controller-manager "$bin/kube-controller-manager" --kubeconfig "$work/controller-manager.kubeconfig" \
        --leader-elect=false --secure-port 0 --use-service-account-credentials --root-ca-file "$pki/ca.crt" \
        --service-account-private-key-file "$pki/sa.key" --cluster-signing-cert-file "$pki/ca.crt" \
        --cluster-signing-key-file "$pki/ca.key" --node-monitor-grace-period 12s --node-monitor-period 2s \
        --horizontal-pod-autoscaler-sync-period 5s --feature-gates GenericWorkload=true
    start scheduler "$bin/kube-scheduler" --kubeconfig "$work/scheduler.kubeconfig" --leader-elect=false --secure-port 0 \
        --feature-gates GenericWorkload=true
}
