"""Where everything lives, and what the operator has decided.

One data folder: `--home` or `KSI_HOME`, else `.ksi/` in the working directory if `ksi-mcp init` made it, else the
user's data folder. In it: `ksi.db`, `config.yaml`, the user's `compositions/`, `token`, `logs/`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, ValidationError

from ksi_mcp import yamlio
from ksi_mcp.errors import Invalid
from ksi_mcp.provider_config import (
    AnthropicConfig,
    ClaudeCliConfig,
    McpServerConfig,
    OpenAICompatibleConfig,
    PrefetchConfig,
    SemanticConfig,
)
from ksi_mcp.provider_config import Section as _Strict

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "claude-sonnet-5-5"


class WorkerConfig(_Strict):
    """How turns are run."""

    concurrency: int = Field(default=64, ge=1, le=10_000, description="turns at work at once")
    idle_s: float = Field(default=60, ge=0, le=86_400, description="a worker without work ends after so many seconds")
    beat_s: float = Field(default=5, gt=0, le=3600, description="a worker gives a sign of life this often")
    hung_s: float = Field(
        default=60, gt=0, le=86_400, description="one that gives none for so long is killed and replaced"
    )


class BudgetConfig(_Strict):
    """Limits of the whole data folder; none by default."""

    usd: float | None = Field(default=None, ge=0, le=1_000_000_000)
    tokens: int | None = Field(default=None, ge=0)
    turns: int | None = Field(default=None, ge=0)


class AgentConfig(_Strict):
    """What agents get unless their composition says otherwise, and what a composition may ask for at all."""

    default_capabilities: tuple[str, ...] = ("base", "messaging")
    grantable: tuple[str, ...] = (
        "base", "messaging", "spawn_agents", "routing_control", "decisions", "compositions", "orchestration",
    )  # fmt: skip
    grantable_level: Literal["none", "self", "children", "orchestration", "global"] = Field(
        default="orchestration", description="whose routes a composition may let an agent change, at most"
    )
    tools: Literal["default", "full"] = Field(
        default="default", description="which tools agents are told of in every round; all can be used, see `help`"
    )
    max_tokens: int = Field(default=4096, ge=1, le=128_000)
    max_tool_rounds: int = Field(default=8, ge=1, le=100)


class ScriptedConfig(_Strict):
    """Where the scripted provider finds its replies: a YAML file, relative to the data folder."""

    script: str | None = None


class KeptEvents(_Strict):
    """How many events are kept; what passes any of these goes, oldest first. `null`: without limit."""

    days: float | None = Field(default=30, ge=0, le=100_000, description="events older than this go")
    count: int | None = Field(default=1_000_000, ge=0, description="the oldest of more events than this go")
    megabytes: float | None = Field(default=1024, ge=0, description="the oldest events beyond this go")


class KeptTurns(_Strict):
    """How many finished turns are kept, with their answers and tool results; as with events."""

    days: float | None = Field(default=90, ge=0, le=100_000, description="turns that ended before this go")
    count: int | None = Field(default=1_000_000, ge=0, description="the oldest of more turns than this go")
    megabytes: float | None = Field(default=4096, ge=0, description="the oldest turns beyond this go")


class RetentionConfig(_Strict):
    """What is kept and for how long. What a living agent, an open run or a checkpoint needs stays in any case."""

    events: KeptEvents = KeptEvents()
    turns: KeptTurns = KeptTurns()
    audit_days: float | None = Field(
        default=None, ge=0, le=100_000, description="changes of rules, spend, decisions, refusals; null: for ever"
    )
    idempotency_days: float = Field(default=7, ge=0, le=100_000, description="a repeated call is known so long")
    checkpoints: int = Field(
        default=20, ge=1, le=10_000, description="newest of each run, automatic ones and others apart"
    )
    rule_stats_days: float = Field(default=30, ge=0, le=100_000, description="figures of rules older than this go")
    dead_letters_days: float | None = Field(
        default=90, ge=0, le=100_000, description="deliveries that failed before this go, tried again or not"
    )
    redriven_days: float = Field(default=7, ge=0, le=100_000, description="those that were made later go after this")
    dead_letters: int = Field(default=100_000, ge=0, description="the oldest of more than this go")
    rule_versions: int = Field(
        default=10_000, ge=0, le=1_000_000, description="newest versions of the rule table to go back to"
    )


class DampingConfig(_Strict):
    """When a rule was changed too often, and how long it stays as it is then."""

    changes: int = Field(default=10, ge=1, le=1_000, description="a rule may be changed so often within window_s")
    undone: int = Field(default=3, ge=1, le=1_000, description="so many pairs of changes that undo each other")
    window_s: float = Field(default=60, gt=0, le=86_400, description="what changes are counted over")
    frozen_s: float = Field(default=60, gt=0, le=86_400, description="nobody changes a frozen rule for so long")


class RoutingConfig(_Strict):
    """How events are delivered."""

    safe_mode: bool | None = Field(
        default=None, description="true: deliver nothing, so that a bad table can be mended; null: as --safe-mode says"
    )


class SupervisionConfig(_Strict):
    """What happens to a prompt whose turn was lost for good, unless its agent's composition says otherwise."""

    policy: Literal["none", "retry", "respawn", "redistribute", "escalate"] = "none"
    max_rescues: int = Field(default=2, ge=0, le=100, description="how often one prompt is taken up again")
    max_respawns: int = Field(default=3, ge=0, le=100, description="successors in a row that finished no turn")


class MonitorConfig(_Strict):
    """When the worker says that something is wrong; `null`: it does not look for that."""

    every_s: float = Field(default=5, gt=0, le=3600, description="how often it looks")
    backlog: int | None = Field(default=None, ge=1, description="so many waiting turns are a backlog")
    timeout_rate: float | None = Field(default=None, gt=0, le=1, description="so many of the ended turns timed out")
    window_s: float = Field(default=300, ge=1, le=86_400, description="what the rate is counted over")
    stuck_s: float | None = Field(default=60, ge=0, le=86_400, description="a turn is stuck so long after its deadline")


class TasksConfig(_Strict):
    """Calls that a client hands over, to ask about them later."""

    ttl_s: float = Field(default=86_400, ge=60, le=2_592_000, description="one is kept so long, with its result")
    open: int = Field(default=100, ge=1, le=10_000, description="so many of one caller may wait at one time")
    kept: int = Field(
        default=1_000, ge=1, le=100_000, description="so many of one caller are kept; beyond, calls wait as always"
    )


class Config(_Strict):
    """`config.yaml`: every key is optional, an unknown one is an error."""

    provider: str | None = Field(default=None, description="for agents that name none; null: whichever is there")
    model: str | None = Field(default=None, description="for agents that name none: a model or a profile")
    worker: WorkerConfig = WorkerConfig()
    budget: BudgetConfig = BudgetConfig()
    agents: AgentConfig = AgentConfig()
    anthropic: AnthropicConfig = AnthropicConfig()
    openai_compatible: OpenAICompatibleConfig = OpenAICompatibleConfig()
    claude_cli: ClaudeCliConfig = ClaudeCliConfig()
    scripted: ScriptedConfig = ScriptedConfig()
    providers: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of providers from other packages, by name; no keys"
    )
    semantic_cache: SemanticConfig = SemanticConfig()
    prefetch: PrefetchConfig = PrefetchConfig()
    mcp_servers: dict[str, McpServerConfig] = Field(
        default_factory=dict,
        description="servers whose tools compositions may give to agents, by name; none by default",
    )
    retention: RetentionConfig = RetentionConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    monitor: MonitorConfig = MonitorConfig()
    damping: DampingConfig = DampingConfig()
    routing: RoutingConfig = RoutingConfig()
    tasks: TasksConfig = TasksConfig()
    prices: dict[str, Any] = Field(default_factory=dict, description="USD per million tokens, by model, or `free`")
    max_depth: int = Field(
        default=256, ge=1, le=100_000, description="turns since the first cause, unless a pattern says"
    )
    log_level: str = "WARNING"

    def with_safe_mode(self, *, asked: bool) -> Config:
        """The same for whoever decides: a server or worker that is started. Others leave it as it is."""
        safe_mode = asked or bool(self.routing.safe_mode)
        return self.model_copy(update={"routing": self.routing.model_copy(update={"safe_mode": safe_mode})})

    def in_flight(self, provider: str) -> int | None:
        """How many calls may be under way at a kind of provider; None: as many as there are turns at work."""
        most = {"anthropic": self.anthropic.in_flight, "openai_compatible": self.openai_compatible.in_flight}
        return most.get(provider)


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The data folder and what is where in it."""

    root: Path

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "ksi.db"

    @property
    def config(self) -> Path:
        """The operator's configuration; it may be missing."""
        return self.root / "config.yaml"

    @property
    def compositions(self) -> Path:
        """The user's own library."""
        return self.root / "compositions"

    @property
    def worker_lock(self) -> Path:
        """Held by the one worker process."""
        return self.root / "worker.lock"

    @property
    def launch_lock(self) -> Path:
        """Held while a worker process is being started, so that two servers do not start two."""
        return self.root / "launch.lock"

    @property
    def logs(self) -> Path:
        """What detached processes write."""
        return self.root / "logs"

    @property
    def worker_log(self) -> Path:
        """What the detached worker says."""
        return self.logs / "worker.log"

    @property
    def unguarded_lock(self) -> Path:
        """Held by a server that asks for no token."""
        return self.root / "unguarded.lock"

    @property
    def token(self) -> Path:
        """The operator's token for HTTP, readable by its owner only."""
        return self.root / "token"


LOCAL = ".ksi"
"""A data folder of its own, in the working directory."""


def user_home() -> Path:
    """The data folder of whoever names none."""
    return Path(platformdirs.user_data_dir("ksi_mcp", appauthor=False))


def is_trusted(root: Path) -> bool:
    """Whether `ksi-mcp init` was told on this machine, by this user, that the folder is a data folder.

    What lies in a folder cannot vouch for it: it may have come with somebody's repository.
    """
    try:
        known = (user_home() / "homes").read_text("utf-8").splitlines()
    except OSError:
        return False
    return root.is_dir() and str(root.resolve()) in known


def trust(root: Path) -> None:
    """Remember a folder as one that may be found in the working directory.

    Raises:
        Invalid: the user's own data folder cannot be written.
    """
    if is_trusted(root):
        return
    try:
        user_home().mkdir(parents=True, exist_ok=True, mode=0o700)
        with (user_home() / "homes").open("a", encoding="utf-8") as known:
            known.write(f"{root.resolve()}\n")
    except OSError as failure:
        raise Invalid(f"the user's data folder cannot be written: {failure.strerror}") from None


def find_home(given: str | None, environ: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Home:
    """The data folder to use; it is made if it is not there.

    Raises:
        Invalid: the folder cannot be made or written.
    """
    here = cwd or Path.cwd()
    if given or environ.get("KSI_HOME"):
        root = Path(given or environ["KSI_HOME"]).expanduser()
    elif is_trusted(here / LOCAL):
        root = here / LOCAL
    else:
        root = user_home()
        if (here / LOCAL).is_dir():
            logger.warning(
                "%s here is not used: whoever made this folder could run programs and send keys with it. "
                "If it is yours: ksi-mcp init --home %s",
                LOCAL,
                LOCAL,
            )
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
    except OSError as failure:
        raise Invalid(
            f"the data folder cannot be used: {failure.strerror}", hint="choose another one with --home or KSI_HOME"
        ) from None
    return Home(root=root.resolve())


def load_config(home: Home) -> Config:
    """Read `config.yaml`; an absent or empty file is the defaults.

    Raises:
        Invalid: it is not YAML, or a key or value is wrong; each is named.
    """
    if not home.config.is_file():
        return Config()
    document = yamlio.safe_load(home.config.read_bytes(), what="config.yaml")
    if document is None:
        return Config()
    if not isinstance(document, dict):
        raise Invalid("config.yaml must be a mapping of settings")
    try:
        return Config.model_validate(document)
    except ValidationError as failure:
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: "
            + ("there is no such key" if error["type"] == "extra_forbidden" else error["msg"])
            for error in failure.errors()[:10]
        )
        raise Invalid(f"config.yaml: {wrong}", hint="`ksi-mcp doctor --settings` shows every setting") from None
