"""What decides a number, written beside it, with a hash to compare protocols by."""

import hashlib
import json
from typing import Any

Protocol = dict[str, Any]


def tag(protocol: Protocol, shared: Protocol) -> Protocol:
    """Return the protocol with its `hash`, over it and what all tasks share.

    The hash is 12 hex digits. Numbers with equal hashes were made in the same way; a
    change of any default shows.
    """
    text = json.dumps([protocol, shared], sort_keys=True)
    return protocol | {"hash": hashlib.sha256(text.encode()).hexdigest()[:12]}
