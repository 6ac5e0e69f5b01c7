"""What runs say of a composition, shown beside its document and never written into it."""

from __future__ import annotations

from typing import Any

from ksi_mcp.compositions import runs
from ksi_mcp.compositions.bundles import claims
from ksi_mcp.compositions.comparing import Question, Version, compare
from ksi_mcp.compositions.promotion import improvement, parent_reference
from ksi_mcp.compositions.records import CompositionRecord
from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View

_OVER_PARENT = ("score", "success")


class MeasuredView(View):
    """Figures of the runs here, each mean with its n and its 95 % interval.

    `performance` is of this version, `all_versions` of the name; `evaluations` are runs that were cases of one.
    `claimed` is what the file says itself, `claimed_runs` what bundles say of runs elsewhere.
    `improvements_over_parent` compares with the version it was forked from.
    """

    performance: dict[str, Any] | None = None
    all_versions: dict[str, Any] | None = None
    evaluations: dict[str, Any] | None = None
    claimed: Any = None
    claimed_runs: list[dict[str, Any]] | None = None
    improvements_over_parent: list[dict[str, Any]] | None = None


async def version_of(call: Call, reference: str) -> Version:
    """The version that runs of a reference remember: with its parents merged in.

    Raises:
        NotFound: there is none.
    """
    return version_in(await call.svc.library.get(reference, resolve=True))


async def measured(call: Call, record: CompositionRecord) -> MeasuredView:
    """What the runs of a composition come to."""
    document = record.composition.document
    own = await _current(call, record)
    reference = parent_reference(record.composition)
    parent = None
    if reference is not None:
        try:
            parent = await version_of(call, reference)
        except KsiError:  # a parent that is gone, or cannot be resolved any more: nothing to compare with
            parent = None

    def work(tx: Tx) -> MeasuredView:
        of_version = runs.performance(tx, hashes=[own.hash]).get(own.hash)
        of_name = runs.performance(tx, names=[own.name]).get(own.name)
        evaluated = runs.performance(tx, hashes=[own.hash], evaluated=True).get(own.hash)
        older = of_name if of_name is not None and (of_version is None or of_name.runs > of_version.runs) else None
        gained = []
        if parent is not None and of_version is not None:
            compared = (compare(tx, parent, own, Question(metric=metric)) for metric in _OVER_PARENT)
            gained = [improvement(each) for each in compared if each.result.difference is not None]
        for each in gained:  # the ids are for files; here they would drown the rest
            each["before"].pop("run_ids", None)
            each["after"].pop("run_ids", None)
        return MeasuredView(
            performance=None if of_version is None else of_version.as_document(),
            all_versions=None if older is None else older.as_document(),
            evaluations=None if evaluated is None else evaluated.as_document(),
            claimed=document.get("performance") or None,
            claimed_runs=claims(tx, [own.name]) or None,
            improvements_over_parent=gained or None,
        )

    return await call.read(work)


async def _current(call: Call, record: CompositionRecord) -> Version:
    if record.resolved is not None:
        return version_in(record)
    made = record.composition
    try:
        return await version_of(call, f"{made.name}@{made.hash}")
    except KsiError:  # it cannot be resolved, so it cannot have run as it is
        return version_in(record)


def version_in(record: CompositionRecord) -> Version:
    """The same of what was read already, with its parents merged in if that was asked for."""
    made, resolved = record.composition, record.resolved
    return Version(name=made.name, version=made.version, hash=made.hash if resolved is None else resolved.hash)
