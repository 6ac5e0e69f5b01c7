"""The role objects, side by side. No logic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ksi_mcp.access.tokens import AccessTokens
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.prices import Prices
from ksi_mcp.clock import Clock
from ksi_mcp.compositions.library import Library
from ksi_mcp.config import Config
from ksi_mcp.decisions.log import DecisionLog
from ksi_mcp.events.journal import Journal
from ksi_mcp.orchestrations.conductor import Conductor
from ksi_mcp.orchestrations.supervision import Supervisor
from ksi_mcp.providers.registry import ProviderRegistry
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.router import Router


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a tool may call."""

    clock: Clock
    config: Config
    journal: Journal
    ledger: Ledger
    queues: SessionQueues
    roster: Roster
    library: Library
    decisions: DecisionLog
    router: Router
    conductor: Conductor
    supervisor: Supervisor
    registry: ProviderRegistry
    prices: Prices
    access: AccessTokens
    data_folder: Path
