"""The user's own Claude Code as an agent's model: no API key, its login pays.

It runs tools by itself, so a turn is one call here: a prompt goes in, and what comes back is its last word. Our tools
reach it through a door on this machine that knows it by a token as the agent and nobody else. A process is kept for
the agent's next turn; else its session is resumed; else a new one is told the conversation so far.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ksi_mcp.clock import Clock
from ksi_mcp.config import Home
from ksi_mcp.errors import ProviderError
from ksi_mcp.provider_config import ClaudeCliConfig
from ksi_mcp.providers import processes
from ksi_mcp.providers.base import Answer, Message, OnText, Request
from ksi_mcp.providers.claude import command as claude_command
from ksi_mcp.providers.claude import events as claude_events
from ksi_mcp.providers.claude.command import Left
from ksi_mcp.providers.claude.events import MICROS, Reading, Spent
from ksi_mcp.providers.claude.process import ClaudeProcess
from ksi_mcp.providers.door import Door, Grant
from ksi_mcp.providers.processes import Processes, process_cap
from ksi_mcp.unguarded import is_unguarded

__all__ = ["ClaudeCliProvider", "Door", "Grant", "any_running", "end_recorded", "process_cap"]

logger = logging.getLogger(__name__)

FOLDER: Final = "claude_cli"
"""Below the data folder."""
RECORDS: Final = "processes"
FRESH_SHARE: Final = 0.9
"""A kept process counts what it spent before against its cap: with less than this share left it is not used again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """The door, and what opens it to one process."""

    door: Door
    grant: Grant


class _Session:
    """A process in the middle of a conversation."""

    def __init__(
        self, process: ClaudeProcess, *, agent_id: str | None, settings: str, entry: _Entry | None, left: Left | None
    ) -> None:
        self.process = process
        self.agent_id = agent_id
        self.settings = settings
        self.entry = entry
        self.digest = ""
        """Of the conversation so far."""
        self.spent = Spent() if left is None else left.spent
        self.resumed = left is not None
        """Until it has said what its session counts."""
        self.turns_usd_micros = 0
        """What it has cost since it was started."""
        self.expiry: asyncio.Task[None] | None = None
        self.used_s = 0.0


class ClaudeCliProvider:
    """Runs `claude -p`, one process for each agent at work.

    `folder` is the data folder; what is passed on to processes is taken from `environ`. All that a turn asks of a model
    is one answer: its `cost_usd_micros` is what the session costs more than before.
    """

    name = "claude_cli"

    def __init__(
        self, config: ClaudeCliConfig, folder: Path, door: Door | None, environ: Mapping[str, str], clock: Clock
    ) -> None:
        self._config = config
        self._home = Home(root=folder)
        self._folder = folder / FOLDER
        self._door = door
        self._environ = environ
        self._clock = clock
        self._processes = Processes(self._folder / RECORDS)
        self._cap = process_cap(config)
        self._room = asyncio.Semaphore(self._cap)
        self._starting = 0
        self._kept: dict[str, _Session] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def complete(self, request: Request, *, deadline_s: float, on_text: OnText | None = None) -> Answer:
        """One turn of the agent, with all the tools that it calls. `deadline_s` bounds the start as well."""
        reading = Reading()
        try:
            async with asyncio.timeout(deadline_s), self._room:
                return await self._turn(request, reading, on_text)
        except ProviderError:
            raise
        except TimeoutError:
            raise claude_events.failed(
                f"Claude Code gave no complete answer within {deadline_s:g} s",
                kind="timeout",
                reading=reading,
                billed="unknown",
            ) from None
        except OSError as error:
            raise claude_events.failed(
                f"Claude Code could not be started: {error.strerror or type(error).__name__}",
                kind="server",
                reading=reading,
            ) from None
        except Exception as error:
            logger.exception("Claude Code met an error that nobody expected")
            raise claude_events.failed(
                f"Claude Code could not be used ({type(error).__name__})", kind="bug", reading=reading, billed="unknown"
            ) from None

    async def status(self) -> tuple[bool, str]:
        """Whether the program is there and logged in, as it says itself."""
        return await claude_command.ask_status(self._config, self._environ, self._processes)

    async def aclose(self) -> None:
        """End all processes."""
        kept, self._kept = list(self._kept.values()), {}
        await asyncio.gather(*(self._end(session) for session in kept))
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._processes.aclose()

    # ------------------------------------------------------------------------------- one turn

    async def _turn(self, request: Request, reading: Reading, on_text: OnText | None) -> Answer:
        if not request.messages:
            raise ProviderError("there is nothing to send", kind="request", billed="no")
        self._check_guarded()
        history, last = request.messages[:-1], request.messages[-1]
        agent_id = None if request.behalf is None else request.behalf.ctx.actor.agent_id
        settings, before = self._settings(request), claude_events.digest_of(history)
        kept = await self._take(agent_id, settings, before)
        left = claude_command.session_of(request)
        if kept is not None:
            return await self._ask(kept, request, claude_events.prompt_of(last), reading, on_text)
        if left is not None and left.digest == before and history:
            session = await self._start(request, agent_id, settings, left)
            try:
                return await self._ask(session, request, claude_events.prompt_of(last), reading, on_text)
            except ProviderError:
                if not claude_events.is_unknown_session(reading):
                    raise
                logger.info("the session of agent %s is not there any more; it is told the conversation", agent_id)
                reading.result = None
        session = await self._start(request, agent_id, settings, None)
        return await self._ask(session, request, claude_events.transcript(history, last), reading, on_text)

    async def _take(self, agent_id: str | None, settings: str, before: str) -> _Session | None:
        """The agent's kept process, if it stands exactly here; one that stands elsewhere is ended."""
        session = None if agent_id is None else self._kept.pop(agent_id, None)
        if session is None:
            return None
        if session.expiry is not None:
            session.expiry.cancel()
        spent_usd = session.turns_usd_micros / MICROS
        fresh = spent_usd <= (1 - FRESH_SHARE) * self._config.max_usd_per_turn
        if fresh and session.process.alive and (session.settings, session.digest) == (settings, before):
            return session
        await self._end(session)
        return None

    async def _start(self, request: Request, agent_id: str | None, settings: str, left: Left | None) -> _Session:
        self._starting += 1
        try:
            return await self._start_one(request, agent_id, settings, left)
        finally:
            self._starting -= 1

    async def _start_one(self, request: Request, agent_id: str | None, settings: str, left: Left | None) -> _Session:
        program = claude_command.find_program(self._config, self._environ)
        await self._make_room()
        cwd = claude_command.work_folder(self._folder, agent_id)
        entry = await self._admit(request, agent_id)
        grant = None if entry is None else entry.grant
        url = None if grant is None else grant.url
        try:
            file = claude_command.system_file(self._folder, request.system)
            try:
                given = claude_command.arguments(request, self._config, system_file=file, door_url=url, resume=left)
            except BaseException:
                file.unlink(missing_ok=True)
                raise
            env = claude_command.environment(self._config, self._environ, grant)
            process = await ClaudeProcess.start(self._processes, (program, *given), cwd=cwd, env=env, files=(file,))
            try:  # a server that has begun since then saw no process yet; one that begins from now on sees this
                self._check_guarded()
            except ProviderError:
                await process.end()
                raise
        except BaseException:
            if entry is not None:
                entry.door.close(entry.grant.token)
            raise
        return _Session(process, agent_id=agent_id, settings=settings, entry=entry, left=left)

    def _check_guarded(self) -> None:
        if is_unguarded(self._home):
            raise ProviderError(
                "a server that asks for no token serves this data folder, and a process of an agent could reach it; "
                "start that server without --no-auth",
                kind="request",
                billed="no",
            )

    async def _admit(self, request: Request, agent_id: str | None) -> _Entry | None:
        """What a process of the agent needs to use our tools, if it has any."""
        behalf = request.behalf
        if self._door is None or agent_id is None or behalf is None or not behalf.tools:
            return None
        return _Entry(door=self._door, grant=await self._door.admit(agent_id, behalf.tools))

    async def _ask(
        self, session: _Session, request: Request, prompt: str, reading: Reading, on_text: OnText | None
    ) -> Answer:
        """Hand the prompt over and wait for the end of the turn. Whatever goes wrong, the process is ended."""
        try:
            await self._processes.watch()
            await self._read(session, request, prompt, reading, on_text)
            claude_events.check(reading, now_s=self._clock.now_ms() / 1000)
        except BaseException as error:
            if isinstance(error, ProviderError) and reading.result is not None and not session.resumed:
                # A turn that went too far knows what it cost; one of a resumed session may have counted anew.
                error.cost_usd_micros, _ = claude_events.turn_cost(reading.result, session.spent, resumed=False)
            await self._end(session)
            raise
        result = reading.result or {}
        cost, session.spent = claude_events.turn_cost(result, session.spent, resumed=session.resumed)
        session.resumed = False
        session.turns_usd_micros += cost or 0
        answer = claude_events.answer_of(
            reading, model=request.model, cost=cost, wants_object=request.output_schema is not None
        )
        said = (*request.messages, Message(role="assistant", blocks=(answer.text,)))
        session.digest = claude_events.digest_of(said)
        await self._keep(session)
        if reading.session_id is None or reading.place is None:
            return answer
        left = Left(session_id=reading.session_id, place=reading.place, digest=session.digest, spent=session.spent)
        return replace(answer, session=left.as_json())

    async def _read(
        self, session: _Session, request: Request, prompt: str, reading: Reading, on_text: OnText | None
    ) -> None:
        def watch(text: str) -> None:
            if text and on_text is not None:
                on_text(text)
            refusal = claude_events.refused_at_first(reading)
            if refusal is not None:
                raise refusal

        lost = False

        def taken_over() -> None:
            nonlocal lost
            lost = True
            asking.cancel()

        asking = asyncio.create_task(session.process.ask(prompt, reading, watch), name=f"ksi-ask-{session.process.pid}")
        entry = session.entry
        if entry is not None and request.behalf is not None:
            entry.door.enter(entry.grant.token, request.behalf, taken_over)
        try:
            await asyncio.wait((asking,))
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            if entry is not None:
                await entry.door.leave(entry.grant.token)
        if lost:
            raise claude_events.failed(
                "the turn belongs to somebody else by now", kind="request", reading=reading, billed="unknown"
            )
        asking.result()

    # -------------------------------------------------------------------------- kept processes

    async def _keep(self, session: _Session) -> None:
        """Let the process wait for the agent's next turn, if it may."""
        if session.agent_id is None or self._config.keep_s <= 0 or not session.process.alive:
            await self._end(session)
            return
        if (other := self._kept.pop(session.agent_id, None)) is not None:  # of another call for the same agent
            await self._end(other)
        session.used_s = self._clock.monotonic_s()
        session.expiry = asyncio.create_task(self._expire(session), name=f"ksi-keep-{session.process.pid}")
        self._kept[session.agent_id] = session

    async def _expire(self, session: _Session) -> None:
        await self._clock.sleep(self._config.keep_s)
        if session.agent_id is not None and self._kept.get(session.agent_id) is session:
            del self._kept[session.agent_id]
            session.expiry = None
            await self._end(session)

    async def _make_room(self) -> None:
        """End those that have waited longest, until there is room for one more."""
        while self._processes.count + self._starting > self._cap and self._kept:
            oldest = min(self._kept.values(), key=lambda session: session.used_s)
            del self._kept[str(oldest.agent_id)]
            await self._end(oldest)

    async def _end(self, session: _Session) -> None:
        if session.expiry is not None:
            session.expiry.cancel()
        if session.entry is not None:
            session.entry.door.close(session.entry.grant.token)
        ending = asyncio.create_task(session.process.end(), name=f"ksi-end-{session.process.pid}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        await asyncio.shield(ending)

    def _settings(self, request: Request) -> str:
        """What a process is started with and cannot change."""
        tools = () if request.behalf is None else request.behalf.tools
        schema = None if request.output_schema is None else dict(request.output_schema)
        names = claude_command.tool_names(tools)
        text = json.dumps([request.model, request.system, request.effort, schema, names], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def any_running(folder: Path) -> bool:
    """Whether an agent of the data folder `folder` runs as a process at this moment, whoever started it."""
    return processes.any_recorded(folder / FOLDER / RECORDS)


def end_recorded(folder: Path) -> int:
    """Before a worker begins: end what an earlier one left running, and clear its prompts away; how many there were.

    Only for the holder of the lock of the data folder, which is `folder`.
    """
    own = folder / FOLDER
    ended = processes.end_recorded(own / RECORDS)
    for file in (own / claude_command.PROMPTS).glob("*.txt"):
        file.unlink(missing_ok=True)
    return ended
