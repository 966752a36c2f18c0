"""The content-addressed store of verified models."""

from miyabi_llm.store.fs import Fs
from miyabi_llm.store.leases import Lease
from miyabi_llm.store.part import Incomplete, Part
from miyabi_llm.store.store import Store
from miyabi_llm.store.values import FileCheck, ModelUsage, Pruned, Removal, Removed, StoredBlob, Usage

__all__ = [
    "FileCheck",
    "Fs",
    "Incomplete",
    "Lease",
    "ModelUsage",
    "Part",
    "Pruned",
    "Removal",
    "Removed",
    "Store",
    "StoredBlob",
    "Usage",
]
