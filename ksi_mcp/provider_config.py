"""The sections of `config.yaml` that say how models are reached. Keys themselves are never in it, only their names."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of `config.yaml`: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AnthropicConfig(Section):
    """How the Messages API is reached. The key itself stays in the environment or the keyring."""

    base_url: str | None = None
    api_key_env: str = "ANTHROPIC_API_KEY"
    in_flight: int = Field(default=64, ge=1, le=10_000, description="calls under way at once; fewer while it refuses")
    prompt_cache: Literal["off", "5m", "1h"] = Field(
        default="5m", description="how long the API keeps what conversations have in common; writing to it costs more"
    )
    batch_poll_s: float = Field(default=60, gt=0, le=3600, description="how often batches are asked how far they are")


class OpenAICompatibleConfig(Section):
    """How a server is reached that speaks OpenAI's chat completions: Ollama, LM Studio, vLLM, OpenRouter."""

    base_url: str | None = Field(default=None, description="such as http://localhost:11434/v1")
    api_key_env: str | None = Field(default=None, description="the name of its key; none: none is sent")
    in_flight: int = Field(default=64, ge=1, le=10_000, description="calls under way at once; fewer while it refuses")


class ClaudeCliConfig(Section):
    """How the user's own Claude Code is run."""

    command: str = Field(default="claude", description="the program, by name or path")
    max_usd_per_turn: float = Field(
        default=1.0, gt=0, le=1_000, description="set aside for each turn; its own soft cap"
    )
    processes: int | None = Field(
        default=None, ge=1, le=1_000, description="at once; null: as many as half of the free memory holds"
    )
    keep_s: float = Field(default=120, ge=0, le=86_400, description="a process waits so long for its agent's next turn")
    tools: tuple[str, ...] = Field(default=(), description="tools of its own that agents may use, such as Read, Bash")
    env: tuple[str, ...] = Field(
        default=(), description="variables that are passed on to it, besides those that every program needs"
    )
    model_turns: int = Field(default=30, ge=1, le=1_000, description="answers of the model in one turn, at most")


class SemanticConfig(Section):
    """The cache that finds the same question in other words; used where an agent says `cache: semantic`."""

    embedder: str | None = Field(
        default=None, description="`package.module:function`, from a list of texts to a list of vectors; null: off"
    )
    mode: Literal["shadow", "serve"] = Field(
        default="shadow", description="shadow: only note what it would have served"
    )
    threshold: float = Field(default=0.97, ge=0.9, le=1, description="cosine similarity from which it is the same")
    entries: int = Field(
        default=2_000, ge=1, le=100_000, description="newest answers looked through, per model and role"
    )


class PrefetchConfig(Section):
    """Answers made before they are asked for (`completion_prefetch`)."""

    usd_share: float = Field(
        default=0.05, ge=0, le=1, description="of a run's budget that may go into them; without a budget, usd"
    )
    usd: float = Field(default=0.10, ge=0, le=1_000_000, description="for agents whose run has no budget in USD")
    keep_s: float = Field(default=900, gt=0, le=86_400, description="an answer is good for so long")


class McpServerConfig(Section):
    """A server of the Model Context Protocol whose tools agents may be given: `command`, or `url`."""

    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict, description="values may be ${NAME}, taken from the environment")
    url: str | None = Field(default=None, description="Streamable HTTP; https, or http on this machine")
    headers: dict[str, str] = Field(default_factory=dict, description="values may hold ${NAME}, as in env")
    tools: tuple[str, ...] = Field(default=("*",), description="which of its tools agents may be given at all; globs")
    timeout_s: float = Field(default=60, gt=0, le=3600, description="for one call")
