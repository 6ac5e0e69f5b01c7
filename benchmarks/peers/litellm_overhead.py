"""litellm, side by side with `provider_overhead`. `litellm_overhead.py PART BASE_URL`."""

from __future__ import annotations

import asyncio
import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it asks the network

import litellm
from overhead_load import MAX_TOKENS, PARTS, PROMPT, SYSTEM

litellm.telemetry = False
litellm.suppress_debug_info = True


async def measure(part: str, base_url: str) -> object:
    async def call(model: str) -> str:
        stream = await litellm.acompletion(
            model=f"openai/{model}",
            api_base=base_url,
            api_key="none",
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}],
            max_tokens=MAX_TOKENS,
            max_retries=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    return await PARTS[part](call)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], sys.argv[2]))))
