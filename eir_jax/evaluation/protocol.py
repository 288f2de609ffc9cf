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
    return protocol | {"hash": short_hash([protocol, shared])}


def short_hash(value: Any) -> str:
    """Return 12 hex digits of what JSON can hold."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
