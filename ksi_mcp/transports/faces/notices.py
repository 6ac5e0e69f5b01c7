"""Notices of changed resources, in both eras: `resources/subscribe` before 2026-07-28, `subscriptions/listen` since.

One listener on the journal serves all subscribers, and there is none while nobody is subscribed. It hears what every
process on the data folder commits. What happens within a quarter of a second goes out together, one notice for each
address; whoever does not read gets no more than one for each when he reads again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import anyio
from mcp import MCPError
from mcp.server.connection import Connection
from mcp.server.session import ServerSession
from mcp.server.subscriptions import ListenHandler, ResourcesListChanged, ResourceUpdated, ServerEvent
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    EmptyResult,
    ListResourcesResult,
    PaginatedRequestParams,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError, Refused
from ksi_mcp.events.journal import Journal, Subscription
from ksi_mcp.events.model import Event
from ksi_mcp.permissions import Actor, fresh_context
from ksi_mcp.transports.access import actor_of
from ksi_mcp.transports.faces.confirm import MODERN
from ksi_mcp.transports.faces.paging import Handler, Request
from ksi_mcp.transports.faces.resources import Resources
from ksi_mcp.transports.faces.touching import LIST, Key, of_all, touched

logger = logging.getLogger(__name__)

PAUSE_S: Final = 0.25
"""Between two notices of the same address, at least."""
MAX_URIS: Final = 200
"""That one session or stream subscribes to."""
MAX_SUBSCRIBERS: Final = 500
"""Half of them for one caller at most, other than the operator."""

Tell = Callable[[Collection[str], bool], None]
"""Told which addresses have changed, and whether the list of resources has. Must not wait."""


class Subscriber:
    """A session, or a stream: whose it is, and what it wants to hear of."""

    def __init__(self, actor: Actor, tell: Tell) -> None:
        self.actor = actor
        self.tell = tell
        self.uris: dict[str, Key] = {}
        self.follows_list = False

    @property
    def keys(self) -> list[Key]:
        """What it wants to hear of; an address for each."""
        return [*self.uris.values(), LIST] if self.follows_list else [*self.uris.values()]


class Notices:
    """Answers `resources/subscribe`, `resources/unsubscribe` and `subscriptions/listen`, and sends the notices.

    A session of the older era also follows the list of resources, from the time it has asked for it.
    """

    def __init__(self, journal: Journal, resources: Resources) -> None:
        self._journal = journal
        self._resources = resources
        self._subscribers: set[Subscriber] = set()
        self._sessions: dict[Connection, Subscriber] = {}
        self._wanted: Counter[Key] = Counter()
        self._pump: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        self._missed = 0

    def handlers(self) -> tuple[Handler, ...]:
        """What to register with the server, above what `Resources` offers."""
        return (
            ("resources/list", PaginatedRequestParams, self._page),
            ("resources/subscribe", SubscribeRequestParams, self.subscribe),
            ("resources/unsubscribe", UnsubscribeRequestParams, self.unsubscribe),
            ("subscriptions/listen", SubscriptionsListenRequestParams, self.listen),
        )

    @property
    def subscribers(self) -> int:
        """Sessions and streams that want to hear of something."""
        return len(self._subscribers)

    @property
    def at_work(self) -> bool:
        """Whether the journal is listened to."""
        return self._pump is not None

    # ------------------------------------------------------------------------ before 2026-07-28

    async def subscribe(self, request: Request, params: SubscribeRequestParams) -> EmptyResult:
        """Tell this session when the resource changes, until it says otherwise or ends.

        Raises:
            MCPError: there is no such resource in the caller's sight, or there are too many subscriptions.
        """
        uri, actor = str(params.uri), _actor(request)
        key = await self._resources.identify(fresh_context(actor), uri)
        session = self._session(request, actor)
        if uri not in session.uris:
            if len(session.uris) >= MAX_URIS:
                raise MCPError(
                    code=INVALID_PARAMS,
                    message=f"this session has {MAX_URIS} subscriptions, the most there can be; unsubscribe from some",
                    data={"uri": uri},
                )
            session.uris[uri] = key
            self._wanted[key] += 1
        await self._add(session)
        return EmptyResult()

    async def unsubscribe(self, request: Request, params: UnsubscribeRequestParams) -> EmptyResult:
        """Tell this session no more of that resource; nothing to do if it never was."""
        session = self._sessions.get(_connection(request))
        if session is not None and session.actor == _actor(request):
            key = session.uris.pop(str(params.uri), None)
            if key is not None:
                self._forget([key])
            if not session.keys:
                self._remove(session)
        return EmptyResult()

    async def _page(self, request: Request, params: PaginatedRequestParams) -> ListResourcesResult:
        page = await self._resources.page(request, params)
        if request.protocol_version < MODERN and _connection(request).has_standalone_channel:
            with contextlib.suppress(MCPError):  # the list is there all the same
                session = self._session(request, _actor(request))
                if not session.follows_list:
                    session.follows_list = True
                    self._wanted[LIST] += 1
                await self._add(session)
        return page

    def _session(self, request: Request, actor: Actor) -> Subscriber:
        """The subscriber behind a connection of the older era; made at first need, gone with the connection."""
        connection = _connection(request)
        found = self._sessions.get(connection)
        if found is None:
            sender = _Sender(request.session)
            found = self._sessions[connection] = Subscriber(actor, sender.tell)

            def gone() -> None:
                sender.close()
                self._remove(self._sessions.pop(connection))

            connection.exit_stack.callback(gone)
        elif found.actor != actor:
            raise MCPError(
                code=INVALID_REQUEST, message="this session was begun by somebody else; begin one of your own"
            )
        return found

    # ------------------------------------------------------------------------- since 2026-07-28

    async def listen(self, request: Request, params: SubscriptionsListenRequestParams) -> SubscriptionsListenResult:
        """Serve one stream of notices until the client ends it. It is told which of the addresses it hears of.

        Raises:
            MCPError: too many addresses, or too many streams.
        """
        actor, wanted = _actor(request), params.notifications
        uris = list(dict.fromkeys(wanted.resource_subscriptions or ()))
        if len(uris) > MAX_URIS:
            raise MCPError(code=INVALID_PARAMS, message=f"{len(uris):,} addresses; one stream takes {MAX_URIS}")
        stream = _Stream(actor)
        for uri in uris:
            with contextlib.suppress(MCPError):  # those that are not there are left out of what is acknowledged
                stream.uris[uri] = await self._resources.identify(fresh_context(actor), uri)
        stream.follows_list = bool(wanted.resources_list_changed)
        honoured = wanted.model_copy(update={"resource_subscriptions": list(stream.uris) or None})
        self._wanted.update(stream.keys)
        try:
            await self._add(stream)
            return await ListenHandler(stream)(request, params.model_copy(update={"notifications": honoured}))
        finally:
            self._remove(stream)

    # ---------------------------------------------------------------------------------- the pump

    async def _add(self, subscriber: Subscriber) -> None:
        """From the time this returns on, the subscriber hears of everything that it wants."""
        if subscriber not in self._subscribers:
            if len(self._subscribers) >= MAX_SUBSCRIBERS or self._has_its_share(subscriber.actor):
                self._drop(subscriber)
                raise MCPError(
                    code=INTERNAL_ERROR,
                    message=f"{len(self._subscribers)} clients are subscribed, the most there can be; read instead",
                )
            self._subscribers.add(subscriber)
        if not subscriber.keys:
            return
        if self._pump is None:
            self._listening = asyncio.Event()
            self._pump = asyncio.create_task(self._run(self._listening), name="ksi-notices")
        await self._listening.wait()
        if self._pump is None and subscriber.keys:  # without any, it was taken back while this waited
            raise MCPError(
                code=INTERNAL_ERROR, message="changes cannot be followed at present; the server's log has it"
            )

    def _has_its_share(self, actor: Actor) -> bool:
        theirs = sum(each.actor == actor for each in self._subscribers)
        return actor.kind != "operator" and theirs >= MAX_SUBSCRIBERS // 2

    def _remove(self, subscriber: Subscriber) -> None:
        self._drop(subscriber)
        self._subscribers.discard(subscriber)
        if self._pump is not None and not self._wanted:
            self._pump.cancel()
            self._pump = None
            self._listening.set()  # it may not have begun, and whoever took a wish back may still wait for it

    def _drop(self, subscriber: Subscriber) -> None:
        """Take away all that a subscriber wants."""
        self._forget(subscriber.keys)
        subscriber.uris.clear()
        subscriber.follows_list = False

    def _forget(self, keys: Collection[Key]) -> None:
        self._wanted.subtract(keys)
        for key in set(keys):
            if self._wanted[key] <= 0:
                del self._wanted[key]

    def _concerns(self, event: Event) -> bool:
        return not self._wanted.keys().isdisjoint(touched(event))

    async def _run(self, listening: asyncio.Event) -> None:
        try:
            async with self._journal.subscribe(self._concerns) as live:
                listening.set()
                self._missed = 0
                while True:
                    first = await live.next(None)
                    await self._told([*([first] if first is not None else []), *live.drain()], live)
                    await asyncio.sleep(PAUSE_S)
        except Exception:
            logger.exception("changes cannot be followed")
            self._pump = None
            listening.set()

    async def _told(self, events: Sequence[Event], live: Subscription) -> None:
        try:
            await self._tell(events, live)
        except Exception:
            logger.exception("subscribers could not be told of changes")

    async def _tell(self, events: Sequence[Event], live: Subscription) -> None:
        everything = live.missed > self._missed
        self._missed = live.missed
        scopes = await self._scopes()
        changed = {actor: None if everything else _visible_keys(events, seen) for actor, seen in scopes.items()}
        for subscriber in list(self._subscribers):
            keys = changed.get(subscriber.actor, frozenset())
            uris = [uri for uri, key in subscriber.uris.items() if keys is None or key in keys]
            list_changed = subscriber.follows_list and (keys is None or LIST in keys)
            if uris or list_changed:
                subscriber.tell(uris, list_changed)

    async def _scopes(self) -> dict[Actor, frozenset[str] | None]:
        """What each of those who are subscribed can see at this moment; None is all."""
        actors = {subscriber.actor for subscriber in self._subscribers}
        agents = [actor for actor in actors if actor.kind == "agent"]
        found: dict[Actor, frozenset[str] | None] = dict.fromkeys(actors)
        if agents:
            found |= await self._journal.read(lambda tx: {agent: _sight(tx, agent) for agent in agents})
        return found


class _Stream(Subscriber):
    """One `subscriptions/listen`, and the bus that the SDK's handler of it listens to."""

    def __init__(self, actor: Actor) -> None:
        super().__init__(actor, self._publish)
        self._listener: Callable[[ServerEvent], None] | None = None

    async def publish(self, event: ServerEvent) -> None:
        """For the SDK's protocol of a bus; nobody but the notices publishes here."""
        if self._listener is not None:
            self._listener(event)

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """The stream is open."""
        self._listener = listener
        return self._silence

    def _silence(self) -> None:
        self._listener = None

    def _publish(self, uris: Collection[str], list_changed: bool) -> None:
        if self._listener is not None:
            for uri in uris:
                self._listener(ResourceUpdated(uri=uri))
            if list_changed:
                self._listener(ResourcesListChanged())


class _Sender:
    """Sends to one session of the older era. While the client does not read, what it has missed comes to one each."""

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self._uris: dict[str, None] = {}
        self._list_changed = False
        self._task: asyncio.Task[None] | None = None

    def tell(self, uris: Collection[str], list_changed: bool) -> None:
        self._uris.update(dict.fromkeys(uris))
        self._list_changed = self._list_changed or list_changed
        if self._task is None:
            self._task = asyncio.create_task(self._send(), name="ksi-notices-send")

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _send(self) -> None:
        try:
            while self._uris or self._list_changed:
                if self._list_changed:
                    self._list_changed = False
                    await self._session.send_resource_list_changed()
                for uri in list(self._uris):
                    del self._uris[uri]
                    await self._session.send_resource_updated(uri)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("a client went away before it was told of changes")
        except Exception:
            logger.exception("a client could not be told of changes")
        finally:
            self._task = None


def _visible_keys(events: Sequence[Event], seen: frozenset[str] | None) -> frozenset[Key]:
    """What these events have changed, as far as somebody with that sight may be told."""
    keys: set[Key] = set()
    for event in events:
        visible = seen is None or event.agent_id in seen or event.orchestration_id in seen
        keys |= touched(event) if visible else of_all(event)
    return frozenset(keys)


def _sight(tx: Tx, agent: Actor) -> frozenset[str] | None:
    try:
        return reach.visible_scopes(tx, fresh_context(agent))
    except Refused:  # it has ended
        return frozenset()


def _actor(request: Request) -> Actor:
    try:
        return actor_of(request)
    except KsiError as error:
        raise MCPError(code=INVALID_REQUEST, message=error.text()) from error


def _connection(request: Request) -> Connection:
    """The connection that a request came over: a handler is not given it, and only it outlives the request."""
    connection: Any = request.session._connection  # noqa: SLF001
    assert isinstance(connection, Connection)  # noqa: S101
    return connection
