"""The page as a host shows it: a real browser, a real server behind real HTTP, a live run."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
MINUTE = 60_000
HOST, SANDBOX = "https://host.test/", "https://sandbox.test/app"


def expect():
    return pytest.importorskip("playwright.async_api", reason="no playwright").expect


async def overflow(app) -> int:
    """By how many pixels the page is wider than its frame."""
    return await app.locator("html").evaluate("root => root.scrollWidth - root.clientWidth")


async def markup(app) -> list[str]:
    """The elements on the page that no data of ours may ever become."""
    found = await app.locator("#page").evaluate(
        "page => [...page.querySelectorAll('img, script, iframe, a, object, link')].map((each) => each.outerHTML)"
    )
    return list(found)


async def test_a_run_is_shown_and_what_changes_arrives_by_itself(stage):
    async with stage() as s:
        await s.start()
        app = await s.show()
        await expect()(app.locator("#title")).to_have_text("review_board")
        await expect()(app.locator("#state")).to_have_text("running")
        await expect()(app.locator("#fresh")).to_have_text("live")
        agents = app.locator("#map").get_by_role("listitem")
        await expect()(agents).to_have_count(5)
        assert await agents.locator(".name").all_text_contents() == [
            *("planner", "researcher", "writer", "critic", "editor")
        ]
        await expect()(app.locator("#routes li")).to_have_count(6)
        # Six routes and no pair twice; the messages that they became lie on the same edges.
        await expect()(app.locator("#map path.e")).to_have_count(6)
        route = app.locator("#routes li", has_text="planner → researcher")
        await expect()(route).to_have_text("plan:readyplanner → researcher1")
        before = (await s.call("orchestration_status", orchestration=s.run))["census"]["ok"]
        await expect()(app.locator("#turns .legend")).to_have_text(f"{before} done")
        await expect()(app.locator("#budget")).to_contain_text("of $1.00")
        await expect()(app.locator("#evs")).to_contain_text("draft:passed")

        await s.call("agent_send", agent="editor", message="one more", wait_s=20)
        await expect()(app.locator("#turns .legend")).to_have_text(f"{before + 1} done")
        await s.call("agent_send", agent="critic", message="take your time")
        await expect()(app.locator("#map .n.busy .name")).to_have_text(["critic"])
        await expect()(app.locator("#queue")).to_contain_text("1 running")
        rule = {"source_pattern": "review:late", "target": "agent:editor", "scope": f"orchestration:{s.run}"}
        await s.call("routing_add_rule", **rule)
        await expect()(app.locator("#routes")).to_contain_text("review:late")
        await expect()(app.locator("#map .chip")).to_have_text(["review:late"])

        await s.call("orchestration_complete", orchestration=s.run, outcome="success", score=0.9, summary="All done.")
        await expect()(app.locator("#state")).to_have_text("completed")
        await expect()(app.locator("#told")).to_contain_text("All done.")
        await expect()(app.locator("#fresh")).to_contain_text("ended")
        await expect()(app.locator("#map .n.over")).to_have_count(5)
        await expect()(app.get_by_role("button", name="Suspend")).to_be_hidden()
        asked = await s.calls()
        await s.page.clock.fast_forward(10 * MINUTE)
        assert await s.calls() == asked
        assert await app.locator("#page").evaluate("page => document.title") == "review_board: completed"


async def test_a_question_is_answered_on_the_page_and_its_turn_gets_the_answer(stage):
    async with stage() as s:
        await s.start(play=False)
        app = await s.show()
        await expect()(app.locator("#title")).to_have_text("review_board")
        turn = await s.park()
        card = app.get_by_role("group", name="Question of editor")
        await expect()(card).to_contain_text("nothing in it matches the regular expression")
        await expect()(card).to_contain_text("how many pages?")
        await expect()(app.locator("#map .n.asks .name")).to_have_text(["editor"])
        box, send = card.get_by_role("textbox"), card.get_by_role("button", name="Answer", exact=True)
        await expect()(send).to_be_disabled()
        await box.fill("a few")

        # What goes on meanwhile does not take the draft away.
        await s.call("agent_send", agent="planner", message="one more", wait_s=20)
        await expect()(app.locator("#turns .legend")).to_contain_text("1 done")
        await expect()(box).to_have_value("a few")

        await send.click()
        await expect()(card.get_by_role("alert")).to_contain_text("is not what turn")
        await expect()(card.get_by_role("button", name="Answer all the same")).to_be_visible()
        await expect()(box).to_be_focused()
        await box.fill("42")
        await box.press("Control+Enter")
        await expect()(card).to_have_count(0)
        await expect()(app.get_by_role("status")).to_have_text("The answer was taken.")
        (answered,) = (await s.call("agent_wait", turns=[turn]))["turns"]
        assert (answered["status"], answered["text"], answered["answered_by"]) == ("done", "42", "operator")
        await expect()(app.locator("#asks")).to_be_hidden()


async def test_what_agents_say_is_text_and_nothing_else(stage):
    async with stage() as s:
        await s.start()
        await s.park()
        app = await s.show()
        card = app.get_by_role("group", name="Question of editor")
        await expect()(card).to_contain_text(f"how many pages? {HOSTILE}")
        await expect()(card).to_contain_text(f"As many as it takes. {HOSTILE}")
        event = app.locator(".ev", has_text="notes:ready").first
        await event.locator("summary").press("Enter")
        await expect()(event.locator("pre")).to_contain_text("onerror")
        assert await markup(app) == []
        assert await app.locator("#page").evaluate("page => document.title") == "review_board: running"


async def test_a_result_that_is_hostile_everywhere_is_shown_as_text(stage):
    deep: object = HOSTILE
    for _ in range(20):
        deep = [deep]
    bad = {"__proto__": {"taken": True}, "constructor": HOSTILE, HOSTILE: HOSTILE, "deep": deep}
    agents = [
        {"agent": f"{HOSTILE}{n}", "name": HOSTILE, "status": HOSTILE, "pending_turns": HOSTILE} for n in range(60)
    ]
    asked = {"turn": HOSTILE, "agent": HOSTILE, "agent_name": HOSTILE, "parked_on": HOSTILE, "next": HOSTILE}
    result = {
        "orchestration": HOSTILE,
        "pattern": f"{HOSTILE}@{HOSTILE}",
        "state": HOSTILE,
        "started_at": HOSTILE,
        "agents": [*agents, None, 7],
        "census": {"asked": HOSTILE, "ok": -1, "failed": 1e308, "pending": None},
        "queue": {HOSTILE: 3, "running": "many", "__proto__": 1},
        "budget": {"spent_usd": HOSTILE, "limit_usd": -5, "reserved_usd": 1e12, "limit_turns": 0, "spent_turns": 3},
        "questions": [asked, {**asked, "parked_on": "answer", "prompt": HOSTILE, "reply": bad}, None],
        "events": [{"event_id": 3, "event": HOSTILE, "data": bad, "source": HOSTILE, "at": HOSTILE}, [], "x"],
        "outcome": HOSTILE,
        "summary": bad,
        "metrics": bad,
        "next": HOSTILE,
    }
    async with stage(width=320) as s:
        text = {"type": "text", "text": json.dumps(result)}
        app = await s.show(result={"content": [text], "structuredContent": result}, arguments={}, capabilities={})
        await expect()(app.locator("#title")).to_have_text(HOSTILE)
        await expect()(app.locator("#map")).to_contain_text("and 34 more")
        assert await markup(app) == []
        assert "taken" not in (await app.locator("#page").evaluate("page => document.title")).split(":")[0][:5]
        assert await app.locator("#page").evaluate("() => ({}).taken === undefined && window.taken === undefined")
        assert await overflow(app) == 0
        # A host that does not pass structured content on: the same is read from the text.
        app = await s.show(result={"content": [text]}, arguments={}, capabilities={})
        await expect()(app.locator("#title")).to_have_text(HOSTILE)
        # Who is not the host is not listened to.
        forged = {"jsonrpc": "2.0", "method": "ui/notifications/tool-cancelled", "params": {"reason": "forged"}}
        await app.locator("#page").evaluate("(_, forged) => window.postMessage(forged, '*')", forged)
        await expect()(app.locator("#blank")).to_be_hidden()


async def test_a_run_is_held_and_let_go_on_from_the_page_if_the_host_agrees(stage):
    async with stage() as s:
        await s.start(play=False)
        app = await s.show()
        await s.page.evaluate("refused = 'the user said no'")
        await app.get_by_role("button", name="Suspend").click()
        await expect()(app.get_by_role("alert")).to_contain_text("the user said no")
        assert (await s.call("orchestration_status", orchestration=s.run))["state"] == "running"
        await s.page.evaluate("refused = ''")
        await app.get_by_role("button", name="Suspend").click()
        await expect()(app.locator("#state")).to_have_text("suspended")
        assert (await s.call("orchestration_status", orchestration=s.run))["state"] == "suspended"
        await app.get_by_role("button", name="Resume").press("Enter")
        await expect()(app.locator("#state")).to_have_text("running")
        await expect()(app.get_by_role("status")).to_have_text("The run is running.")


async def test_it_asks_less_often_when_nothing_changes_nobody_looks_or_nothing_is_heard(stage):
    async with stage() as s:
        await s.start(play=False)
        app = await s.show()
        clock = s.page.clock
        await expect()(app.locator("#fresh")).to_have_text("live")

        async def asked_within(seconds: int) -> int:
            before = await s.calls("orchestration_status")
            for _ in range(seconds):
                await clock.run_for(1000)
            return await s.calls("orchestration_status") - before

        await clock.pause_at(await s.page.evaluate("Date.now() + 1000"))
        await asked_within(40)
        assert 2 <= await asked_within(40) <= 5  # at first every two seconds, then every ten

        await s.page.evaluate("refused = 'the server is gone'")
        await asked_within(12)
        alert = app.get_by_role("alert").first
        await expect()(alert).to_contain_text("Not refreshed: the server is gone.")
        await expect()(app.locator("#fresh")).to_contain_text("last heard")
        assert await asked_within(90) <= 5
        await expect()(app.locator("#title")).to_have_text("review_board")  # what was known stays
        await s.page.evaluate("refused = ''")
        await app.get_by_role("button", name="Refresh").click()
        await expect()(app.locator("#fresh")).to_have_text("live")
        await expect()(alert).to_be_hidden()

        hide = "(_, hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true }); "
        hide += "document.dispatchEvent(new Event('visibilitychange')); }"
        await app.locator("#page").evaluate(hide, True)
        await asked_within(12)
        assert await asked_within(60) <= 2
        before = await s.calls("orchestration_status")
        async with asyncio.timeout(10):
            while await s.calls("orchestration_status") == before:  # one that was under way is not asked twice
                await app.locator("#page").evaluate(hide, False)
                await asyncio.sleep(0.2)  # it asks at once, without its clock, which stands
        await expect()(app.locator("#fresh")).to_have_text("live")
        assert await s.calls("orchestration_status") == before + 1

        # The host takes the page down: it says so, and is still for good.
        await s.page.evaluate("teardown()")
        await s.page.wait_for_function("said.some((each) => each.id === 1 && each.result && !each.method)")
        assert await asked_within(120) == 0


async def test_without_a_run_all_open_ones_are_shown_and_can_be_opened(stage):
    async with stage(width=640) as s:
        app = await s.show()
        await expect()(app.locator("#blank")).to_contain_text("No run is open")
        first = await s.start(play=False)
        await s.call("orchestration_control", orchestration=first, action="suspend")
        await s.start(play=False)
        rows = app.get_by_role("list", name="Open runs").get_by_role("button")
        await expect()(rows).to_have_count(2)
        await expect()(rows.first).to_contain_text("5 agents, 0 turns pending, $0.00 of $1.00")
        await rows.last.focus()
        await s.page.keyboard.press("Enter")
        await expect()(app.locator("#about")).to_contain_text(first)
        await expect()(app.locator("#state")).to_have_text("suspended")
        await app.get_by_role("button", name="All runs").click()
        await expect()(rows).to_have_count(2)


async def test_a_host_that_lets_the_page_call_nothing_gets_a_still_picture(stage):
    async with stage() as s:
        await s.start(play=False)
        await s.park()
        await s.call("agent_wait", agents=["editor"], timeout_s=20)
        app = await s.show(capabilities={})
        await expect()(app.locator("#fresh")).to_contain_text("this host does not refresh it")
        await expect()(app.locator("#asks")).to_contain_text("Answer it with completion_answer.")
        await expect()(app.get_by_role("button")).to_have_count(0)
        await s.page.clock.fast_forward(MINUTE)
        assert await s.calls() == 0

        failed = {"content": [{"type": "text", "text": "Error executing tool orchestration_status: unknown"}]}
        app = await s.show(result={**failed, "isError": True})
        await expect()(app.locator("#blank")).to_have_text(re.compile("cannot be shown.*unknown$"))


async def test_without_a_host_or_a_result_it_says_so_or_looks_for_itself(stage):
    async with stage() as s:
        await s.start(play=False)
        app = await s.show(silent=True)  # a host that shows an old conversation may have no result any more
        await expect()(app.locator("#blank")).to_contain_text("Waiting for the result.")
        await s.page.clock.fast_forward(5_000)
        await expect()(app.locator("#state")).to_have_text("running")

        await s.page.goto(HOST)
        await s.page.evaluate("page => { deaf = true; open({ page }) }", SANDBOX)
        await expect()(app.locator("#blank")).to_contain_text("Waiting for the host.")
        await s.page.clock.fast_forward(10_000)
        await expect()(app.locator("#blank")).to_contain_text("No host answered")

        await s.page.goto(SANDBOX)
        await expect()(s.page.locator("#blank")).to_contain_text("This page belongs into an MCP client")


@pytest.mark.parametrize("width", [320, 900])
async def test_it_takes_the_hosts_looks_and_fits(stage, width):
    async with stage(width=width, calm=True) as s:
        await s.start()
        await s.park()
        await s.call("agent_wait", agents=["editor"], timeout_s=20)
        await s.call("agent_send", agent="critic", message="take your time")
        styles = {"variables": {"--font-sans": "Georgia, serif"}, "css": {"fonts": "@font-face { font-family: none; }"}}
        zone = {"locale": "de-DE", "timeZone": "Asia/Tokyo"}
        app = await s.show(dark=True, context={"theme": "dark", "styles": styles, **zone})
        await expect()(app.locator("#routes li")).to_have_count(6)
        paint = "body => { const s = getComputedStyle(body); return [s.backgroundColor, s.color, s.fontFamily]; }"
        background, ink, font = await app.locator("body").evaluate(paint)
        assert (background, font) == ("rgb(28, 28, 27)", "Georgia, serif")
        assert ink == "rgb(237, 235, 230)"
        moving = "page => page.getAnimations({ subtree: true }).length"
        await expect()(app.locator("#map .n.busy")).to_have_count(1)
        assert await app.locator("#page").evaluate(moving) == 0
        assert await overflow(app) == 0
        # The frame is as high as the page asked for, and nothing is cut off.
        heights = "root => [root.scrollHeight, window.innerHeight]"
        await s.page.wait_for_function("said.some((each) => each.method === 'ui/notifications/size-changed')")
        wanted, given = await app.locator("html").evaluate(heights)
        assert wanted <= given
        unnamed = "page => [...page.querySelectorAll('button, textarea, [role=img]')].filter((each) => "
        unnamed += "!(each.textContent.trim() || each.getAttribute('aria-label'))).length"
        assert await app.locator("#page").evaluate(unnamed) == 0

        await s.page.evaluate("context({ theme: 'light', styles: { variables: { '--font-sans': 'Arial' } } })")
        await expect()(app.locator("html")).to_have_attribute("data-theme", "light")
        background, ink, font = await app.locator("body").evaluate(paint)
        assert (background, ink, font) == ("rgb(255, 255, 255)", "rgb(31, 30, 27)", "Arial")
