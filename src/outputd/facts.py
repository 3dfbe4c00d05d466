"""What the daemon tells of itself: of its mount, its remotes, of who waits. Asks the rooms, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from outputd.builds.healing import Healing
from outputd.builds.write_back import WriteBack
from outputd.config.remote_options import ConfiguredRemote
from outputd.front.fuse.callers import name_of
from outputd.front.fuse.front import FuseFront
from outputd.rpc.admin import MountFacts, RemoteFacts
from outputd.rpc.operations import KernelRequest
from outputd.store.remote.client import RemoteStore
from outputd.store.routing import Routes
from outputd.wire.fuse_abi import Opcode


def mount_facts(front: FuseFront, path: str) -> MountFacts:
    """For `outputd status`."""
    session = front.session
    if session is None or not session.minor:
        return MountFacts(path, "", ())
    features = [flag.name.lower() for flag in session.features if flag.name is not None]
    return MountFacts(path, f"7.{session.minor}", features)


def remote_facts(
    configured: ConfiguredRemote, client: RemoteStore, healing: Healing | None, queue: WriteBack | None
) -> RemoteFacts:
    """The same of one remote."""
    contact = client.contact
    healed = None if healing is None else healing.of(configured.prefix)
    return RemoteFacts(
        configured.name,
        configured.prefix,
        configured.settings.instance_name,
        configured.url,
        contact.reached,
        contact.last_error,
        contact.last_error_time,
        contact.unanswered_since,
        healed=0 if healed is None else healed.blobs,
        healed_bytes=0 if healed is None else healed.bytes,
        healing=0 if healed is None else len(healed.queue),
        credentials=client.credentials.facts(),
        queue=None if queue is None else queue.facts(configured.prefix),
    )


def url_of(remotes: Routes | None, instance_name: str) -> str:
    """Where blobs of an instance are asked for."""
    route = None if remotes is None else remotes.route(instance_name)
    return route.remote.url if route is not None and isinstance(route.remote, RemoteStore) else ""


def awaited(front: FuseFront) -> bool:
    """Whether a process waits for something at this moment."""
    return front.session is not None and any(True for _ in front.session.waiting())


def kernel_requests(front: FuseFront, mount_path: str) -> Iterator[KernelRequest]:
    """For `outputd stuck`."""
    session = front.session
    if session is None:
        return
    for request in session.waiting():
        yield KernelRequest(
            Opcode(request.opcode).name,
            mount_path + session.path(request.nodeid),
            request.pid,
            name_of(request.pid),
            request.began,
            session.wanted(request.nodeid),
        )
