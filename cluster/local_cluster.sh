#!/bin/bash
# A Ray cluster of several hosts on one machine, to try what only shows there.
#
#   local_cluster.sh up N            N hosts with addresses of their own, Ray's head on host 1
#   local_cluster.sh run CMD ...     a command on host 1, with RAY_ADDRESS
#   local_cluster.sh cut K | mend K  host K loses its network, gets it back
#   local_cluster.sh down            ends all of it
#
# As root each host is a network namespace behind a bridge. Where those are not allowed, all are this host under the
# addresses 127.0.0.1 (in its place Ray tells this host's own), 127.0.0.2, ...; then nothing can be cut, and `up` says so.
#
# LOCAL_CLUSTER      name of the cluster, at most 8 characters: hosts are NAME1, NAME2, ... (default rwl)
# LOCAL_CLUSTER_NET  first three numbers of its addresses (default 10.77.0)
# LOCAL_CLUSTER_CPUS, LOCAL_CLUSTER_GPUS  of each host as Ray is told, for all (2) or one after the other (2,4,4)
# LOCAL_CLUSTER_PORT  of Ray's head (default 6379)
# LOCAL_CLUSTER_KIND=loopback  no namespaces, also where they are allowed
# Variables that begin with RAY_ reach Ray: RAY_health_check_timeout_ms=4000 and so on.
set -euo pipefail

name=${LOCAL_CLUSTER:-rwl}
net=${LOCAL_CLUSTER_NET:-10.77.0}
port=${LOCAL_CLUSTER_PORT:-6379}
state=/tmp/$name # short, since Ray's sockets lie below it
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-disabled}

die() {
    echo "local_cluster.sh: $*" >&2
    exit 1
}

kind() { # namespaces or loopback
    [[ -f $state/kind ]] || die "no cluster $name is up; local_cluster.sh up N starts one"
    cat "$state/kind"
}

address() { # of host $1
    if [[ $(kind) == namespaces ]]; then echo "$net.$1"; else echo "127.0.0.$1"; fi
}

on() { # a command on host $1
    local host=$1
    shift
    if [[ $(kind) == namespaces ]]; then ip netns exec "$name$host" "$@"; else "$@"; fi
}

nth() { # entry $2 of the list $1, whose last one stands for all that follow
    local entries
    IFS=, read -ra entries <<<"$1"
    local last=$((${#entries[@]} - 1))
    echo "${entries[$(($2 - 1 < last ? $2 - 1 : last))]}"
}

add_network() { # for $1 hosts
    ip link add "${name}br" type bridge && ip link set "${name}br" up || return 1
    for host in $(seq "$1"); do
        ip netns add "$name$host" &&
            ip link add "${name}v$host" type veth peer name e0 netns "$name$host" &&
            ip link set "${name}v$host" master "${name}br" &&
            ip link set "${name}v$host" up &&
            ip -n "$name$host" addr add "$net.$host/24" dev e0 &&
            ip -n "$name$host" link set e0 up &&
            ip -n "$name$host" link set lo up || return 1
    done
}

remove_network() {
    for space in $(ip netns list 2>/dev/null | awk '{print $1}'); do
        if [[ $space =~ ^${name}[0-9]+$ ]]; then
            for process in $(ip netns pids "$space"); do kill -9 "$process" 2>/dev/null || true; done
            ip link del "${name}v${space#"$name"}" 2>/dev/null || true
            ip netns del "$space" 2>/dev/null || true
        fi
    done
    ip link del "${name}br" 2>/dev/null || true
}

start_ray() { # on host $1
    local host=$1 options command=()
    options=(--node-ip-address "$(address "$host")" --num-cpus "$(nth "${LOCAL_CLUSTER_CPUS:-2}" "$host")"
        --num-gpus "$(nth "${LOCAL_CLUSTER_GPUS:-0}" "$host")" --object-store-memory 200000000 --disable-usage-stats --block)
    if ((host == 1)); then
        options+=(--head --port "$port" --include-dashboard false --temp-dir "$state")
    else
        options+=(--address "$(address 1):$port")
    fi
    # Not by `on`: its process would be a shell's, and `down` ends Ray's own.
    if [[ $(kind) == namespaces ]]; then command=(ip netns exec "$name$host"); fi
    "${command[@]}" setsid ray start "${options[@]}" >"$state/ray$host.log" 2>&1 &
    echo $! >>"$state/pids"
}

nodes_up() {
    on 1 env RAY_ADDRESS="$(address 1):$port" python3 - 2>"$state/nodes.log" <<'PYTHON'
import ray

ray.init(logging_level="ERROR", log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))
PYTHON
}

wait_for_ray() { # on host $1
    local deadline=$((SECONDS + 120))
    until grep -qs "Ray runtime started" "$state/ray$1.log"; do
        ((SECONDS < deadline)) || die "Ray did not start on host $1 within 120 s; see $state/ray$1.log"
        sleep 0.2
    done
}

wait_for_nodes() { # until $1 have joined
    local deadline=$((SECONDS + 120))
    until [[ $(nodes_up) == "$1" ]]; do
        ((SECONDS < deadline)) || die "fewer than $1 hosts joined within 120 s: $(tail -qn 3 "$state"/*.log)"
    done
}

up() {
    local number=$1
    [[ ! -e $state ]] || die "$state is there: cluster $name is up, or was; local_cluster.sh down ends it"
    mkdir "$state"
    trap 'echo "local_cluster.sh: up failed; local_cluster.sh down ends what it has started" >&2' EXIT
    if [[ ${LOCAL_CLUSTER_KIND:-} != loopback && $(id -u) == 0 ]] && command -v ip >/dev/null &&
        add_network "$number" 2>"$state/network.log"; then
        echo namespaces >"$state/kind"
    else
        remove_network
        echo loopback >"$state/kind"
        echo "no network namespaces: $number loopback addresses of this host stand for hosts, and none can be cut"
    fi
    for host in $(seq "$number"); do
        start_ray "$host"
        # One after the other: two that start at once may take the same names for their sockets, all of which lie in one
        # folder here.
        wait_for_ray "$host"
    done
    wait_for_nodes "$number"
    for host in $(seq "$number"); do echo "host $host: $(address "$host")"; done
    trap - EXIT
}

down() {
    local processes=() tenths=100
    # Anybody may write in /tmp, and what stands in there says which processes end.
    [[ ! -L $state ]] || die "$state is a link, which up does not make"
    [[ ! -e $state || -O $state ]] || die "$state is somebody else's"
    if [[ -f $state/pids ]]; then mapfile -t processes <"$state/pids"; fi
    # `ray start --block` ends what it has started, which takes it long; in namespaces all is found below.
    for process in "${processes[@]}"; do kill -TERM "$process" 2>/dev/null || true; done
    if [[ $(cat "$state/kind" 2>/dev/null) == namespaces ]]; then tenths=20; fi
    for _ in $(seq "$tenths"); do
        kill -0 "${processes[@]}" 2>/dev/null || break
        sleep 0.1
    done
    for process in "${processes[@]}"; do kill -KILL -- "-$process" 2>/dev/null || true; done
    remove_network
    rm -rf "$state"
}

set_link() { # of host $1, up or down
    kind >/dev/null
    [[ $(kind) == namespaces ]] || die "host $1 is a loopback address, which cannot be cut"
    ip link set "${name}v$1" "$2"
}

case ${1:-} in
up) up "${2:?how many hosts}" ;;
down) down ;;
cut) set_link "${2:?which host}" down ;;
mend) set_link "${2:?which host}" up ;;
run)
    shift
    kind >/dev/null # ends here where none is up: within $( ) it would end that alone
    RAY_ADDRESS=$(address 1):$port on 1 "$@"
    ;;
*)
    sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
