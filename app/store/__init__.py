"""Files under a model store: manifests, versions, digests, atomic publishing."""

from app.store.inspection import Finding, Report
from app.store.manifest import Draft, Manifest, manifest_schema, manifest_text
from app.store.store import ModelStore
from app.store.survey import Problem

__all__ = [
    "Draft",
    "Finding",
    "Manifest",
    "ModelStore",
    "Problem",
    "Report",
    "manifest_schema",
    "manifest_text",
]
