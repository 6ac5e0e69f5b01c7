from __future__ import annotations

import re

from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID

from ksi_mcp.transports.faces.apps import DASHBOARD, SHOWN_FOR, page

UI_CLIENT = {EXTENSION_ID: {"mimeTypes": [APP_MIME_TYPE]}}


async def test_one_tool_names_the_page_and_every_client_gets_the_same_list(serve):
    async with serve() as (_, client):
        tools = (await client.list_tools()).tools
    metas = {tool.name: tool.meta for tool in tools if tool.meta}
    assert metas == {SHOWN_FOR: {"ui": {"resourceUri": DASHBOARD}}}


async def test_the_page_is_read_like_any_resource_and_asks_for_no_other_place(serve):
    async with serve() as (_, client):
        (listed,) = [each for each in (await client.list_resources()).resources if each.uri == DASHBOARD]
        (read,) = (await client.read_resource(DASHBOARD)).contents
    assert listed.mime_type == read.mime_type == APP_MIME_TYPE
    nowhere = {"connectDomains": [], "resourceDomains": [], "frameDomains": [], "baseUriDomains": []}
    assert listed.meta == read.meta == {"ui": {"csp": nowhere, "prefersBorder": True}}
    assert read.text == page()
    assert read.text.startswith("<!doctype html>")


async def test_a_client_that_shows_no_apps_gets_the_same_result(serve):
    async with serve() as (_, client):
        status = await client.call_tool(SHOWN_FOR, {})
    assert not status.is_error
    assert status.structured_content["orchestrations"] == []
    assert status.content[0].text.startswith('{"orchestrations":[]')


async def test_the_server_says_that_it_has_apps(serve, era):
    async with serve() as (_, client):
        extensions = (client.server_capabilities.extensions or {}) if era == "auto" else {EXTENSION_ID: {}}
    assert EXTENSION_ID in extensions  # the older era has no place to say it


def test_the_page_loads_nothing_and_makes_no_markup_of_data():
    text = page()
    code = text[text.index("<script>") :]
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.findall(r"""(?:src|href)\s*=|url\((?!#)|@import|<link|<iframe""", text.replace("url(#tip", ""))
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|fetch\(|XMLHttp"
    )
    assert not re.findall(forbidden + r"|WebSocket|EventSource|localStorage|importScripts|\bimport\(", code)
    assert len(text.encode()) < 80_000
