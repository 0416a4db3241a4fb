#!/usr/bin/env python3
"""A small node that has trouble, for the pictures beside this file: as root, `load.py SECONDS KUBELET-PORT`.

Workloads with the cgroups of pods, of a container and of a systemd unit talk to each other inside a network namespace of their
own, where nftables drops some of what they send; a DNS server there is slow, silent or failing at times; one process hangs. A
kubelet of its own on 127.0.0.1:KUBELET-PORT names the pods (`probe run --kubelet http://127.0.0.1:KUBELET-PORT`). It ends by
itself and takes everything away that it made.
"""

import hashlib
import http.server
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid

# name, kind of owner, namespace
PODS = [
    ("web", "Deployment", "shop"),
    ("api", "Deployment", "shop"),
    ("db", "StatefulSet", "shop"),
    ("import", "Job", "shop"),
    ("node-agent", "DaemonSet", "monitoring"),
]
RULES = """
table inet show {
  chain input {
    type filter hook input priority 0;
    tcp dport 8080 numgen random mod 1000 < 25 drop
    tcp sport 8080 numgen random mod 1000 < 15 drop
    tcp dport 9999 tcp flags & (syn|ack) == syn drop
  }
}
"""
GOOD, BAD = "127.0.0.10", "127.0.0.11"


def digits(name):
    return hashlib.sha256(name.encode()).hexdigest()


def pod_uid(name):
    return str(uuid.UUID(digits("pod " + name)[:32]))


def pod_name(name, kind):
    return {
        "Deployment": f"{name}-5d78c9869d-x2x4q",
        "StatefulSet": f"{name}-0",
        "Job": f"{name}-29375120-k8w5z",
        "DaemonSet": f"{name}-7hv2c",
    }[kind]


def pod(name, kind, namespace):
    owner = {"Deployment": ("ReplicaSet", f"{name}-5d78c9869d"), "Job": ("Job", f"{name}-29375120")}
    of_kind, of_name = owner.get(kind, (kind, name))
    labels = {"pod-template-hash": "5d78c9869d"} if kind == "Deployment" else {}
    reference = {"apiVersion": "apps/v1", "kind": of_kind, "name": of_name, "uid": "o", "controller": True}
    return {
        "metadata": {
            "name": pod_name(name, kind),
            "namespace": namespace,
            "uid": pod_uid(name),
            "labels": labels,
            "ownerReferences": [reference],
        },
        "spec": {"nodeName": os.environ.get("K8S_NODE_NAME", "node-1"), "containers": [{"name": name, "image": f"example/{name}:1"}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": name, "image": f"example/{name}:1", "imageID": "", "containerID": "containerd://" + digits(name)}
            ],
        },
    }


def kubelet(port):
    body = json.dumps({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [pod(*each) for each in PODS]}).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def cgroups():
    """Where each workload lives below the mount of cgroup v2."""
    with open("/proc/self/mounts") as mounts:
        mount = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
    places = {
        name: f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod_uid(name).replace('-', '_')}.slice/cri-containerd-{digits(name)}.scope"
        for name, _, _ in PODS
    }
    places["cache"] = f"docker/{digits('cache')}"
    places["shipper"] = "system.slice/shipper.service"
    return {name: os.path.join(mount, place) for name, place in places.items()}


# -- what the workloads do


def forever(once, *arguments):
    """Goes on whatever the network does: trouble is what this is for."""

    def loop():
        while True:
            try:
                once(*arguments)
            except OSError:
                time.sleep(0.05)

    threading.Thread(target=loop, daemon=True).start()


def serve(port, answer):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)

    def one(connection):
        with connection:
            while True:
                request = connection.recv(65536)
                if not request:
                    return
                connection.sendall(answer)

    def accept():
        connection, _ = listener.accept()
        connection.settimeout(30)
        threading.Thread(target=lambda: quietly(one, connection), daemon=True).start()

    forever(accept)


def quietly(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        pass


def ask(port, requests, size, pause):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for _ in range(requests):
            connection.sendall(b"x" * size)
            connection.recv(65536)
            time.sleep(random.expovariate(1 / pause))


def connect(port, timeout, pause):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=timeout).close()
    finally:
        time.sleep(random.expovariate(1 / pause))


def question(number, name, kind):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    return struct.pack("!6H", number, 0x100, 1, 0, 0, 0) + labels + struct.pack("!2H", kind, 1)


def lookup(server, name, kinds, pause):
    """Asks as getaddrinfo does: from one socket, and waits for all, but for whole seconds only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((server, 53))
        asking.settimeout(6)
        for kind in kinds:
            asking.send(question(random.randrange(65536), name, kind))
        for _ in kinds:
            asking.recv(512)
    time.sleep(random.expovariate(1 / pause))


def search(server, pause):
    host = f"host{random.randrange(10**6)}.pay.example"
    for suffix in ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local"):
        lookup(server, f"{host}.{suffix}", (1,), 0.001)
    lookup(server, host, (1, 28), pause)


def dns_server(address):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 53))

    def answer(packet, peer, code, addresses, delay):
        time.sleep(delay)
        number = packet[:2]
        name_end = packet.index(b"\0", 12) + 5
        record = b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 60, 4) + bytes([10, 0, 0, 1])
        head = number + struct.pack("!5H", 0x8180 | code, 1, len(addresses), 0, 0)
        quietly(sock.sendto, head + packet[12:name_end] + record * len(addresses), peer)

    def one():
        packet, peer = sock.recvfrom(512)
        kind = struct.unpack("!H", packet[-4:-2])[0]
        lot = random.random()
        silent = lot < (0.02 if address == GOOD and kind == 28 else 0.3 if address == BAD else 0)
        if silent:
            return
        missing = b"\x05local\0" in packet
        code = 3 if missing else 2 if address == BAD and lot > 0.85 else 0
        delay = random.uniform(0.02, 0.12) if random.random() < 0.2 else 0.0002
        addresses = [1] if code == 0 and kind == 1 else []
        threading.Thread(target=answer, args=(packet, peer, code, addresses, delay), daemon=True).start()

    forever(one)


def sync(directory):
    with open(os.path.join(directory, "wal"), "wb") as wal:
        for _ in range(1000):
            wal.write(b"x" * 4096)
            wal.flush()
            os.fsync(wal.fileno())
            time.sleep(0.01)


def hang(directory):
    fifo = os.path.join(directory, "fifo")
    os.mkfifo(fifo)
    open(fifo).close()


def look_for(count, pause):
    for number in range(count):
        quietly(os.stat, f"/var/lib/none/{number}")
    time.sleep(pause)


def web(_):
    for _ in range(6):
        forever(ask, 8080, 200, 30_000, 0.02)
    for _ in range(4):
        forever(search, GOOD, 0.1)


def api(_):
    serve(8080, b"y" * 40_000)


def db(directory):
    forever(sync, directory)
    time.sleep(120)
    threading.Thread(target=hang, args=(directory,), daemon=True).start()


def importer(_):
    forever(connect, 9, 1, 0.2)
    for _ in range(4):
        forever(connect, 9999, 4, 0.5)
    forever(ask, 8081, 20, 2_000, 0.05)


def node_agent(_):
    forever(look_for, 200, 0.2)


def cache(_):
    serve(8081, b"z" * 1_000)
    for _ in range(4):
        forever(ask, 8081, 5, 500, 0.01)


def shipper(_):
    for _ in range(8):
        forever(lookup, BAD, "logs.example.net", (1,), 0.3)
    forever(ask, 8080, 50, 8_000, 0.1)


ROLES = {"web": web, "api": api, "db": db, "import": importer, "node-agent": node_agent, "cache": cache, "shipper": shipper}


def inside(seconds, directory):
    """Within the network namespace."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["nft", "-f", "-"], input=RULES.encode(), check=True)
    for address in (GOOD, BAD):
        dns_server(address)
    children = []
    for name, place in cgroups().items():
        child = os.fork()
        if child == 0:
            with open(os.path.join(place, "cgroup.procs"), "w") as procs:
                procs.write("0")
            ROLES[name](directory)
            time.sleep(seconds)
            os._exit(0)
        children.append(child)
    time.sleep(seconds)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main():
    seconds, port = int(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        return inside(seconds, sys.argv[3])
    kubelet(port)
    places = cgroups().values()
    made = []
    for place in places:
        parts = place.split("/")
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            if path and not os.path.isdir(path):
                os.mkdir(path)
                made.append(path)
    try:
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run(["unshare", "--net", sys.executable, __file__, *sys.argv[1:3], directory], check=True)
    finally:
        for path in reversed(made):
            os.rmdir(path)


main()
