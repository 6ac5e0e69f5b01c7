"""autogen-core's publish/subscribe, side by side with `route_match`. `autogen_core_match.py SUBSCRIPTIONS MESSAGES`.

Half of the subscriptions are exact (`TypeSubscription`), half are prefixes (`TypePrefixSubscription`), which is all
the wildcard there is. Every message has a topic that one of them hears, and is done when its handler has returned.
Prints the messages a second with topics never published before (where there are fewer exact subscriptions than
messages, these topics repeat), and then with topics that were.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from dataclasses import dataclass

from autogen_core import (
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TopicId,
    TypePrefixSubscription,
    TypeSubscription,
    message_handler,
)

WARM_UP = 50


@dataclass
class Note:
    score: float
    kind: str
    task: int


class Listener(RoutedAgent):
    heard = 0

    def __init__(self) -> None:
        super().__init__("listens")

    @message_handler
    async def on_note(self, message: Note, ctx: MessageContext) -> None:  # noqa: ARG002  the runtime passes it
        Listener.heard += 1


def subscription(n: int) -> TypeSubscription | TypePrefixSubscription:
    if n % 2:
        return TypePrefixSubscription(f"team{n // 10}:job{n}:", "listener", id=str(n))
    return TypeSubscription(f"team{n // 10}:task{n}:done", "listener", id=str(n))


def topics(subscriptions: int, numbers: range) -> list[TopicId]:
    """One for each number, spread over the subscriptions; of one source, so that one agent hears them all."""
    found = []
    for number in numbers:
        n = number * 7919 % subscriptions
        kind = f"team{n // 10}:job{n}:x{number}" if n % 2 else f"team{n // 10}:task{n}:done"
        found.append(TopicId(kind, "bench"))
    return found


async def seconds(runtime: SingleThreadedAgentRuntime, found: list[TopicId]) -> float:
    before = Listener.heard
    began = time.perf_counter()
    runtime.start()
    for number, topic in enumerate(found):
        await runtime.publish_message(Note(0.7, "final", number), topic_id=topic)
    await runtime.stop_when_idle()
    took = time.perf_counter() - began
    if Listener.heard - before != len(found):
        raise SystemExit(f"{Listener.heard - before} of {len(found)} messages were heard")
    return took


async def per_second(subscriptions: int, messages: int) -> list[float]:
    runtime = SingleThreadedAgentRuntime()
    await runtime.register_factory("listener", Listener)
    manager = runtime._subscription_manager  # noqa: SLF001
    # Added one by one, each would be compared with all before it: minutes, and not what is measured.
    manager._subscriptions.extend(subscription(n) for n in range(subscriptions))  # noqa: SLF001
    await seconds(runtime, topics(subscriptions, range(WARM_UP)))
    fresh = topics(subscriptions, range(WARM_UP, WARM_UP + messages))
    return [messages / await seconds(runtime, fresh), messages / await seconds(runtime, fresh)]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(asyncio.run(per_second(int(sys.argv[1]), int(sys.argv[2])))))
