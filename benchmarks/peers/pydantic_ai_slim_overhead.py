"""pydantic-ai's model layer, side by side with `provider_overhead`. `pydantic_ai_slim_overhead.py PART BASE_URL`."""

from __future__ import annotations

import asyncio
import json
import sys

from openai import AsyncOpenAI
from overhead_load import MAX_TOKENS, MODELS, PARTS, PROMPT, SYSTEM
from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import ModelRequest, SystemPromptPart, TextPart, UserPromptPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


async def measure(part: str, base_url: str) -> object:
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    provider = OpenAIProvider(openai_client=client)
    models = {name: OpenAIChatModel(name, provider=provider) for name in MODELS}
    messages = [ModelRequest(parts=[SystemPromptPart(content=SYSTEM), UserPromptPart(content=PROMPT)])]

    async def call(model: str) -> str:
        settings = {"max_tokens": MAX_TOKENS}
        async with model_request_stream(models[model], messages, model_settings=settings) as stream:
            async for _ in stream:
                pass
            return "".join(part.content for part in stream.get().parts if isinstance(part, TextPart))

    return await PARTS[part](call)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], sys.argv[2]))))
