"""Where the nodes on this machine run: directly, or in network namespaces on a bridge (needs root and iproute2)."""

import contextlib
import ipaddress
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a node runs. If isolated, its namespace and the outer end of its link have the same name."""

    name: str
    address: str
    isolated: bool

    def command(self) -> list[str]:
        """The prefix of a command that runs here."""
        return ["ip", "netns", "exec", self.name] if self.isolated else []

    def cut(self) -> None:
        """Takes the link down: processes keep running, but are unreachable."""
        if not self.isolated:
            raise RuntimeError(f"{self.name} has no link to cut; start the cluster with isolated=True")
        _ip("link", "set", self.name, "down")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A bridge on this machine, and the namespaces linked to it."""

    name: str
    subnet: ipaddress.IPv4Network
    stack: contextlib.ExitStack

    @property
    def gateway(self) -> str:
        """This machine's address on the bridge."""
        return str(self.subnet[1])

    def add(self, number: int) -> Place:
        """A new namespace with a link, eth0, to the bridge. It has no default route: nodes reach only this machine."""
        place = Place(name=f"{self.name}-{number}", address=str(self.subnet[number + 2]), isolated=True)
        _ip("netns", "add", place.name)
        self.stack.callback(_ip, "netns", "delete", place.name)
        _ip("link", "add", place.name, "type", "veth", "peer", "name", "eth0", "netns", place.name)
        # The kernel deletes it with the namespace, but asynchronously.
        self.stack.callback(_ip, "link", "delete", place.name)
        _ip("link", "set", place.name, "master", self.name, "up")
        _ip("-n", place.name, "address", "add", f"{place.address}/24", "dev", "eth0")
        _ip("-n", place.name, "link", "set", "eth0", "up")
        _ip("-n", place.name, "link", "set", "lo", "up")
        return place


@contextlib.contextmanager
def new_network(name: str) -> Iterator[Network]:
    """A bridge on an unused subnet; deleted with all its namespaces at the end of the context."""
    with contextlib.ExitStack() as stack:
        network = Network(name=name, subnet=_free_subnet(), stack=stack)
        _ip("link", "add", name, "type", "bridge")
        stack.callback(_ip, "link", "delete", name)
        _ip("address", "add", f"{network.gateway}/24", "dev", name)
        _ip("link", "set", name, "up")
        yield network


def can_isolate() -> bool:
    """Whether this process can create bridges and network namespaces, by trying."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with new_network(new_name()) as network:
            subprocess.run([*network.add(0).command(), "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        return False
    return True


def new_name() -> str:
    """A short name for a network: with a node's number it names an interface, which allows 15 characters."""
    return f"ray{secrets.token_hex(3)}"


def _free_subnet() -> ipaddress.IPv4Network:
    routes = json.loads(_ip("-4", "-json", "route", "show") or "[]")
    used = [ipaddress.IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    while True:
        subnet = ipaddress.IPv4Network(f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}.0/24")
        if not any(subnet.overlaps(other) for other in used):
            return subnet


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
