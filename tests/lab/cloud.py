"""Owns the cloud of one test host: EC2's API (moto, over HTTP), and a machine for each instance that runs there.

    cloud.py HOST RELEASE ADDRESS       in the network of HOST, with the python of moto.sh; the API listens on ADDRESS

A machine is a lab host beside HOST (host.sh), in HOST's network, named HOST-INSTANCE. It boots when its instance runs
(instance.sh has what it does then), is killed when its instance is stopped or terminated, keeps its disk while it is
stopped, and when it powers itself off its instance is stopped or terminated as its launch said. Its sshd listens at its
private address; at its public one, if it has one, a wire of 40 ms and 100 Mbit/s begins (wire.pl) that leads there.

Standard output's first line is what there is: {"endpoint", "region", "subnets", "groups"}. After that every line of
standard input is a command, answered by one line:

    ["ec2", METHOD, {...}]      a call to EC2, as boto3 names it
    ["scheduler", METHOD, {}]   the same to EventBridge Scheduler
    ["calls"]                   how often each action was done, refused or lost, for anybody but this program
    ["hold"], ["release"]       machines that start from now on wait with their boot until they are released
    ["break", PROGRAM]          in machines that boot from now on this program fails
    ["stall", ACTION]           this action is done, and its answer withheld until answers flow
    ["lose", ACTION]            this action is not done, and an error is the answer once answers flow
    ["flow"]                    answers flow again
    ["deny", ACTION]            whoever asks for this action of EventBridge Scheduler is told that he may not
    ["allow"]                   everybody may do everything again
    ["sent", INSTANCE]          how many bytes have come to an instance by its public address
    ["interrupt"]               instances hear from their metadata that EC2 takes them back

It ends, and all machines with it, when standard input does.
"""

import base64
import collections
import http.server
import io
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

REGION = "eu-central-1"
HERE = pathlib.Path(__file__).resolve().parent
POLL = 0.2
# How this program names itself, so that its own calls are not counted.
AGENT = "nix-broker-lab"
DENIED = "AccessDeniedException"

# NixOS's account, several ages, and one for the other architecture.
IMAGES = [
    {
        "ami_id": f"ami-{bits:014}{number}",
        "name": f"nixos/26.05.{number}.0123456789ab-{system}",
        "description": f"NixOS 26.05.{number} {system}",
        "owner_id": "427812963091",
        "public": True,
        "virtualization_type": "hvm",
        "architecture": architecture,
        "state": "available",
        "image_type": "machine",
        "hypervisor": "xen",
        "root_device_name": "/dev/xvda",
        "root_device_type": "ebs",
        "sriov": "simple",
        "creation_date": f"2026-{number // 100:02}-01T00:00:00.000Z",
        "tags": {},
    }
    for number in (400, 600, 500)
    for system, architecture, bits in (("x86_64-linux", "x86_64", 86), ("aarch64-linux", "arm64", 64))
]


def images_for_moto():
    """moto reads the list when it is first asked."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(IMAGES, file)
    os.environ["MOTO_AMIS_PATH"] = file.name
    return file.name


class Gate:
    """Between the broker and moto: counts what is asked, and withholds answers."""

    def __init__(self, inner):
        self.inner = inner
        self.calls = collections.Counter()
        self.stalled = set()
        self.lost = set()
        self.denied = set()
        self.changed = threading.Condition()

    def __call__(self, environ, start_response):
        # Reading the form would take it from moto, so it is put back.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = io.BytesIO(body)
        action = self.action(environ, body)
        if AGENT in environ.get("HTTP_USER_AGENT", ""):
            return self.inner(environ, start_response)
        with self.changed:
            if action in self.denied | self.lost:
                self.calls[action] += 1
            if action in self.denied:
                start_response("403 Forbidden", [("Content-Type", "application/json"), ("x-amzn-ErrorType", DENIED)])
                words = f"User: arn:aws:iam::123456789012:user/lab is not authorized to perform: scheduler:{action}"
                return [json.dumps({"Message": words}).encode()]
            if action in self.lost:
                self.changed.wait_for(lambda: action not in self.lost)
                start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
                return [b"lost"]
        answer = list(self.inner(environ, start_response))
        with self.changed:
            # Whoever waits for this may look at what it did.
            self.calls[action] += 1
            self.changed.wait_for(lambda: action not in self.stalled)
        return answer

    @staticmethod
    def action(environ, body):
        if environ["PATH_INFO"].startswith("/schedules/"):
            return {"POST": "CreateSchedule", "PUT": "UpdateSchedule", "DELETE": "DeleteSchedule"}.get(
                environ["REQUEST_METHOD"], "-"
            )
        return urllib.parse.parse_qs(body.decode("utf-8", "replace")).get("Action", ["-"])[0]

    def deny(self, action):
        with self.changed:
            self.denied.add(action)

    def allow(self):
        with self.changed:
            self.denied.clear()

    def stall(self, action):
        with self.changed:
            self.stalled.add(action)

    def lose(self, action):
        with self.changed:
            self.lost.add(action)

    def flow(self):
        with self.changed:
            self.stalled.clear()
            self.lost.clear()
            self.changed.notify_all()


class Metadata(http.server.BaseHTTPRequestHandler):
    """What an instance asks at 169.254.169.254. All of them share the address, so all hear the same."""

    ADDRESS = "169.254.169.254"
    interrupted = False

    def do_PUT(self):
        self.reply(200, "token" if self.path == "/latest/api/token" else "")

    def do_GET(self):
        if self.path == "/own-address":
            # No business of an instance's: what a service on the internet says to the broker.
            self.reply(200, "198.51.100.7\n")
        elif self.headers.get("X-aws-ec2-metadata-token") != "token":
            self.reply(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.interrupted:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
            self.reply(200, json.dumps({"action": "terminate", "time": at}))
        else:
            self.reply(404, "")

    def reply(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

    @classmethod
    def serve(cls):
        subprocess.run(["ip", "address", "add", f"{cls.ADDRESS}/32", "dev", "lo"], check=True)
        server = http.server.ThreadingHTTPServer((cls.ADDRESS, 80), cls)
        threading.Thread(target=server.serve_forever, daemon=True).start()


class Machines:
    """One lab host for each instance that runs."""

    def __init__(self, host, release, ec2):
        self.host, self.release, self.ec2 = host, release, ec2
        self.running = {}  # instance id -> address
        self.wires = {}  # instance id -> process
        self.counts = tempfile.TemporaryDirectory()
        self.halted = set()
        self.broken = []
        self.may_boot = threading.Event()
        self.may_boot.set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.follow)
        self.thread.start()

    def name(self, instance):
        return f"{self.host}-{instance}"

    def lab(self, *words, **options):
        return subprocess.run([HERE / "host.sh", *words], check=True, stdin=subprocess.DEVNULL, **options)

    def follow(self):
        while not self.over.wait(POLL):
            try:
                for instance in instances(self.ec2):
                    self.follow_one(instance)
            except Exception:
                logging.exception("cloud of %s", self.host)
        for instance in set(self.running) | self.halted:
            self.lab("down", self.name(instance))
        for wire in self.wires.values():
            wire.kill()
        self.counts.cleanup()

    def follow_one(self, instance):
        name, state = instance["InstanceId"], instance["State"]["Name"]
        if state == "running" and name not in self.running:
            if public := instance.get("PublicIpAddress"):
                self.lay_wire(name, public, instance["PrivateIpAddress"])
            self.start(name, instance["PrivateIpAddress"])
        elif state in ("stopping", "stopped") and name in self.running:
            self.lab("halt", self.name(name))
            del self.running[name]
            self.halted.add(name)
        elif state in ("shutting-down", "terminated") and (name in self.running or name in self.halted):
            self.lab("down", self.name(name))
            self.running.pop(name, None)
            self.halted.discard(name)
        elif name in self.running and self.is_off(name):
            attribute = self.ec2.describe_instance_attribute(
                InstanceId=name, Attribute="instanceInitiatedShutdownBehavior"
            )
            if attribute["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate":
                self.ec2.terminate_instances(InstanceIds=[name])
            else:
                self.ec2.stop_instances(InstanceIds=[name])

    def lay_wire(self, name, public, private):
        if name in self.wires:
            self.wires.pop(name).kill()
        subprocess.run(["ip", "address", "replace", f"{public}/32", "dev", "lo"], check=True)
        words = [f"{public}:22", f"{private}:22", "20", "12500", f"{self.counts.name}/{name}"]
        self.wires[name] = subprocess.Popen(["perl", HERE / "wire.pl", *words], stdin=subprocess.DEVNULL)

    def sent(self, name):
        return int(pathlib.Path(self.counts.name, name).read_text().split()[0])

    def is_off(self, name):
        root = self.lab("root", self.name(name), capture_output=True, text=True).stdout.strip()
        return os.path.exists(f"{root}/run/poweroff")

    def start(self, name, address):
        self.lab("up", self.name(name), self.release, self.host)
        self.running[name] = address
        self.halted.discard(name)
        threading.Thread(target=self.boot, args=(name, address, list(self.broken))).start()

    def boot(self, name, address, broken):
        self.may_boot.wait()
        attribute = self.ec2.describe_instance_attribute(InstanceId=name, Attribute="userData")
        with tempfile.NamedTemporaryFile() as file:
            file.write(base64.b64decode(attribute["UserData"]["Value"]))
            file.flush()
            try:
                self.lab("put", self.name(name), HERE / "instance.sh", "/t/instance.sh", "755")
                self.lab("put", self.name(name), file.name, "/etc/ec2-metadata/user-data", "600")
                self.lab("in", self.name(name), "/t/instance.sh", "boot", address, *broken)
            except subprocess.CalledProcessError as error:
                # It may have been ended in the meantime.
                logging.warning("machine %s: %s", name, error)

    def stop(self):
        self.may_boot.set()
        self.over.set()
        self.thread.join()


def instances(ec2):
    pages = ec2.get_paginator("describe_instances").paginate()
    return [it for page in pages for group in page["Reservations"] for it in group["Instances"]]


def network(ec2):
    """Addresses that are this host's own, one subnet a zone."""
    vpc = ec2.create_vpc(CidrBlock="127.0.0.0/16")["Vpc"]["VpcId"]
    zones = [zone["ZoneName"] for zone in ec2.describe_availability_zones()["AvailabilityZones"]]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"127.0.{number}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
        for number, zone in enumerate(zones, start=1)
    ]
    group = ec2.create_security_group(GroupName="builders", Description="ssh from the broker", VpcId=vpc)["GroupId"]
    return {"subnets": subnets, "groups": [group]}


def serve(address):
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    gate = Gate(DomainDispatcherApplication(create_backend_app))
    host, port = address.split(":")
    server = make_server(host, int(port), gate, True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return gate


def client(service, endpoint):
    import boto3
    import botocore.config

    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id="AKIALAB",
        aws_secret_access_key="unchecked",
        config=botocore.config.Config(user_agent_extra=AGENT),
    )


def answer(command, clients, gate, machines):
    match command:
        case [("ec2" | "scheduler") as service, method, arguments]:
            reply = getattr(clients[service], method)(**arguments)
            reply.pop("ResponseMetadata", None)
            return reply
        case ["calls"]:
            return dict(gate.calls)
        case ["hold"]:
            machines.may_boot.clear()
        case ["release"]:
            machines.may_boot.set()
        case ["break", program]:
            machines.broken.append(program)
        case ["stall", action]:
            gate.stall(action)
        case ["sent", name]:
            return machines.sent(name)
        case ["interrupt"]:
            Metadata.interrupted = True
        case ["lose", action]:
            gate.lose(action)
        case ["flow"]:
            gate.flow()
        case ["deny", action]:
            gate.deny(action)
        case ["allow"]:
            gate.allow()
        case _:
            raise ValueError(f"unknown command {command}")
    return None


def main():
    host, release, address = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING)
    images = images_for_moto()
    gate = serve(address)
    Metadata.serve()
    endpoint = f"http://{address}"
    clients = {service: client(service, endpoint) for service in ("ec2", "scheduler")}
    ec2 = clients["ec2"]
    ready = {"endpoint": endpoint, "region": REGION} | network(ec2)
    os.unlink(images)
    machines = Machines(host, release, ec2)
    print(json.dumps(ready), flush=True)
    try:
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line), clients, gate, machines), default=str), flush=True)
    finally:
        gate.flow()
        machines.stop()


if __name__ == "__main__":
    status = 1
    try:
        main()
        status = 0
    except Exception:
        logging.exception("cloud")
    # A thread may still wait for something that does not come.
    sys.stdout.flush()
    os._exit(status)
