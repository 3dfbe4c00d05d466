"""The rooms that send to remotes, made from the settings; a part of daemon.py's work, and like it without behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outputd.builds.healing import Healing
from outputd.builds.leases import Leases
from outputd.builds.queue_lane import QueueOptions
from outputd.builds.queued_rows import QueuedRows
from outputd.builds.sending import Rate
from outputd.builds.state import State
from outputd.builds.uploads import Uploads
from outputd.builds.write_back import WriteBack
from outputd.builds.write_back_store import WriteBackStore
from outputd.config import Config
from outputd.config.remote_options import ConfiguredRemote
from outputd.digest import Digest
from outputd.store.base import ServedBlobs
from outputd.store.disk_store import DiskStore
from outputd.store.routing import Routes


@dataclass(frozen=True, slots=True)
class Senders:
    """Without remotes there are none of them."""

    uploads: Uploads | None = None
    """Unless no remote is to have what builds make."""
    healing: Healing | None = None
    """Unless the settings say no."""
    queue: WriteBack | None = None
    """Always with a remote: what was queued before the settings were changed is brought all the same."""

    def held(self) -> set[Digest]:
        """Blobs that must stay here until they are sent. From any thread."""
        held: set[Digest] = set()
        for room in (self.healing, self.queue):
            if room is not None:
                held |= room.blobs()
        return held

    def served(self, store: ServedBlobs) -> ServedBlobs:
        """The store as clients see it."""
        return store if self.queue is None else WriteBackStore(store, self.queue)


def senders(
    config: Config,
    remotes: Sequence[ConfiguredRemote],
    routes: Routes | None,
    store: ServedBlobs,
    local: DiskStore,
    state: State,
    leases: Leases,
) -> Senders:
    """Raises Unavailable when the queue cannot be read."""
    if routes is None:
        return Senders()
    uploads: Uploads | None = None
    if any(one.settings.upload_outputs for one in remotes):
        uploads = Uploads(
            routes,
            local,
            state.directory,
            leases,
            trusted=int(config.outputs.lease_seconds * 1e9),
            rates={
                one.prefix: Rate(one.settings.upload_rate) for one in remotes if one.settings.upload_outputs
            },
            remote_of=routes.prefix,
        )
    options = {
        one.prefix: QueueOptions(
            one.url,
            one.settings.offline_queue,
            one.settings.offline_queue_age,
            Rate(one.settings.upload_rate),
        )
        for one in remotes
    }
    return Senders(
        uploads,
        Healing(store, list(options), routes.prefix) if config.outputs.heal else None,
        WriteBack(QueuedRows(state), routes, local, options, routes.prefix),
    )
